"""`calicoctl label KIND NAME key=value` and `--remove`."""

from __future__ import annotations

from typing import Any

import click
from msgspec.structs import replace

from calico_plugin.cli import completion, objects, suggest
from calico_plugin.cli.kinds import kind_of
from calico_plugin.cli.session import Session, common, dry_run, session_of
from calico_plugin.errors import InvalidInput, NotFound
from calico_plugin.model.codec import Stored
from calico_plugin.model.resources import KINDS, Metadata, Resource
from calico_plugin.model.validation import text


@click.command()
@click.argument("kind", shell_complete=completion.kinds)
@click.argument("name", shell_complete=completion.names)
@click.argument("labels", nargs=-1, required=True)
@click.option("--overwrite", is_flag=True, help="Change a label that is set to something else.")
@click.option("--remove", is_flag=True, help="Remove the label; give its name without a value.")
@click.option("-n", "--namespace", default="", help="Namespace of the object (default: default).")
@dry_run
@common
@click.pass_context
def label(
    context: click.Context,
    kind: str,
    name: str,
    labels: tuple[str, ...],
    overwrite: bool,
    remove: bool,
    namespace: str,
    **given: Any,
) -> None:
    """Set a label (KEY=VALUE) of an object, or remove it (KEY --remove).

    \b
    calicoctl label node host1 rack=r1
    calicoctl label node host1 rack --remove
    """
    session = session_of(context, given)
    resource = objects.placed(KINDS[kind_of(kind)].type(kind=kind_of(kind), metadata=Metadata(name=name)), namespace)
    for change in labels:
        key, equals, value = change.partition("=")
        _check(key, equals, value, remove)
        try:
            done = _remove(session, resource, key) if remove else _set(session, resource, key, value, overwrite)
        except NotFound as error:
            raise _without(resource, error, suggest.name(session, resource)) from error
        click.echo(f"{'Dry run, nothing was written: ' if session.dry_run else 'Successfully '}{done} {kind} {name}")


def _without(resource: Resource, error: NotFound, hint: str) -> NotFound:
    """The error of an object, or of a label, that is not there."""
    return NotFound(error.what, hint if error.what == str(resource) else "")


def _check(key: str, equals: str, value: str, remove: bool) -> None:
    if remove and equals:
        raise InvalidInput("LABEL", f"{key}={value}", f"write {key} --remove, without a value")
    if not remove and not equals:
        raise InvalidInput("LABEL", key, f"write {key}=VALUE, or {key} --remove")
    fault = text.label_key_fault(key) or ("" if remove else text.label_value_fault(value))
    if fault:
        raise InvalidInput("LABEL", f"{key}{equals}{value}", fault)


def _set(session: Session, resource: Resource, key: str, value: str, overwrite: bool) -> str:
    def change(stored: Stored[Any]) -> Resource:
        old = stored.value.labels.get(key)
        if old not in (None, value) and not overwrite:
            raise InvalidInput("LABEL", f"{key}={value}", f"{resource} has {key}={old} already; use '--overwrite'")
        seen.append(old)
        return _labelled(stored.value, stored.value.labels | {key: value})

    seen: list[str | None] = []
    session.resources.modify(resource.kind, resource.name, change, session.deadline(), resource.namespace)
    return f"set label {key} on" if seen[-1] is None else f"updated label {key} on"


def _remove(session: Session, resource: Resource, key: str) -> str:
    def change(stored: Stored[Any]) -> Resource:
        if key not in stored.value.labels:
            raise NotFound(f"label {key} of {resource}")
        return _labelled(stored.value, {name: text for name, text in stored.value.labels.items() if name != key})

    session.resources.modify(resource.kind, resource.name, change, session.deadline(), resource.namespace)
    return f"removed label {key} from"


def _labelled(current: Resource, labels: dict[str, str]) -> Resource:
    return replace(current, metadata=replace(current.metadata, labels=labels))
