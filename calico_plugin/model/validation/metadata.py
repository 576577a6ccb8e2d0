"""Names, namespaces, labels and annotations of any object (datamodel 2.2)."""

from __future__ import annotations

from calico_plugin.model.problem import Problem, member
from calico_plugin.model.resources import KINDS, Resource
from calico_plugin.model.validation import text
from calico_plugin.model.validation.text import Problems

MAX_ANNOTATIONS = 256 * 1024
RESERVED_NAMESPACE_LABEL = "projectcalico.org/namespace"
_ONLY_DEFAULT = ("ClusterInformation", "IPAMConfiguration", "KubeControllersConfiguration")
_SETS = ("GlobalNetworkSet", "NetworkSet")


def problems(resource: Resource) -> Problems:
    yield from _name(resource)
    yield from _namespace(resource)
    yield from labels("metadata.labels", resource.metadata.labels)
    yield from _annotations(resource)
    if resource.kind in _SETS and RESERVED_NAMESPACE_LABEL in resource.labels:
        path = member("metadata.labels", RESERVED_NAMESPACE_LABEL)
        yield Problem(
            path, resource.labels[RESERVED_NAMESPACE_LABEL], "reserved label: Calico sets it itself, take it out"
        )


def _name(resource: Resource) -> Problems:
    name = resource.name
    if not name:
        hint = "must be given" + (" (generateName is not supported)" if resource.metadata.generate_name else "")
        yield Problem("metadata.name", None, hint)
        return
    fault = text.label_fault(name) if resource.kind == "Tier" else text.name_fault(name)
    if fault:
        yield Problem("metadata.name", name, fault)
    elif resource.kind in _ONLY_DEFAULT and name != "default":
        yield Problem("metadata.name", name, f"{resource.kind} has one object only: default")


def _namespace(resource: Resource) -> Problems:
    namespace = resource.namespace
    if namespace and not KINDS[resource.kind].namespaced:
        yield Problem("metadata.namespace", namespace, f"{resource.kind} has no namespace; take it out")
    elif any(character in "/%" or not character.isprintable() for character in namespace):
        yield Problem(
            "metadata.namespace",
            namespace,
            "must hold no slash, percent sign or control character: it is a part of the key",
        )


def labels(path: str, pairs: dict[str, str]) -> Problems:
    """Names and values of labels."""
    for name, value in pairs.items():
        for fault in (text.label_key_fault(name), text.label_value_fault(value)):
            if fault:
                yield Problem(member(path, name), value, fault)


def _annotations(resource: Resource) -> Problems:
    pairs = resource.metadata.annotations
    for name, value in pairs.items():
        # The original folds the name before it looks at it.
        if text.label_key_fault(name.lower()):
            yield Problem(
                member("metadata.annotations", name),
                value,
                text.label_key_fault(name.lower()).replace("a label", "an annotation"),
            )
    size = sum(len(name.encode()) + len(value.encode()) for name, value in pairs.items())
    if size > MAX_ANNOTATIONS:
        yield Problem("metadata.annotations", None, f"hold {size} bytes in all; at most {MAX_ANNOTATIONS} are allowed")
