"""Typed verbs over the KV protocol: resources and other stored values by name; errors name the object, not its key.

What a writer must keep is kept here: uid and creationTimestamp are set once and survive, resourceVersion and selfLink
are never stored, and members of a stored object that we do not know stay in it. A change is planned (`creation`,
`change`, `removal`) and then committed; several planned changes can go into one commit.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Callable, Generic, Mapping, Sequence, Type, TypeVar

import msgspec

from calico_plugin.datastore.kv import KV, Compare, Delete, KeyValue, Put
from calico_plugin.deadline import Deadline
from calico_plugin.errors import AlreadyExists, Conflict, CorruptValue, InvalidInput, NotFound
from calico_plugin.model import codec, keys
from calico_plugin.model.codec import Invalid, Stored
from calico_plugin.model.docker import EndpointNames, NetworkRecord, SharedMember, SharedNetwork
from calico_plugin.model.ipam import Affinity, Block, Handle, IPAMConfig
from calico_plugin.model.resources.meta import Resource

R = TypeVar("R", bound=Resource)
T = TypeVar("T", bound=msgspec.Struct)

_AGAIN = "read it again and repeat the change"


@dataclass(frozen=True, slots=True)
class Values(Generic[T]):
    """A listing: what parses, what does not, and the revision at which it was read."""

    items: tuple[Stored[T], ...]
    revision: int
    invalid: tuple[Invalid, ...] = ()


@dataclass(frozen=True, slots=True)
class Planned:
    """One key's part of a commit. `what` names the object in errors, `kind` decodes what is stored instead."""

    what: str
    compare: Compare
    operation: Put | Delete
    kind: Type[msgspec.Struct]


class Store:
    """The door to all stored objects. `now` and `new_uid` are parameters for tests."""

    def __init__(
        self,
        kv: KV,
        now: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
        new_uid: Callable[[], str] = lambda: str(uuid.uuid4()),
    ) -> None:
        self.kv = kv
        self._now, self._new_uid = now, new_uid
        self.networks = Family(kv, NetworkRecord, keys.NETWORKS, keys.network, "network")
        self.shared_networks = Family(
            kv, SharedNetwork, keys.SHARED_NETWORKS, keys.shared_network, "shared network"
        )
        self.shared_members = Family(
            kv,
            SharedMember,
            keys.SHARED_MEMBERS,
            lambda name: keys.shared_member(*name.split(" ", 1)),
            "shared network's member",
        )
        self.endpoint_names = Family(
            kv,
            EndpointNames,
            keys.ENDPOINT_NAMES,
            lambda name: keys.endpoint_names(*name.split(" ", 1)),
            "names of endpoint",
        )
        self.blocks = Family(kv, Block, keys.BLOCKS, keys.block, "IPAM block")
        self.handles = Family(kv, Handle, keys.HANDLES, keys.handle, "IPAM handle")
        self.affinities = Family(
            kv, Affinity, keys.AFFINITIES, lambda name: keys.affinity(*name.split(" ", 1)), "block affinity"
        )
        self.ipam_config = Family(kv, IPAMConfig, keys.IPAM_CONFIG, lambda name: keys.IPAM_CONFIG, "IPAM configuration")

    def resources(self, kind: Type[R]) -> Resources[R]:
        """The verbs for one kind of v3 resource."""
        return Resources(self.kv, kind, self._now, self._new_uid)

    def commit(self, planned: Sequence[Planned], deadline: Deadline) -> int:
        """All planned changes or none, in one transaction; the new revision.

        Raises AlreadyExists, NotFound or Conflict for the first object that is not as it was planned for.
        """
        return _commit(self.kv, planned, deadline)


