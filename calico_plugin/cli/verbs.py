"""`create`, `apply`, `replace`, `delete`, `validate`: change objects as files or the command line say.

All manifests are read and checked before anything is written. Then each object is written on its own: create, apply and
delete go on after an error, and say how far they came (node-and-cli 4.3, 4.4).
"""

from __future__ import annotations

from typing import Any, Sequence

import click

from calico_plugin.cli import cascade, completion, manifest, objects, progress
from calico_plugin.cli.kinds import kind_of
from calico_plugin.cli.outcome import Outcome, Step, run
from calico_plugin.cli.session import Session, common, dry_run, session_of
from calico_plugin.errors import AlreadyExists, InvalidInput, NotFound
from calico_plugin.model.resources import KINDS, Resource


def file_options(command: Any) -> Any:
    for option in (
        click.option(
            "-f",
            "--filename",
            type=click.Path(allow_dash=True),
            help="File, directory, or - for standard input.",
        ),
        click.option("-R", "--recursive", is_flag=True, help="Read the directory with all below it."),
        click.option("--skip-empty", is_flag=True, help="A file without objects is no error."),
        click.option("-n", "--namespace", default="", help="Namespace of objects that name none (default: default)."),
    )[::-1]:
        command = option(command)
    return command


@click.command()
@click.option("--skip-exists", is_flag=True, help="Leave objects that exist already as they are.")
@file_options
@dry_run
@common
@click.pass_context
def create(context: click.Context, skip_exists: bool, **given: Any) -> None:
    """Create objects; fails for those that exist already."""

    def step(session: Session, resource: Resource) -> str:
        try:
            return session.resources.create(resource, session.deadline()).outcome
        except AlreadyExists:
            if not skip_exists:
                raise
            return "unchanged"

    _write(context, "create", given, step, new=True)


@click.command()
@file_options
@click.option("-q", "--quiet", is_flag=True, help="Do not tell what became of each object.")
@dry_run
@common
@click.pass_context
def apply(context: click.Context, quiet: bool, **given: Any) -> None:
    """Create objects, or make the existing ones as the file says.

    A line for each object on standard error says whether it was created, configured (changed) or unchanged.
    """
    step: Step = lambda session, resource: session.resources.apply(resource, session.deadline()).outcome
    _write(context, "apply", given, step, tell=not quiet)


@click.command()
@file_options
@dry_run
@common
@click.pass_context
def replace(context: click.Context, **given: Any) -> None:
    """Make existing objects as the file says; fails for those that do not exist."""
    step: Step = lambda session, resource: session.resources.replace(resource, session.deadline()).outcome
    _write(context, "replace", given, step, stop_at_error=True)


@click.command()
@click.argument("kind", required=False, shell_complete=completion.kinds)
@click.argument("names", nargs=-1, shell_complete=completion.names)
@click.option("-s", "--skip-not-exists", is_flag=True, help="Objects that do not exist count as deleted.")
@file_options
@dry_run
@common
@click.pass_context
def delete(
    context: click.Context, kind: str | None, names: tuple[str, ...], skip_not_exists: bool, **given: Any
) -> None:
    """Delete objects: KIND NAME…, or those that a file names.

    Deleting a pool releases its blocks; deleting a node releases its addresses and deletes its endpoints and settings.
    """
    session = session_of(context, given)
    wanted = _named(kind_of(kind), names, given["namespace"]) if kind else from_file(given, new=False)
    if wanted is None:
        click.echo("No resources specified")
        return

    def step(session: Session, resource: Resource) -> str:
        try:
            along = cascade.delete(session, resource)
        except NotFound:
            if not skip_not_exists:
                raise
            return "unchanged"
        if along and progress.wanted():
            click.echo(f"With {resource}: {along}", err=True)
        return "deleted"

    run(session, "delete", wanted, step)


@click.command()
@file_options
@common
@click.pass_context
def validate(context: click.Context, **given: Any) -> None:
    """Check files without a datastore: form, names, values, and rules of each object alone."""
    wanted = from_file(given, new=False)
    if wanted is None:
        click.echo("No resources specified")
        return
    outcome = Outcome("validate", [resource.kind for resource in wanted])
    click.echo(f"Successfully validated {len(wanted)} {outcome.what}(s)")


def _named(kind: str, names: Sequence[str], namespace: str) -> list[Resource]:
    from calico_plugin.model.resources import Metadata

    if not names:
        raise InvalidInput(
            "NAME", None, f"failed to delete '{kind}' resource: {kind}() has no name; give the names to delete"
        )
    return [objects.placed(KINDS[kind].type(kind=kind, metadata=Metadata(name=name)), namespace) for name in names]


def from_file(given: dict[str, Any], new: bool) -> list[Resource] | None:
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
    tell: bool = False,
) -> None:
    session = session_of(context, given)
    wanted = from_file(given, new)
    if wanted is None:
        click.echo("No resources specified")
        return
    session.resources.initialise(session.deadline())
    run(session, verb, wanted, step, stop_at_error=stop_at_error, tell=tell)
