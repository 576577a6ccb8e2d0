"""The protocol between us and the datastore: `etcd.EtcdKV`, and one in memory in `tests/fakes`; one suite holds both.

Every call takes the Deadline of the whole operation and raises only `errors.DatastoreError`s, `Conflict`, `NotFound`,
`AlreadyExists` or `DeadlineExceeded`. Revisions are etcd's: mod_revision of a key, header revision of an answer.

A write whose answer was lost is found again by its bytes. Writers that compete for a key and must not both believe that
they won therefore put something of their own in the value: a uid, a node and time, a handle.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterator, Mapping, Protocol, Sequence

from calico_plugin.deadline import Deadline


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One stored key. `lease` is 0 for keys without time to live."""

    key: str
    value: bytes
    revision: int
    create_revision: int
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Listing:
    """Keys of a prefix in key order, and the revision at which they were read: a watch goes on at `revision + 1`."""

    items: tuple[KeyValue, ...]
    revision: int


@dataclass(frozen=True, slots=True)
class Compare:
    """Holds when the key's mod_revision is `revision`; 0 means the key does not exist.

    With `prefix`, `key` is a prefix and the compare holds when no key under it was put after `revision` (a delete is
    not seen). Then `Commit.current` has nothing of use under it.
    """

    key: str
    revision: int
    prefix: bool = False


@dataclass(frozen=True, slots=True)
class Put:
    key: str
    value: bytes


@dataclass(frozen=True, slots=True)
class Delete:
    key: str


@dataclass(frozen=True, slots=True)
class Commit:
    """Outcome of a transaction. When it did not hold, `current` has what each compared key holds (None: absent)."""

    succeeded: bool
    revision: int
    current: dict[str, KeyValue | None]


@dataclass(frozen=True, slots=True)
class Change:
    """One event: `item` is None for a delete, `previous` what was there before (None: nothing, or not known)."""

    key: str
    item: KeyValue | None
    revision: int
    previous: KeyValue | None = None


class WatchStream(Protocol):
    """An open watch. Iterating yields one batch of changes per answer of etcd, never splitting one revision.

    A batch belongs to one prefix. An empty one says that the watches are in force (it comes first) or that nothing
    has changed for long. It ends by raising: Compacted,
    DatastoreUnavailable, DatastoreUnauthorized, or by StopIteration after `close()`, which any thread may call.
    `next_revisions` says for each prefix where a new stream has to go on after what was delivered.
    """

    next_revisions: dict[str, int]

    def __iter__(self) -> Iterator[tuple[Change, ...]]: ...

    def close(self) -> None: ...


class KV(Protocol):
    """What the project needs of a datastore."""

    def get(self, key: str, deadline: Deadline) -> KeyValue | None: ...

    def get_many(self, keys: Sequence[str], deadline: Deadline) -> dict[str, KeyValue | None]:
        """Several keys in one round trip (one read-only transaction)."""

    def list(self, prefix: str, deadline: Deadline, *, keys_only: bool = False, revision: int = 0) -> Listing:
        """All keys of a prefix, as they are or as they were at `revision` (raises Compacted when that is gone)."""

    def create(self, key: str, value: bytes, deadline: Deadline) -> int:
        """Put when absent; the new revision. Raises AlreadyExists with the stored KeyValue as `current`."""

    def replace(self, key: str, value: bytes, revision: int, deadline: Deadline) -> int:
        """Put when the key is at `revision`; the new one. Raises NotFound, or Conflict with the stored KeyValue."""

    def put(self, key: str, value: bytes, deadline: Deadline, *, ttl: int | None = None) -> int:
        """Put blind, with a fresh lease of `ttl` seconds if given."""

    def delete(self, key: str, deadline: Deadline, *, revision: int | None = None) -> KeyValue:
        """Delete, at `revision` if given; what was there. Raises NotFound or Conflict."""

    def delete_prefix(self, prefix: str, deadline: Deadline) -> int:
        """Delete all keys of a prefix; how many."""

    def commit(
        self, compares: Sequence[Compare], operations: Sequence[Put | Delete], deadline: Deadline
    ) -> Commit:
        """One transaction: all operations when all compares hold, nothing otherwise."""

    def watch(self, prefix: str, revision: int) -> WatchStream:
        """Changes of a prefix from `revision` on (inclusive)."""

    def watch_many(self, starts: Mapping[str, int]) -> WatchStream:
        """Changes of several prefixes in one stream, each from its own revision on (inclusive)."""

    def compact(self, revision: int, deadline: Deadline) -> None:
        """Forget what was before a revision."""

    def status(self, deadline: Deadline) -> dict[str, str]:
        """Endpoint -> version of etcd, or the error it gave: for `doctor` and health."""

    def close(self) -> None: ...
