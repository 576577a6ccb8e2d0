"""`calicoctl patch KIND NAME -p JSON`: merge a few members into an object (RFC 7396; lists are replaced as a whole)."""

from __future__ import annotations

import json
from typing import Any, Mapping

import click

from calico_plugin.cli import objects
from calico_plugin.cli.kinds import kind_of
from calico_plugin.cli.manifest import Manifest, ManifestError
from calico_plugin.cli.session import common, session_of
from calico_plugin.errors import InvalidInput, Unsupported
from calico_plugin.model.codec import Stored
from calico_plugin.model.resources import KINDS, Metadata, Resource

_TYPES = ("strategic", "merge")


@click.command()
@click.argument("kind")
@click.argument("name")
@click.option("-p", "--patch", "text", help="The members to change, as JSON; null removes one.")
@click.option(
    "-t", "--type", "form", default="strategic", help="strategic or merge: both merge members and replace lists."
)
@click.option("-n", "--namespace", default="", help="Namespace of the object (default: default).")
@common
@click.pass_context
def patch(
    context: click.Context, kind: str, name: str, text: str | None, form: str, namespace: str, **given: Any
) -> None:
    """Change some members of an object.

    \b
    calicoctl patch ippool web-net -p '{"spec": {"disabled": true}}'
    """
    session = session_of(context, given)
    if form not in _TYPES:
        raise Unsupported("--type", form, f"known: {', '.join(_TYPES)}")
    change = _parse(text)
    wanted = objects.placed(KINDS[kind_of(kind)].type(kind=kind_of(kind), metadata=Metadata(name=name)), namespace)
    session.resources.modify(
        wanted.kind, wanted.name, lambda stored: _patched(stored, change), session.deadline(), wanted.namespace
    )
    click.echo(f"Successfully patched 1 '{wanted.kind}' resource")


def _patched(stored: Stored[Any], change: Mapping[str, Any]) -> Resource:
    """The object with the change, checked as a manifest is."""
    document = _merge(objects.shown(stored), change)
    try:
        (resource,) = objects.resources([Manifest(document, "patch", 1)])
    except ManifestError as error:
        lines = [line.removeprefix("patch:1: ") for line in str(error).splitlines()]
        raise ManifestError(lines) from error
    return resource


def _parse(text: str | None) -> Mapping[str, Any]:
    if not text:
        raise InvalidInput("--patch", None, 'give the members to change, such as -p \'{"spec": {"disabled": true}}\'')
    try:
        change = json.loads(text)
    except ValueError as error:
        raise InvalidInput("--patch", text, f"is not JSON: {error}") from error
    if not isinstance(change, dict):
        raise InvalidInput("--patch", text, "must be a JSON object")
    return change


def _merge(document: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(document)
    for name, value in change.items():
        if value is None:
            merged.pop(name, None)
        elif isinstance(value, Mapping) and isinstance(merged.get(name), Mapping):
            merged[name] = _merge(merged[name], value)
        else:
            merged[name] = value
    return merged