class Family(Generic[T]):
    """Verbs for values that are not v3 resources.

    `key_of` makes the key of a name: a network's id, a block's CIDR, `<host> <CIDR>` for an affinity, `<node> <name>`
    for a member of a shared network, `<node> <endpoint id>` for an endpoint's names.
    """

    def __init__(self, kv: KV, kind: Type[T], prefix: str, key_of: Callable[[str], str], noun: str) -> None:
        self._kv, self._kind, self._prefix, self._key_of, self._noun = kv, kind, prefix, key_of, noun

    def list(self, deadline: Deadline, prefix: str = "") -> Values[T]:
        """All, or those whose key begins with `prefix`."""
        return _list(self._kv, self._kind, prefix or self._prefix, deadline)

    def get(self, name: str, deadline: Deadline) -> Stored[T]:
        """Raises NotFound, CorruptValue."""
        return _required(self.find(name, deadline), self._what(name))

    def find(self, name: str, deadline: Deadline) -> Stored[T] | None:
        """None when absent. Raises CorruptValue."""
        return _find(self._kv, self._kind, self._key_of(name), deadline)

    def create(self, name: str, value: T, deadline: Deadline) -> Stored[T]:
        """Raises AlreadyExists."""
        planned = self.creation(name, value)
        return _stored(planned, self._kind, _commit(self._kv, (planned,), deadline))

    def update(self, name: str, stored: Stored[T], value: T, deadline: Deadline) -> Stored[T]:
        """Raises NotFound, Conflict."""
        planned = self.change(name, stored, value)
        return _stored(planned, self._kind, _commit(self._kv, (planned,), deadline))

    def delete(self, name: str, deadline: Deadline, revision: int | None = None) -> None:
        """Raises NotFound, and Conflict with `revision`."""
        _delete(self._kv, self._kind, self._key_of(name), self._what(name), revision, deadline)

    def creation(self, name: str, value: T) -> Planned:
        key = self._key_of(name)
        return Planned(self._what(name), Compare(key, 0), Put(key, codec.encode(value)), self._kind)

    def change(self, name: str, stored: Stored[T], value: T) -> Planned:
        data = codec.encode(value, stored.document)
        return Planned(self._what(name), Compare(stored.key, stored.revision), Put(stored.key, data), self._kind)

    def removal(self, name: str, stored: Stored[T]) -> Planned:
        return Planned(self._what(name), Compare(stored.key, stored.revision), Delete(stored.key), self._kind)

    def _what(self, name: str) -> str:
        return f"{self._noun} {name}"


class Resources(Generic[R]):
    """Verbs for one kind of v3 resource; `namespace` is for namespaced kinds only, else InvalidInput."""

    def __init__(self, kv: KV, kind: Type[R], now: Callable[[], datetime], new_uid: Callable[[], str]) -> None:
        self._kv, self._kind, self._now, self._new_uid = kv, kind, now, new_uid

    def list(self, deadline: Deadline, namespace: str = "") -> Values[R]:
        """In key order. Without a namespace, a namespaced kind is listed in all of them."""
        return _list(self._kv, self._kind, keys.kind_prefix(self._kind.__name__, namespace), deadline)

    def get(self, name: str, deadline: Deadline, namespace: str = "") -> Stored[R]:
        """Raises NotFound, CorruptValue."""
        return _required(self.find(name, deadline, namespace), self._what(name, namespace))

    def find(self, name: str, deadline: Deadline, namespace: str = "") -> Stored[R] | None:
        """None when absent. Raises CorruptValue."""
        return _find(self._kv, self._kind, self._key(name, namespace), deadline)

    def create(self, resource: R, deadline: Deadline, over: Mapping[str, Any] | None = None) -> Stored[R]:
        """What was stored. `over`: the document it came from, whose unknown members are stored too.

        Raises AlreadyExists.
        """
        planned = self.creation(resource, over)
        return _stored(planned, self._kind, _commit(self._kv, (planned,), deadline))

    def update(self, stored: Stored[R], resource: R, deadline: Deadline) -> Stored[R]:
        """Write `resource` in place of what was read. Raises NotFound, Conflict."""
        planned = self.change(stored, resource)
        return _stored(planned, self._kind, _commit(self._kv, (planned,), deadline))

    def delete(
        self, name: str, deadline: Deadline, namespace: str = "", revision: int | None = None
    ) -> Stored[R] | None:
        """What was deleted (None when it did not parse). Raises NotFound, and Conflict with `revision`."""
        key, what = self._key(name, namespace), self._what(name, namespace)
        return _delete(self._kv, self._kind, key, what, revision, deadline)

    def creation(self, resource: R, over: Mapping[str, Any] | None = None) -> Planned:
        """Sets uid and creationTimestamp where absent. Raises InvalidInput when there is a resourceVersion."""
        metadata = resource.metadata
        if metadata.resource_version:
            raise InvalidInput("metadata.resourceVersion", metadata.resource_version, "must not be set on create")
        born = self._born(resource, metadata.uid, metadata.creation_timestamp)
        key = self._key(resource.name, resource.namespace)
        return Planned(str(resource), Compare(key, 0), Put(key, codec.encode(born, over)), self._kind)

    def change(self, stored: Stored[R], resource: R) -> Planned:
        """Keeps uid and creationTimestamp of the stored one. Raises InvalidInput when the name is another's."""
        if (resource.name, resource.namespace) != (stored.value.name, stored.value.namespace):
            raise InvalidInput("metadata.name", resource.name, f"a change of {stored.value} cannot rename it")
        old = stored.value.metadata
        value = self._born(resource, old.uid, old.creation_timestamp)
        data = codec.encode(value, stored.document)
        return Planned(str(resource), Compare(stored.key, stored.revision), Put(stored.key, data), self._kind)

    def removal(self, stored: Stored[R]) -> Planned:
        return Planned(str(stored.value), Compare(stored.key, stored.revision), Delete(stored.key), self._kind)

    def _born(self, resource: R, uid: str, created: str | None) -> R:
        # The original refuses to change an object that lacks either.
        metadata = msgspec.structs.replace(
            resource.metadata,
            uid=uid or self._new_uid(),
            creation_timestamp=created or self._now().strftime("%Y-%m-%dT%H:%M:%SZ"),
            resource_version="",
            self_link="",
        )
        return msgspec.structs.replace(resource, metadata=metadata)

    def _key(self, name: str, namespace: str) -> str:
        return keys.resource(self._kind.__name__, name, namespace)

    def _what(self, name: str, namespace: str) -> str:
        return str(keys.ResourceKey(self._kind.__name__, name, namespace))


