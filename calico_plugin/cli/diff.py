"""`calicoctl diff -f FILE`: what `apply` would change, as a unified diff of what `get -o yaml` shows."""

from __future__ import annotations

import difflib
import sys
from typing import Any, Iterable

import click

from calico_plugin.cli import objects, yamlout
from calico_plugin.cli.session import Session, common, session_of
from calico_plugin.cli.verbs import file_options, from_file
from calico_plugin.datastore.resources import UNCHANGED
from calico_plugin.errors import NotFound
from calico_plugin.model.codec import Stored
from calico_plugin.model.resources import Resource

_COLOURS = {"+": "green", "-": "red", "@": "cyan"}


@click.command()
@file_options
@common
@click.pass_context
def diff(context: click.Context, **given: Any) -> None:
    """Show what `apply` of the same file would change; nothing is written.

    Exit status: 0 when nothing would change, 1 when something would, or on an error (then with a message on standard
    error).
    """
    session = session_of(context, given)
    session.dry_run = True
    wanted = from_file(given, new=False)
    if wanted is None:
        click.echo("No resources specified")
        return
    session.resources.initialise(session.deadline())
    changed = False
    for resource in wanted:
        for line in _changes(session, resource):
            changed = True
            click.echo(click.style(line, fg=_COLOURS.get(line[:1])) if sys.stdout.isatty() else line)
    if changed:
        raise click.exceptions.Exit(1)


def _changes(session: Session, resource: Resource) -> Iterable[str]:
    before = _stored(session, resource)
    written = session.resources.apply(resource, session.deadline())
    if written.outcome == UNCHANGED:
        return ()
    return difflib.unified_diff(
        _lines(before), _lines(written.stored), f"{resource} in the datastore", f"{resource} after apply", lineterm=""
    )


def _stored(session: Session, resource: Resource) -> Stored[Any] | None:
    try:
        return session.resources.get(resource.kind, resource.name, session.deadline(), resource.namespace)
    except NotFound:
        return None


def _lines(stored: Stored[Any] | None) -> list[str]:
    return yamlout.dump(objects.shown(stored, export=True)).splitlines() if stored else []
