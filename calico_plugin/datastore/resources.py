"""v3 resources as a client of Calico handles them: filled in, checked alone and against others, written with compare-
and-swap.

`store.Resources` writes what it is given; this is what stands between a user's object and that (datamodel 2.2 to 2.7):
defaults and the labels that Calico keeps, the first write's ClusterInformation and tiers, objects that are read-only or
built in. The check of one object is a parameter, because it needs the selector grammar, which lives above this package.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any, Callable, Iterator

from msgspec.structs import replace

from calico_plugin.datastore.store import Resources, Store, Values
from calico_plugin.deadline import Deadline
from calico_plugin.errors import AlreadyExists, Conflict, NotFound, Unsupported
from calico_plugin.model import codec, defaults, keys
from calico_plugin.model.codec import Stored
from calico_plugin.model.resources import (
    KINDS,
    BGPFilter,
    BGPPeer,
    ClusterInformation,
    IPPool,
    Metadata,
    Profile,
    Resource,
    Rule,
    Tier,
)
from calico_plugin.model.resources.cluster import ClusterInformationSpec
from calico_plugin.model.resources.policy import ProfileSpec, TierSpec
from calico_plugin.model.validation import against
from calico_plugin.model.validation.policy import BUILT_IN_PROFILE, BUILT_IN_TIERS

Check = Callable[[Resource], None]
"""Raises InvalidInput for an object that is wrong by itself."""

CREATED, CONFIGURED, UNCHANGED = "created", "configured", "unchanged"
READ_ONLY = ("ClusterInformation",)
POLICY_KINDS = ("GlobalNetworkPolicy", "NetworkPolicy", "StagedGlobalNetworkPolicy", "StagedNetworkPolicy")
_TRIES = 5
_MODIFY_TRIES = 20


@dataclass(frozen=True, slots=True)
class Written:
    """What a write did: `outcome` is CREATED, CONFIGURED or UNCHANGED."""

    stored: Stored[Any]
    outcome: str


def built_in_profile() -> Stored[Profile]:
    """The profile that is never stored, but always there (datamodel 5.5)."""
    allow = (Rule(action="Allow"),)
    profile = Profile(metadata=Metadata(name=BUILT_IN_PROFILE), spec=ProfileSpec(ingress=allow, egress=allow))
    return Stored(keys.resource("Profile", BUILT_IN_PROFILE), profile, 1, {})


class ResourceClient:
    """Create, replace, apply, read and delete resources of any kind."""

    def __init__(self, store: Store, check: Check) -> None:
        self.store, self._check = store, check

    def initialise(self, deadline: Deadline) -> None:
        """ClusterInformation and the built-in tiers, where they are missing."""
        initial = list(_initial_objects())
        wanted = {keys.resource(item.kind, item.name): item for item in initial}
        present = self.store.kv.get_many(list(wanted), deadline)
        for key, item in wanted.items():
            if present[key] is None:
                try:
                    self._of(item.kind).create(item, deadline)
                except AlreadyExists:
                    pass

    def create(self, resource: Resource, deadline: Deadline) -> Written:
        """Raises AlreadyExists, InvalidInput, Unsupported."""
        ready = self._ready(resource, "create")
        if ready.kind == "Profile" and ready.name == BUILT_IN_PROFILE:
            raise AlreadyExists(str(ready))
        self._check_new(ready, deadline)
        return Written(self._of(ready.kind).create(ready, deadline), CREATED)

    def replace(self, resource: Resource, deadline: Deadline) -> Written:
        """The stored object becomes the given one; members that we do not know stay. Raises NotFound, Conflict,
        InvalidInput.

        A resourceVersion in the given object must be the stored one; without it, a lost race is tried again.
        """
        return self._retry(resource, lambda: self._replace_once(self._ready(resource, "replace"), deadline))

    def apply(self, resource: Resource, deadline: Deadline) -> Written:
        """Create, or replace what is there. Raises Conflict, InvalidInput."""

        def once() -> Written:
            ready = self._ready(resource, "apply")
            try:
                return self._replace_once(ready, deadline)
            except NotFound:
                if resource.metadata.resource_version:
                    raise
            self._check_new(ready, deadline)
            return Written(self._of(ready.kind).create(ready, deadline), CREATED)

        return self._retry(resource, once)

    def modify(
        self, kind: str, name: str, change: Callable[[Stored[Any]], Resource], deadline: Deadline, namespace: str = ""
    ) -> Written:
        """Read, change, write back; read again when another was faster. Raises NotFound, InvalidInput, Conflict."""
        for attempt in range(_MODIFY_TRIES):
            stored = self.get(kind, name, deadline, namespace)
            changed = change(stored)
            metadata = replace(changed.metadata, resource_version=str(stored.revision))
            try:
                return self.replace(replace(changed, metadata=metadata), deadline)
            except Conflict:
                if attempt == _MODIFY_TRIES - 1:
                    raise
        raise AssertionError("not reached")

    def get(self, kind: str, name: str, deadline: Deadline, namespace: str = "") -> Stored[Any]:
        """Raises NotFound, CorruptValue."""
        if kind == "Profile" and name == BUILT_IN_PROFILE:
            return built_in_profile()
        return self._of(kind).get(name, deadline, namespace)

    def list(self, kind: str, deadline: Deadline, namespace: str = "") -> Values[Any]:
        """All of a kind, or of one namespace of it; profiles end with the built-in one.

        Policies that an older release stored under another name have their user's name.
        """
        values = self._of(kind).list(deadline, namespace)
        if kind in POLICY_KINDS:
            return Values(tuple(_named(stored) for stored in values.items), values.revision, values.invalid)
        if kind == "Profile":
            return Values((*values.items, built_in_profile()), values.revision, values.invalid)
        return values

    def delete(
        self, kind: str, name: str, deadline: Deadline, namespace: str = "", revision: int | None = None
    ) -> None:
        """Exactly one object, without what depends on it. Raises NotFound, Conflict, InvalidInput, Unsupported."""
        if kind in READ_ONLY or (kind == "Profile" and name == BUILT_IN_PROFILE):
            raise _unsupported("delete", str(keys.ResourceKey(kind, name)))
        if kind == "Tier":
            against.removable_tier(name, self._policies_of(name, deadline))
        self._of(kind).delete(name, deadline, namespace, revision)

    def _of(self, kind: str) -> Resources[Any]:
        return self.store.resources(KINDS[kind].type)

    def _ready(self, resource: Resource, verb: str) -> Resource:
        if resource.kind in READ_ONLY:
            raise _unsupported(verb, str(resource))
        filled = defaults.fill(resource)
        self._check(filled)
        return filled

    def _retry(self, resource: Resource, once: Callable[[], Written]) -> Written:
        for _ in range(_TRIES - 1):
            try:
                return once()
            except (Conflict, AlreadyExists):
                if resource.metadata.resource_version:
                    raise
        return once()

    def _replace_once(self, resource: Resource, deadline: Deadline) -> Written:
        stored = self._of(resource.kind).get(resource.name, deadline, resource.namespace)
        wanted = resource.metadata.resource_version
        if wanted and wanted != str(stored.revision):
            hint = f"the manifest has revision {wanted} and the datastore {stored.revision}; get it again"
            raise Conflict(str(resource), stored, hint)
        value = replace(resource, metadata=_merged(resource.metadata, stored.value.metadata))
        self._check_change(value, stored.value, deadline)
        if codec.encode(value, stored.document) == codec.encode(stored.value, stored.document):
            return Written(stored, UNCHANGED)
        return Written(self._of(resource.kind).update(stored, value, deadline), CONFIGURED)

    def _check_new(self, resource: Resource, deadline: Deadline) -> None:
        if isinstance(resource, IPPool):
            pools = [stored.value for stored in self.store.resources(IPPool).list(deadline).items]
            blocks = self.store.kv.list(keys.BLOCKS, deadline, keys_only=True).items
            cidrs = [cidr for item in blocks if (cidr := keys.parse_block(item.key))]
            against.new_pool(resource, (pool for pool in pools if pool.name != resource.name), cidrs)
        self._check_references(resource, deadline)

    def _check_change(self, resource: Resource, before: Resource, deadline: Deadline) -> None:
        if isinstance(resource, IPPool) and isinstance(before, IPPool):
            against.changed_pool(resource, before)
        self._check_references(resource, deadline)

    def _check_references(self, resource: Any, deadline: Deadline) -> None:
        if resource.kind in POLICY_KINDS:
            tier = resource.spec.tier
            against.existing_tier(tier, self.store.resources(Tier).find(tier, deadline) is not None)
        if isinstance(resource, BGPPeer) and resource.spec.filters:
            known = self.store.resources(BGPFilter).list(deadline).items
            against.existing_filters(resource, {stored.value.name for stored in known})

    def _policies_of(self, tier: str, deadline: Deadline) -> set[str]:
        return {
            str(stored.value)
            for kind in POLICY_KINDS
            for stored in self._of(kind).list(deadline).items
            if (stored.value.spec.tier or defaults.DEFAULT_TIER) == tier
        }


def _initial_objects() -> Iterator[Resource]:
    """What the very first write of any client leaves besides its own (datamodel 2.6, 5.5)."""
    spec = ClusterInformationSpec(cluster_guid=secrets.token_hex(16), datastore_ready=True)
    yield ClusterInformation(metadata=Metadata(name="default"), spec=spec)
    for name, (order, action) in BUILT_IN_TIERS.items():
        yield Tier(metadata=Metadata(name=name), spec=TierSpec(order=order, default_action=action))


def _named(stored: Stored[Any]) -> Stored[Any]:
    """A stored policy under its user's name."""
    name = defaults.client_name(stored.value.metadata)
    if name == stored.value.name:
        return stored
    value = replace(stored.value, metadata=replace(stored.value.metadata, name=name))
    return Stored(stored.key, value, stored.revision, stored.document)


def _merged(given: Metadata, stored: Metadata) -> Metadata:
    """Labels and annotations from the user, all else from the store."""
    return replace(stored, labels=given.labels, annotations=given.annotations)


def _unsupported(verb: str, what: str) -> Unsupported:
    return Unsupported("operation", verb, f"operation {verb} is not supported on {what}: Calico keeps it itself")
