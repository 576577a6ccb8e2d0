"""`calicoctl patch KIND NAME -p JSON`: change a few members of an object, in one of three ways (see `patching`)."""

from __future__ import annotations

import json
from typing import Any

import click

from calico_plugin.cli import completion, objects, outcome, patching, suggest
from calico_plugin.cli.kinds import kind_of
from calico_plugin.cli.manifest import Manifest, ManifestError
from calico_plugin.cli.session import common, dry_run, session_of
from calico_plugin.errors import InvalidInput, NotFound, Unsupported
from calico_plugin.model.codec import Stored
from calico_plugin.model.problem import did_you_mean
from calico_plugin.model.resources import KINDS, Metadata, Resource


@click.command()
@click.argument("kind", shell_complete=completion.kinds)
@click.argument("name", shell_complete=completion.names)
@click.option("-p", "--patch", "text", help="The change, as JSON.")
@click.option(
    "-t",
    "--type",
    "form",
    default="strategic",
    help="strategic (default) and merge: a JSON object; members are merged, null removes one, lists are replaced. "
    "json: a list of operations (RFC 6902).",
)
@click.option("-n", "--namespace", default="", help="Namespace of the object (default: default).")
@dry_run
@common
@click.pass_context
def patch(
    context: click.Context, kind: str, name: str, text: str | None, form: str, namespace: str, **given: Any
) -> None:
    """Change some members of an object.

    \b
    calicoctl patch ippool web-net -p '{"spec": {"disabled": true}}'
    calicoctl patch ippool web-net -t json -p '[{"op": "replace", "path": "/spec/disabled", "value": true}]'
    """
    session = session_of(context, given)
    if form not in patching.TYPES:
        known = f"known: {', '.join(patching.TYPES)}{did_you_mean(form, patching.TYPES)}"
        raise Unsupported("--type", form, known)
    change = _parse(text)
    wanted = objects.placed(KINDS[kind_of(kind)].type(kind=kind_of(kind), metadata=Metadata(name=name)), namespace)

    def patched(stored: Stored[Any]) -> Resource:
        return _checked(patching.apply(form, objects.shown(stored), change), wanted)

    try:
        written = session.resources.modify(wanted.kind, wanted.name, patched, session.deadline(), wanted.namespace)
    except NotFound as error:
        raise NotFound(error.what, suggest.name(session, wanted)) from error
    if session.dry_run:
        click.echo(outcome.change_line(wanted, written.outcome, True), err=True)
        click.echo(f"Dry run, nothing was written: would have patched 1 '{wanted.kind}' resource")
        return
    click.echo(f"Successfully patched 1 '{wanted.kind}' resource")


def _checked(document: dict[str, Any], wanted: Resource) -> Resource:
    """The changed document as a resource, checked as a manifest is."""
    try:
        (resource,) = objects.resources([Manifest(document, "patch", 1)])
    except (ManifestError, KeyError) as error:
        if isinstance(error, KeyError):
            raise InvalidInput("kind", document.get("kind"), "cannot be changed") from error
        lines = [line.removeprefix("patch:1: ") for line in str(error).splitlines()]
        raise ManifestError(lines) from error
    if str(resource) != str(wanted):
        raise InvalidInput("metadata.name", str(resource), f"a patch cannot rename {wanted}")
    return resource


def _parse(text: str | None) -> Any:
    if not text:
        raise InvalidInput("--patch", None, 'give the members to change, such as -p \'{"spec": {"disabled": true}}\'')
    try:
        return json.loads(text)
    except ValueError as error:
        raise InvalidInput("--patch", text, f"is not JSON: {error}") from error
