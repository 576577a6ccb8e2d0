"""The agent's view of the cluster: what the watch told, typed, as changes for the managers and as a snapshot for the
renderer.

A value that does not parse counts as absent and is told as `Invalid`, so that the policy engine can fail closed.
After a broken stream or a compaction a new listing comes; only its differences are told, so nothing is done twice.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Iterable, Mapping, Type, TypeVar

import msgspec

from calico_plugin.datastore.kv import Change, KeyValue
from calico_plugin.datastore.watch import Changes, Listed, difference
from calico_plugin.errors import CorruptValue
from calico_plugin.model import codec, keys
from calico_plugin.model.codec import Invalid
from calico_plugin.model.ipam import Affinity
from calico_plugin.model.keys import ResourceKey
from calico_plugin.model.resources import KINDS, Resource
from calico_plugin.model.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class ResourceUpdate:
    """A resource changed: None = absent."""

    key: ResourceKey
    old: Resource | None
    new: Resource | Invalid | None


@dataclass(frozen=True, slots=True)
class AffinityUpdate:
    """The affinity of (host, CIDR) appeared, changed or vanished."""

    key: tuple[str, str]


Update = ResourceUpdate | AffinityUpdate
T = TypeVar("T", bound=msgspec.Struct)


def prefixes() -> tuple[str, ...]:
    """What the agent follows: all resources, and whose the blocks are (BIRD tells of our own; the routes of
    encapsulated pools need everyone's).

    Not the blocks themselves: they change with every container, and nothing here depends on them.
    """
    return keys.RESOURCES, keys.AFFINITIES


class View:
    """Owned by one thread."""

    def __init__(self) -> None:
        self._items: dict[str, KeyValue] = {}
        self._resources: dict[str, dict[ResourceKey, Resource]] = {}
        self._affinities: dict[tuple[str, str], Affinity] = {}
        self._invalid: dict[str, Invalid] = {}
        self._revision = 0

    @property
    def invalid(self) -> Mapping[str, Invalid]:
        return self._invalid

    def kind(self, name: str) -> Mapping[ResourceKey, Resource]:
        return self._resources.get(name, {})

    def listed(self, event: Listed) -> list[Update]:
        """A complete listing: what it changes."""
        items = {item.key: item for part in event.items.values() for item in part}
        self._revision = event.revision
        changes = difference(self._items, [_slim(item) for item in items.values()], event.revision)
        return self._apply(replace(change, item=items.get(change.key)) for change in changes)

    def changed(self, event: Changes) -> list[Update]:
        return self._apply(event.changes)

    def snapshot(self, kinds: Iterable[str]) -> Snapshot:
        """A frozen copy of some kinds and the affinities."""
        return Snapshot(
            revision=self._revision,
            resources={name: dict(self.kind(name)) for name in kinds},
            affinities=dict(self._affinities),
            invalid=dict(self._invalid),
        )

    def _apply(self, changes: Iterable[Change]) -> list[Update]:
        updates = (self._one(change) for change in changes)
        return [update for update in updates if update is not None]

    def _one(self, change: Change) -> Update | None:
        self._revision = max(self._revision, change.revision)
        if change.item is None:
            self._items.pop(change.key, None)
        else:
            self._items[change.key] = _slim(change.item)
        if (resource := keys.parse_resource(change.key)) is not None:
            return self._resource(resource, change)
        if (affinity := keys.parse_affinity(change.key)) is not None:
            self._affinity(affinity, change)
            return AffinityUpdate(affinity)
        return None

    def _resource(self, key: ResourceKey, change: Change) -> ResourceUpdate:
        known = self._resources.setdefault(key.kind, {})
        old = known.pop(key, None)
        new = self._decoded(KINDS[key.kind].type, change)
        if isinstance(new, Resource):
            known[key] = new
        return ResourceUpdate(key, old, new)

    def _affinity(self, key: tuple[str, str], change: Change) -> None:
        self._affinities.pop(key, None)
        new = self._decoded(Affinity, change)
        if isinstance(new, Affinity):
            self._affinities[key] = new

    def _decoded(self, kind: Type[T], change: Change) -> T | Invalid | None:
        self._invalid.pop(change.key, None)
        if change.item is None:
            return None
        try:
            return codec.decode(kind, change.key, change.item.value)
        except CorruptValue as error:
            self._invalid[change.key] = Invalid(error.key, error.why)
            return self._invalid[change.key]


def _slim(item: KeyValue) -> KeyValue:
    """What is kept for the next difference: the value itself is kept once, decoded."""
    return replace(item, value=hashlib.blake2b(item.value, digest_size=8).digest())
