"""`create`, `apply`, `replace`, `delete`, `validate`: change objects as files or the command line say.

All manifests are read and checked before anything is written. Then each object is written on its own: create, apply and
delete go on after an error, and say how far they came (node-and-cli 4.3, 4.4).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Callable, Iterable, Sequence

import click

from calico_plugin.cli import cascade, manifest, objects
from calico_plugin.cli.kinds import kind_of
from calico_plugin.cli.session import Session, common, session_of
from calico_plugin.errors import (
    AlreadyExists,
    CalicoError,
    DatastoreUnauthorized,
    DatastoreUnavailable,
    DeadlineExceeded,
    InvalidInput,
    NotFound,
)
from calico_plugin.model.resources import KINDS, Resource

Step = Callable[[Session, Resource], None]

# After these the next object would only wait as long.
_HOPELESS = (DatastoreUnavailable, DatastoreUnauthorized, DeadlineExceeded)


@dataclass
class Outcome:
    """What became of the objects of one command."""

    verb: str
    kinds: list[str]
    done: int = 0
    errors: list[CalicoError] = field(default_factory=list)

    @property
    def what(self) -> str:
        """`'IPPool' resource`, or `resource` when there are several kinds."""
        return f"'{self.kinds[0]}' resource" if len(set(self.kinds)) == 1 else "resource"


class CommandFailed(CalicoError):
    """Some objects could not be handled; the text has one line for each."""


def _file_options(command: Any) -> Any:
    for option in (
        click.option("-f", "--filename", help="File, directory, or - for standard input."),
        click.option("-R", "--recursive", is_flag=True, help="Read the directory with all below it."),
        click.option("--skip-empty", is_flag=True, help="A file without objects is no error."),
        click.option("-n", "--namespace", default="", help="Namespace of objects that name none (default: default)."),
    ):
        command = option(command)
    return command


@click.command()
@click.option("--skip-exists", is_flag=True, help="Leave objects that exist already as they are.")
@_file_options
@common
@click.pass_context
def create(context: click.Context, skip_exists: bool, **given: Any) -> None:
    """Create objects; fails for those that exist already."""

    def step(session: Session, resource: Resource) -> None:
        try:
            session.resources.create(resource, session.deadline())
        except AlreadyExists:
            if not skip_exists:
                raise

    _write(context, "create", given, step, new=True)


@click.command()
@_file_options
@common
@click.pass_context
def apply(context: click.Context, **given: Any) -> None:
    """Create objects, or make the existing ones as the file says."""
    _write(
        context,
        "apply",
        given,
        lambda session, resource: _discard(session.resources.apply(resource, session.deadline())),
    )


@click.command()
@_file_options
@common
@click.pass_context
def replace(context: click.Context, **given: Any) -> None:
    """Make existing objects as the file says; fails for those that do not exist."""
    step: Step = lambda session, resource: _discard(session.resources.replace(resource, session.deadline()))
    _write(context, "replace", given, step, stop_at_error=True)


@click.command()
@click.argument("kind", required=False)
@click.argument("names", nargs=-1)
@click.option("-s", "--skip-not-exists", is_flag=True, help="Objects that do not exist count as deleted.")
@_file_options
@common
@click.pass_context
def delete(
    context: click.Context, kind: str | None, names: tuple[str, ...], skip_not_exists: bool, **given: Any
) -> None:
    """Delete objects: KIND NAME…, or those that a file names.

    Deleting a pool releases its blocks; deleting a node releases its addresses and deletes its endpoints and settings.
    """
    session = session_of(context, given)
    wanted = _named(kind_of(kind), names, given["namespace"]) if kind else _from_file(given, new=False)
    if wanted is None:
        click.echo("No resources specified")
        return

    def step(session: Session, resource: Resource) -> None:
        try:
            cascade.delete(session, resource)
        except NotFound:
            if not skip_not_exists:
                raise

    _run(session, "delete", wanted, step)


@click.command()
@_file_options
@common
@click.pass_context
def validate(context: click.Context, **given: Any) -> None:
    """Check files without a datastore: form, names, values, and rules of each object alone."""
    wanted = _from_file(given, new=False)
    if wanted is None:
        click.echo("No resources specified")
        return
    outcome = Outcome("validate", [resource.kind for resource in wanted], len(wanted))
    click.echo(f"Successfully validated {outcome.done} {outcome.what}(s)")


def _discard(value: object) -> None:
    """For steps whose result is not shown."""


def _named(kind: str, names: Sequence[str], namespace: str) -> list[Resource]:
    from calico_plugin.model.resources import Metadata

    if not names:
        raise InvalidInput(
            "NAME", None, f"failed to delete '{kind}' resource: {kind}() has no name; give the names to delete"
        )
    return [objects.placed(KINDS[kind].type(kind=kind, metadata=Metadata(name=name)), namespace) for name in names]


def _from_file(given: dict[str, Any], new: bool) -> list[Resource] | None:
    """Checked resources of the file; None when there are none and that is allowed."""
    if not given["filename"]:
        raise InvalidInput("--filename", None, "give a file with -f FILE, a directory, or - for standard input")
    manifests = manifest.read(given["filename"], given["recursive"])
    if manifests:
        made = objects.resources(manifests, given["namespace"], new=new)
        if told := objects.converted(manifests):
            click.echo(told, err=True)
        return made
    if given["skip_empty"]:
        return None
    raise InvalidInput("--filename", given["filename"], "no resources specified in it")


def _write(
    context: click.Context,
    verb: str,
    given: dict[str, Any],
    step: Step,
    *,
    new: bool = False,
    stop_at_error: bool = False,
) -> None:
    session = session_of(context, given)
    wanted = _from_file(given, new)
    if wanted is None:
        click.echo("No resources specified")
        return
    session.resources.initialise(session.deadline())
    _run(session, verb, wanted, step, stop_at_error)


def _run(session: Session, verb: str, wanted: Iterable[Resource], step: Step, stop_at_error: bool = False) -> None:
    """Each object in turn; then what was done on standard output, and what was not in the error."""
    resources = list(wanted)
    outcome = Outcome(verb, [resource.kind for resource in resources])
    for resource in resources:
        try:
            step(session, resource)
            outcome.done += 1
        except CalicoError as error:
            outcome.errors.append(_about(resource, error))
            if stop_at_error or isinstance(error, _HOPELESS):
                break
    _report(outcome)


def _about(resource: Resource, error: CalicoError) -> CalicoError:
    """An error that names its object."""
    text = str(error)
    return error if str(resource) in text else CalicoError(f"{resource}: {text}")


def _report(outcome: Outcome) -> None:
    past = {"apply": "applied"}.get(outcome.verb, f"{outcome.verb}d")
    total = len(outcome.kinds)
    if not outcome.errors:
        click.echo(f"Successfully {past} {outcome.done} {outcome.what}(s)")
        return
    if outcome.done and outcome.verb == "delete":
        click.echo(f"Successfully {past} {outcome.done} {outcome.what}(s)")
    elif outcome.done:
        click.echo(f"Partial success: {past} the first {outcome.done} out of {total} {outcome.what}s:")
    raise CommandFailed("\n".join(f"Failed to {outcome.verb} {outcome.what}: {error}" for error in outcome.errors))