def _list(kv: KV, kind: Type[T], prefix: str, deadline: Deadline) -> Values[T]:
    listing = kv.list(prefix, deadline)
    items: list[Stored[T]] = []
    invalid: list[Invalid] = []
    for item in listing.items:
        try:
            items.append(codec.decode_stored(kind, item.key, item.value, item.revision))
        except CorruptValue as error:
            invalid.append(Invalid(error.key, error.why))
    return Values(tuple(items), listing.revision, tuple(invalid))


def _find(kv: KV, kind: Type[T], key: str, deadline: Deadline) -> Stored[T] | None:
    item = kv.get(key, deadline)
    return codec.decode_stored(kind, item.key, item.value, item.revision) if item else None


def _required(stored: Stored[T] | None, what: str) -> Stored[T]:
    if stored is None:
        raise NotFound(what)
    return stored


def _stored(planned: Planned, kind: Type[T], revision: int) -> Stored[T]:
    assert isinstance(planned.operation, Put)
    return codec.decode_stored(kind, planned.compare.key, planned.operation.value, revision)


def _commit(kv: KV, planned: Sequence[Planned], deadline: Deadline) -> int:
    commit = kv.commit([part.compare for part in planned], [part.operation for part in planned], deadline)
    if commit.succeeded:
        return commit.revision
    for part in planned:
        current = commit.current[part.compare.key]
        if (current.revision if current else 0) != part.compare.revision:
            raise _refused(part.what, part.compare.revision, current, part.kind)
    raise Conflict(", ".join(part.what for part in planned), hint=_AGAIN)


def _delete(kv: KV, kind: Type[T], key: str, what: str, revision: int | None, deadline: Deadline) -> Stored[T] | None:
    try:
        gone = kv.delete(key, deadline, revision=revision)
    except NotFound:
        raise NotFound(what) from None
    except Conflict as error:
        raise _refused(what, revision or 0, error.current, kind) from None
    stored = _readable(kind, gone)
    return stored if isinstance(stored, Stored) else None


def _refused(
    what: str, revision: int, current: KeyValue | None, kind: Type[msgspec.Struct]
) -> NotFound | AlreadyExists | Conflict:
    """The error for an object that is not as the change supposed."""
    if current is None:
        return NotFound(what)
    if revision == 0:
        return AlreadyExists(what, _readable(kind, current))
    hint = f"it was read at revision {revision} and is now at revision {current.revision}: {_AGAIN}"
    return Conflict(what, _readable(kind, current), hint)


def _readable(kind: Type[T], item: KeyValue) -> Stored[T] | KeyValue:
    """The typed value, or the raw one where it does not parse (or is not known, after a lost answer)."""
    try:
        return codec.decode_stored(kind, item.key, item.value, item.revision) if item.value else item
    except CorruptValue:
        return item
