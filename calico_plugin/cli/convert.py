"""`calicoctl convert`: v1 manifests (Calico 1.x, 2.x) to v3 manifests. Needs no datastore."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from calico_plugin.cli import manifest, objects, output, yamlout
from calico_plugin.cli.manifest import Manifest, ManifestError, problems_error
from calico_plugin.cli.session import common
from calico_plugin.errors import InvalidInput
from calico_plugin.model import codec, schema
from calico_plugin.model.problem import Problem
from calico_plugin.model.resources import Resource


@click.command()
@click.option("-f", "--filename", required=True, help="File, directory, or - for standard input.")
@click.option("-R", "--recursive", is_flag=True, help="Read the directory with all below it.")
@click.option("-o", "--output", "form", default="yaml", help="yaml or json.")
@click.option("--ignore-validation", is_flag=True, help="Also print objects that today's rules refuse.")
@common
def convert(filename: str, recursive: bool, form: str, ignore_validation: bool, **given: Any) -> None:
    """Turn v1 manifests of Calico 1.x and 2.x into v3 manifests, on standard output.

    \b
    calicoctl convert -f old-policy.yaml | calicoctl apply -f -

    A policy's name gets its tier in front; names that v3 does not allow are changed. create, apply, replace and
    delete read v1 manifests as well, without this step.
    """
    chosen = output.parse_form(form)
    if chosen.name not in ("yaml", "json"):
        raise InvalidInput("--output", form, "must be yaml or json")
    manifests = manifest.read(filename, recursive)
    if not manifests:
        raise InvalidInput("--filename", filename, "no resources specified in it")
    documents = [_shown(resource) for resource in _converted(manifests, ignore_validation)]
    whole = documents[0] if len(documents) == 1 else _list(documents)
    if chosen.name == "json":
        click.echo(output.dump_json(whole))
    else:
        click.echo(yamlout.dump(whole), nl=False)


def _converted(manifests: list[Manifest], ignore_validation: bool) -> list[Resource]:
    """Raises ManifestError that names every problem."""
    lines: list[str] = []
    made: list[Resource] = []
    for one in manifests:
        try:
            if not one.is_v1:
                raise problems_error(one, [Problem("apiVersion", one.document.get("apiVersion"), "must be v1")])
            made.append(objects.as_read(one))
        except ManifestError as error:
            lines.extend(str(error).splitlines())
    if not lines and not ignore_validation:
        objects.resources(manifests)
    if lines:
        raise ManifestError(lines)
    return made


def _shown(resource: Resource) -> dict[str, Any]:
    document = msgspec.json.decode(codec.encode(resource))
    document["metadata"]["creationTimestamp"] = None
    return dict(codec.ordered(schema.of_kind(resource.kind), document))


def _list(documents: list[dict[str, Any]]) -> dict[str, Any]:
    return {"apiVersion": "v1", "items": documents, "kind": "List", "metadata": {}}
