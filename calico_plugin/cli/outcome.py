"""What became of the objects of one command: told as the original tells it, with what it does not tell."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Callable, Iterable

import click

from calico_plugin.cli import progress, suggest
from calico_plugin.cli.session import Session
from calico_plugin.errors import CalicoError, DatastoreUnauthorized, DatastoreUnavailable, DeadlineExceeded, NotFound
from calico_plugin.model.resources import Resource

Step = Callable[[Session, Resource], str]
"""Does one object and says what became of it: created, configured, unchanged, replaced, deleted."""

# After these the next object would only wait as long.
_HOPELESS = (DatastoreUnavailable, DatastoreUnauthorized, DeadlineExceeded)


@dataclass
class Outcome:
    """`changes` has a word for each object that was handled."""

    verb: str
    kinds: list[str]
    changes: list[tuple[Resource, str]] = field(default_factory=list)
    errors: list[CalicoError] = field(default_factory=list)

    @property
    def done(self) -> int:
        return len(self.changes)

    @property
    def what(self) -> str:
        """`'IPPool' resource`, or `resource` when there are several kinds."""
        return f"'{self.kinds[0]}' resource" if len(set(self.kinds)) == 1 else "resource"

    @property
    def past(self) -> str:
        return past(self.verb)


class CommandFailed(CalicoError):
    """Some objects could not be handled; the text has one line for each."""


def past(verb: str) -> str:
    return {"apply": "applied", "patch": "patched"}.get(verb, f"{verb}d")


def run(
    session: Session,
    verb: str,
    wanted: Iterable[Resource],
    step: Step,
    *,
    stop_at_error: bool = False,
    tell: bool = False,
) -> None:
    """Each object in turn; then what was done on standard output, and what was not in the error.

    `tell`: one line for each object on standard error says what became of it.
    """
    resources = list(wanted)
    outcome = Outcome(verb, [resource.kind for resource in resources])
    for resource in progress.track(resources, verb):
        try:
            outcome.changes.append((resource, step(session, resource)))
        except CalicoError as error:
            outcome.errors.append(about(session, resource, error))
            if stop_at_error or isinstance(error, _HOPELESS):
                break
    if tell or session.dry_run:
        for resource, change in outcome.changes:
            click.echo(change_line(resource, change, session.dry_run), err=True)
    _report(outcome, session.dry_run)


def change_line(resource: Resource, change: str, dry_run: bool) -> str:
    """`IPPool(web-net) created`; in a dry run what would be."""
    if not dry_run:
        return f"{resource} {change}"
    return f"{resource} {'is' if change == 'unchanged' else 'would be'} {change}"


def about(session: Session, resource: Resource, error: CalicoError) -> CalicoError:
    """An error that names its object, and for one that does not exist the nearest that does."""
    text = str(error)
    if isinstance(error, NotFound):
        return NotFound(str(resource), suggest.name(session, resource))
    return error if str(resource) in text else CalicoError(f"{resource}: {text}")


def _report(outcome: Outcome, dry_run: bool) -> None:
    total, succeeded, partly = len(outcome.kinds), f"Successfully {outcome.past}", f"Partial success: {outcome.past}"
    if dry_run:
        succeeded = partly = f"Dry run, nothing was written: would have {outcome.past}"
    if not outcome.errors:
        click.echo(f"{succeeded} {outcome.done} {outcome.what}(s)")
        return
    if outcome.done and outcome.verb == "delete":
        click.echo(f"{succeeded} {outcome.done} {outcome.what}(s)")
    elif outcome.done:
        click.echo(f"{partly} the first {outcome.done} out of {total} {outcome.what}s:")
    raise CommandFailed("\n".join(f"Failed to {outcome.verb} {outcome.what}: {error}" for error in outcome.errors))
