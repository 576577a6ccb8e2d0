"""A KV whose writes go nowhere: reads see the real datastore with those writes laid over it (`--dry-run`, `diff`).

So a dry run takes exactly the steps of the real one, with all their checks, and later steps see what earlier ones would
have done. For one thread.
"""

from __future__ import annotations

from typing import Mapping, Sequence

from calico_plugin.datastore.kv import KV, Commit, Compare, Delete, KeyValue, Listing, Put, WatchStream
from calico_plugin.deadline import Deadline
from calico_plugin.errors import AlreadyExists, Conflict, NotFound

# Above every revision that etcd will ever reach, so that what would be written is newer than all that is there.
_FIRST_REVISION = 1 << 60


class OverlayKV:
    """Implements `kv.KV`; `below` is the real one, which is only read."""

    def __init__(self, below: KV) -> None:
        self.below = below
        self.revision = _FIRST_REVISION
        self._written: dict[str, KeyValue | None] = {}

    def get(self, key: str, deadline: Deadline) -> KeyValue | None:
        return self._written[key] if key in self._written else self.below.get(key, deadline)

    def get_many(self, keys: Sequence[str], deadline: Deadline) -> dict[str, KeyValue | None]:
        unknown = [key for key in keys if key not in self._written]
        real = self.below.get_many(unknown, deadline) if unknown else {}
        return {key: self._written[key] if key in self._written else real[key] for key in keys}

    def list(self, prefix: str, deadline: Deadline, *, keys_only: bool = False, revision: int = 0) -> Listing:
        real = self.below.list(prefix, deadline, keys_only=keys_only, revision=revision)
        found: dict[str, KeyValue | None] = {item.key: item for item in real.items}
        found.update((key, item) for key, item in self._written.items() if key.startswith(prefix))
        return Listing(tuple(item for key in sorted(found) if (item := found[key])), real.revision)

    def create(self, key: str, value: bytes, deadline: Deadline) -> int:
        current = self.get(key, deadline)
        if current:
            raise AlreadyExists(key, current)
        return self._put(key, value, None)

    def replace(self, key: str, value: bytes, revision: int, deadline: Deadline) -> int:
        return self._put(key, value, self._at(key, revision, deadline))

    def put(self, key: str, value: bytes, deadline: Deadline, *, ttl: int | None = None) -> int:
        return self._put(key, value, self.get(key, deadline))

    def delete(self, key: str, deadline: Deadline, *, revision: int | None = None) -> KeyValue:
        item = self._at(key, revision, deadline)
        self._remove(key)
        return item

    def delete_prefix(self, prefix: str, deadline: Deadline) -> int:
        items = self.list(prefix, deadline, keys_only=True).items
        for item in items:
            self._remove(item.key)
        return len(items)

    def commit(
        self, compares: Sequence[Compare], operations: Sequence[Put | Delete], deadline: Deadline
    ) -> Commit:
        current = self.get_many([compare.key for compare in compares if not compare.prefix], deadline)
        if not all(self._holds(compare, current, deadline) for compare in compares):
            return Commit(False, self.revision, current)
        there = self.get_many([operation.key for operation in operations], deadline)
        for operation in operations:
            if isinstance(operation, Put):
                self._put(operation.key, operation.value, there[operation.key])
            else:
                self._remove(operation.key)
        return Commit(True, self.revision, {})

    def watch(self, prefix: str, revision: int) -> WatchStream:
        return self.below.watch(prefix, revision)

    def watch_many(self, starts: Mapping[str, int]) -> WatchStream:
        return self.below.watch_many(starts)

    def compact(self, revision: int, deadline: Deadline) -> None:
        """Nothing is forgotten in a dry run."""

    def status(self, deadline: Deadline) -> dict[str, str]:
        return self.below.status(deadline)

    def close(self) -> None:
        self.below.close()

    def _holds(self, compare: Compare, current: Mapping[str, KeyValue | None], deadline: Deadline) -> bool:
        if compare.prefix:
            items = self.list(compare.key, deadline, keys_only=True).items
            return all(item.revision <= compare.revision for item in items)
        item = current[compare.key]
        return (item.revision if item else 0) == compare.revision

    def _at(self, key: str, revision: int | None, deadline: Deadline) -> KeyValue:
        item = self.get(key, deadline)
        if item is None:
            raise NotFound(key)
        if revision is not None and item.revision != revision:
            raise Conflict(key, item, f"it was read at revision {revision} and is now at {item.revision}")
        return item

    def _put(self, key: str, value: bytes, current: KeyValue | None) -> int:
        self.revision += 1
        created = current.create_revision if current else self.revision
        self._written[key] = KeyValue(key, value, self.revision, created)
        return self.revision

    def _remove(self, key: str) -> None:
        self.revision += 1
        self._written[key] = None
