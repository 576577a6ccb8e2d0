"""Manifests to typed resources and back to what a user reads."""

from __future__ import annotations

from typing import Any, Mapping, Sequence

import msgspec
from msgspec.structs import replace

from calico_plugin.cli.checking import problems_of
from calico_plugin.cli.manifest import Manifest, ManifestError, problems_error
from calico_plugin.errors import InvalidInput
from calico_plugin.model import codec, defaults, schema, v1
from calico_plugin.model.codec import Stored
from calico_plugin.model.problem import Problem
from calico_plugin.model.resources import KINDS, Resource

DEFAULT_NAMESPACE = "default"


def typed(document: Mapping[str, Any], kind: str) -> Resource:
    """A shaped document as a typed resource."""
    return msgspec.convert(document, KINDS[kind].type)


def resources(manifests: Sequence[Manifest], namespace: str = "", *, new: bool = False) -> list[Resource]:
    """All manifests as resources, checked as far as that goes without the datastore, so that one bad object stops
    everything.

    Raises ManifestError that names every problem with file, line and path. `new`: a resourceVersion is refused.
    """
    made: list[Resource] = []
    lines: list[str] = []
    for manifest in manifests:
        try:
            made.append(_resource(manifest, namespace, new))
        except ManifestError as error:
            lines.extend(str(error).splitlines())
    if lines:
        raise ManifestError(lines)
    return made


def as_read(manifest: Manifest) -> Resource:
    """The manifest's resource; a v1 one is converted. Not checked yet. Raises ManifestError."""
    if manifest.is_v1:
        converted = v1.convert(manifest.document)
        if converted.resource is None:
            raise problems_error(manifest, converted.problems)
        return converted.resource
    document, problems = schema.shape(manifest.document, manifest.kind)
    if problems:
        raise problems_error(manifest, problems)
    return typed(document, manifest.kind)


def converted(manifests: Sequence[Manifest]) -> str:
    """A line that tells what v1 manifests became; nothing when there are none."""
    pairs = [(v1.was(manifest.document), as_read(manifest)) for manifest in manifests if manifest.is_v1]
    if not pairs:
        return ""
    return "Converted from apiVersion v1: " + ", ".join(f"{was} to {resource}" for was, resource in pairs)


def _resource(manifest: Manifest, namespace: str, new: bool) -> Resource:
    read = as_read(manifest)
    try:
        # v1 knew no namespaces, so the command line may choose one.
        resource = placed(_moved(read, namespace) if manifest.is_v1 else read, namespace)
    except InvalidInput as error:
        raise problems_error(manifest, [Problem(error.field, error.value, error.hint)]) from error
    found = list(problems_of(defaults.fill(resource)))
    if new and resource.metadata.resource_version:
        found.append(
            Problem("metadata.resourceVersion", resource.metadata.resource_version, "must not be set on create")
        )
    if found:
        raise problems_error(manifest, found)
    return resource


def _moved(resource: Resource, namespace: str) -> Resource:
    if not namespace or not KINDS[resource.kind].namespaced:
        return resource
    return replace(resource, metadata=replace(resource.metadata, namespace=namespace))


def placed(resource: Resource, namespace: str) -> Resource:
    """The resource in its namespace: its own, the one of the command line, or `default`. The two must not differ."""
    own = resource.namespace
    if namespace and own and own != namespace:
        raise InvalidInput("metadata.namespace", own, f"is not the namespace of --namespace ({namespace})")
    if namespace and not KINDS[resource.kind].namespaced:
        raise InvalidInput("--namespace", namespace, f"{resource.kind} has no namespace")
    if own or not KINDS[resource.kind].namespaced:
        return resource
    return replace(resource, metadata=replace(resource.metadata, namespace=namespace or DEFAULT_NAMESPACE))


def shown(stored: Stored[Any], export: bool = False) -> dict[str, Any]:
    """What a user reads of a stored object: with its resourceVersion, without Calico's own bookkeeping.

    `export` leaves out what belongs to this cluster only. Members that we do not know are not shown: the output must be
    fit to be applied, and they stay in the store all the same.
    """
    value: Resource = stored.value
    metadata = defaults.without_own_annotations(value.metadata)
    if export:
        metadata = replace(metadata, uid="", creation_timestamp=None, resource_version="")
    document = msgspec.json.decode(codec.encode(replace(value, metadata=metadata)))
    assert isinstance(document, dict)
    if not export:
        document["metadata"]["resourceVersion"] = str(stored.revision)
    return codec.ordered(schema.of_kind(value.kind), document)
