"""Container labels that begin with `org.projectcalico.label.` become labels of the container's endpoints (prefix
removed).

A label that Calico would not take is left out alone; the labels that Calico keeps itself cannot be set. Docker tells a
driver nothing about labels: `labeller` asks its API while the container is being started.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Iterable, Mapping

from msgspec.structs import replace

from calico_plugin.datastore.store import Store
from calico_plugin.deadline import Deadline
from calico_plugin.errors import Conflict, NotFound
from calico_plugin.model import names
from calico_plugin.model.keys import ResourceKey
from calico_plugin.model.resources import WorkloadEndpoint

SECONDS = 5.0
_TRIES = 5
_PART = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_KEY = re.compile(rf"([a-z0-9]([-a-z0-9.]{{0,251}}[a-z0-9])?/)?{_PART}")
_VALUE = re.compile(rf"({_PART})?")
_RESERVED = ("projectcalico.org/", "pcns.", "pcsa.")


@dataclass(frozen=True, slots=True)
class Awaited:
    """An endpoint of this node whose container is to be found; `profile` is that of its network."""

    endpoint: str
    profile: str


def wanted(container: Mapping[str, str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Endpoint labels of a container's labels, and the ones that cannot be taken."""
    taken: dict[str, str] = {}
    refused = []
    for name, value in sorted(container.items()):
        if not name.startswith(names.CONTAINER_LABEL_PREFIX):
            continue
        key = name.removeprefix(names.CONTAINER_LABEL_PREFIX)
        if _KEY.fullmatch(key) and _VALUE.fullmatch(value) and not key.startswith(_RESERVED):
            taken[key] = value
        else:
            refused.append(f"{key}={value}")
    return taken, tuple(refused)


def apply(store: Store, node: str, endpoints: Iterable[str], labels: Mapping[str, str]) -> int:
    """Put labels on endpoints, given by their ids; how many changed. Raises DatastoreError."""
    if not labels:
        return 0
    return sum(_label(store, names.workload_endpoint(node, endpoint), labels) for endpoint in endpoints)


def awaited(key: ResourceKey, resource: object, node: str) -> Awaited | None:
    """What the driver of this node marked when it stored the endpoint, as long as nobody has given it its labels."""
    if not isinstance(resource, WorkloadEndpoint) or not resource.awaits_labels:
        return None
    parts = names.split_workload_endpoint(key.name)
    if len(parts) != 4 or parts[0] != node:
        return None
    return Awaited(parts[3], next(iter(resource.spec.profiles), ""))


def settle(store: Store, node: str, endpoint: str, labels: Mapping[str, str]) -> None:
    """Labels on an endpoint, and its mark away. Raises DatastoreError."""
    _label(store, names.workload_endpoint(node, endpoint), labels)


def _label(store: Store, name: str, labels: Mapping[str, str]) -> bool:
    endpoints = store.resources(WorkloadEndpoint)
    for _ in range(_TRIES):
        deadline = Deadline(SECONDS)
        stored = endpoints.find(name, deadline, names.NAMESPACE)
        if stored is None:
            return False  # an endpoint of another driver
        metadata = stored.value.metadata
        merged = {**metadata.labels, **labels}
        if merged == metadata.labels and not stored.value.awaits_labels:
            return False
        kept = {key: value for key, value in metadata.annotations.items() if key != names.LABELS_AWAITED}
        try:
            changed = replace(stored.value, metadata=replace(metadata, labels=merged, annotations=kept))
            endpoints.update(stored, changed, deadline)
            return True
        except Conflict:
            continue
        except NotFound:
            return False
    return False
