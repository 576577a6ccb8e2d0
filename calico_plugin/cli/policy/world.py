"""The cluster's resources as the agents see them, read at one revision, and the policy engine of any of its nodes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Iterable, Mapping, TypeVar

from msgspec.structs import replace

from calico_plugin.datastore.kv import KV
from calico_plugin.deadline import Deadline
from calico_plugin.errors import CorruptValue
from calico_plugin.model import codec, keys
from calico_plugin.model.codec import Invalid
from calico_plugin.model.keys import ResourceKey
from calico_plugin.model.resources import KINDS, Metadata, Resource, WorkloadEndpoint
from calico_plugin.model.resources.policy import (
    GlobalNetworkPolicy,
    NetworkPolicy,
    StagedGlobalNetworkPolicy,
    StagedNetworkPolicy,
)
from calico_plugin.policy import PolicyEngine

R = TypeVar("R", bound=Resource)
SIMULATED = "simulated"
"""Node of all endpoints where a whole cluster is compiled at once."""


@dataclass(frozen=True)
class World:
    """Every resource of the cluster; a value that does not parse is an Invalid, as for the agents.

    `environments`: node -> members of FelixConfiguration that its agent's environment sets, where that is known.
    """

    resources: Mapping[ResourceKey, Resource | Invalid]
    revision: int = 0
    environments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    endpoints: Mapping[ResourceKey, WorkloadEndpoint] = field(init=False)

    def __post_init__(self) -> None:
        found = {key: value for key, value in self.resources.items() if isinstance(value, WorkloadEndpoint)}
        object.__setattr__(self, "endpoints", found)

    def of(self, kind: type[R]) -> Mapping[ResourceKey, R]:
        return {key: value for key, value in self.resources.items() if isinstance(value, kind)}

    def with_resources(self, *more: Resource) -> World:
        added = {ResourceKey(one.kind, one.name, one.namespace): one for one in more}
        return dataclasses.replace(self, resources={**self.resources, **added})

    def engine(self, node: str, interfaces: Mapping[str, frozenset[str]] | None = None) -> PolicyEngine:
        """The engine of a node's agent, told everything. `interfaces`: addresses of those of the host."""
        engine = PolicyEngine(node, environment=self.environments.get(node))
        engine.on_interfaces(interfaces or {})
        for key, value in self.resources.items():
            engine.on_update(key, None, value)
        return engine

    def with_staged(self) -> World:
        """As if the staged policies were enforced (those with action Learn or Ignore stay as they are)."""
        found = dict(self.resources)
        for staged in self.resources.values():
            if not isinstance(staged, (StagedGlobalNetworkPolicy, StagedNetworkPolicy)):
                continue
            enforced = _enforced(staged)
            key = ResourceKey(enforced.kind, enforced.name, enforced.namespace)
            action = staged.spec.staged_action or "Set"
            if action == "Delete":
                found.pop(key, None)
            elif action == "Set":
                found[key] = enforced
        return dataclasses.replace(self, resources=found)

    def on_one_node(self) -> tuple[World, Mapping[str, ResourceKey]]:
        """All endpoints on one node, so that one engine compiles the rules of all; interface there -> endpoint."""
        found = dict(self.resources)
        interfaces: dict[str, ResourceKey] = {}
        for number, (key, endpoint) in enumerate(self.endpoints.items()):
            interface = f"cali{number}"
            interfaces[interface] = key
            found[key] = replace(endpoint, spec=replace(endpoint.spec, node=SIMULATED, interface_name=interface))
        return dataclasses.replace(self, resources=found), interfaces


def _enforced(staged: StagedGlobalNetworkPolicy | StagedNetworkPolicy) -> GlobalNetworkPolicy | NetworkPolicy:
    kind = GlobalNetworkPolicy if isinstance(staged, StagedGlobalNetworkPolicy) else NetworkPolicy
    metadata = Metadata(name=staged.name, namespace=staged.namespace, labels=staged.labels)
    return kind(metadata=metadata, spec=replace(staged.spec, staged_action=None))


def read(kv: KV, deadline: Deadline, environments: Mapping[str, Mapping[str, Any]] | None = None) -> World:
    """Raises DatastoreError, DeadlineExceeded."""
    listing = kv.list(keys.RESOURCES, deadline)
    resources = dict(_decoded((item.key, item.value) for item in listing.items))
    return World(resources, listing.revision, environments or {})


def _decoded(items: Iterable[tuple[str, bytes]]) -> Iterable[tuple[ResourceKey, Resource | Invalid]]:
    for text, value in items:
        key = keys.parse_resource(text)
        if key is None or key.kind not in KINDS:
            continue
        try:
            yield key, codec.decode(KINDS[key.kind].type, text, value)
        except CorruptValue as error:
            yield key, Invalid(text, error.why)
