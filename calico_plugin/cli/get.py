"""`calicoctl get`: read objects and print them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Iterable, Sequence

import click

from calico_plugin.cli import completion, output, suggest, tables
from calico_plugin.cli.kinds import kind_of
from calico_plugin.cli.output import Form
from calico_plugin.cli.session import Session, common, session_of
from calico_plugin.cli.wanted import Wanted, facts
from calico_plugin.errors import (
    CalicoError,
    DatastoreUnauthorized,
    DatastoreUnavailable,
    DeadlineExceeded,
    InvalidInput,
    NotFound,
)
from calico_plugin.model.codec import Stored
from calico_plugin.model.resources import KINDS, Metadata, Resource
from calico_plugin.model.resources.meta import API_VERSION


@dataclass(frozen=True)
class Found:
    """An answer: `listing` for a list, with its revision."""

    kind: str
    items: tuple[Stored[Any], ...]
    listing: bool
    revision: int = 0


@click.command()
@click.argument("kind", required=False, shell_complete=completion.kinds)
@click.argument("names", nargs=-1, shell_complete=completion.names)
@click.option(
    "-f",
    "--filename",
    type=click.Path(allow_dash=True),
    help="Show the objects that this file, directory or - (standard input) names.",
)
@click.option("-R", "--recursive", is_flag=True, help="Read the directory with all below it.")
@click.option("--skip-empty", is_flag=True, help="A file without objects is no error.")
@click.option(
    "-o",
    "--output",
    "form",
    default="ps",
    shell_complete=completion.forms,
    help="ps, wide, yaml, json, custom-columns=A,B, go-template=T, go-template-file=F.",
)
@click.option("-n", "--namespace", default="", help="Namespace of the objects (default: default).")
@click.option("-A", "--all-namespaces", "-a", is_flag=True, help="Objects of all namespaces.")
@click.option("-w", "--watch", is_flag=True, help="Go on with what changes, until interrupted.")
@click.option("--export", is_flag=True, help="Leave out what belongs to this cluster only.")
@common
@click.pass_context
def get(context: click.Context, kind: str | None, names: tuple[str, ...], form: str, **given: Any) -> None:
    """Show objects: KIND, KIND NAME…, or those that a file names.

    \b
    calicoctl get ippool -o wide
    calicoctl get wep -n libnetwork --watch
    calicoctl get gnp web -o yaml
    """
    session = session_of(context, given)
    chosen = output.parse_form(form)
    wanted, with_namespace = _wanted(kind, names, given)
    if wanted is None:
        click.echo("No resources specified")
        return
    if chosen.is_table:
        for item in wanted:
            tables.columns(item.kind, chosen.name, chosen.headings, with_namespace)
    if given["watch"]:
        from calico_plugin.cli import watching  # reads YAML, which takes long to import

        watching.run(session, wanted, chosen, with_namespace)
        return
    found, errors = _read(session, wanted)
    _print(session, found, chosen, with_namespace, given["export"] and not any(item.listing for item in found))
    if errors:
        raise CalicoError("\n".join(str(error) for error in errors))


def _wanted(kind: str | None, names: Sequence[str], given: dict[str, Any]) -> tuple[list[Wanted] | None, bool]:
    """What to read, and whether tables show the namespace; None when there is nothing and that is allowed."""
    namespace, everywhere = given["namespace"], given["all_namespaces"]
    if kind is None:
        return _wanted_of_file(given), bool(namespace)
    name = kind_of(kind)
    if not KINDS[name].namespaced and (namespace or everywhere):
        raise InvalidInput(
            "--all-namespaces" if everywhere else "--namespace", namespace or None, f"{name} has no namespace"
        )
    if names and everywhere:
        raise InvalidInput("--all-namespaces", None, "cannot be used with names; give --namespace")
    place = (namespace or ("" if everywhere else "default")) if KINDS[name].namespaced else ""
    return [Wanted(name, each, place) for each in names or ("",)], bool(namespace or everywhere)


def _wanted_of_file(given: dict[str, Any]) -> list[Wanted] | None:
    from calico_plugin.cli import manifest, objects

    if not given["filename"]:
        raise InvalidInput("KIND", None, "give a kind (calicoctl get ippool) or a file (-f FILE)")
    manifests = manifest.read(given["filename"], given["recursive"])
    if not manifests:
        if given["skip_empty"]:
            return None
        raise InvalidInput("--filename", given["filename"], "no resources specified in it")
    resources = objects.resources(manifests, given["namespace"])
    return [Wanted(resource.kind, resource.name, resource.namespace) for resource in resources]


def _read(session: Session, wanted: Iterable[Wanted]) -> tuple[list[Found], list[CalicoError]]:
    """Everything that is there, and the errors for what is not."""
    found: list[Found] = []
    errors: list[CalicoError] = []
    for item in wanted:
        try:
            found.append(_read_one(session, item))
        except NotFound as error:
            errors.append(NotFound(error.what, suggest.name(session, _as_resource(item))))
        except (DatastoreUnavailable, DatastoreUnauthorized, DeadlineExceeded):
            raise  # the next one would only wait as long
        except CalicoError as error:
            errors.append(error)
    return found, errors


def _as_resource(wanted: Wanted) -> Resource:
    metadata = Metadata(name=wanted.name, namespace=wanted.namespace)
    return KINDS[wanted.kind].type(kind=wanted.kind, metadata=metadata)


def _read_one(session: Session, wanted: Wanted) -> Found:
    client, deadline = session.resources, session.deadline()
    if wanted.name:
        return Found(wanted.kind, (client.get(wanted.kind, wanted.name, deadline, wanted.namespace),), False)
    values = client.list(wanted.kind, deadline, wanted.namespace)
    for invalid in values.invalid:
        click.echo(f"Warning: {invalid.key} is left out: {invalid.why}", err=True)
    items = values.items
    if wanted.kind == "Tier":
        items = tuple(sorted(items, key=lambda stored: (_order(stored.value.spec.order), stored.value.name)))
    return Found(wanted.kind, items, True, values.revision)


def _order(order: int | float | None) -> float:
    return float("inf") if order is None else float(order)


def _print(session: Session, found: Sequence[Found], form: Form, with_namespace: bool, export: bool) -> None:
    if form.is_table:
        for answer in found:
            headings = tables.columns(answer.kind, form.name, form.headings, with_namespace)
            resources = [stored.value for stored in answer.items]
            click.echo(tables.render(answer.kind, headings, resources, facts(session, headings)), nl=False)
        return
    documents = [_document(answer, export) for answer in found]
    if form.name == "go-template":
        from calico_plugin.cli import gotemplate

        click.echo(gotemplate.render(form.value, [_with_items(document) for document in documents]), nl=False)
        return
    value = documents[0] if len(documents) == 1 else (documents or None)
    if form.name == "json":
        click.echo(output.dump_json(value), nl=False)
    else:
        from calico_plugin.cli import yamlout

        click.echo(yamlout.dump(value), nl=False)


def _document(answer: Found, export: bool) -> dict[str, Any]:
    from calico_plugin.cli.objects import shown

    items = [shown(stored, export) for stored in answer.items]
    if not answer.listing:
        return items[0]
    metadata = {"resourceVersion": str(answer.revision)}
    return {"kind": f"{answer.kind}List", "apiVersion": API_VERSION, "metadata": metadata, "items": items}


def _with_items(document: dict[str, Any]) -> dict[str, Any]:
    """Templates always see lists (node-and-cli 4.4)."""
    return document if "items" in document else {"items": [document]} | document
