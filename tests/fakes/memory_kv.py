"""The KV protocol in memory, for tests that need many stores or steps. `tests/contract` holds it to what etcd does.

`fault` is called with the verb before each operation and may raise what etcd would: a test's way to let calls fail.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from typing import Callable, Iterator, Mapping, Sequence

from calico_plugin.datastore.kv import Change, Commit, Compare, Delete, KeyValue, Listing, Put
from calico_plugin.deadline import Deadline
from calico_plugin.errors import AlreadyExists, Compacted, Conflict, DatastoreUnavailable, NotFound


def _no_fault(verb: str) -> None:
    """Every call works."""


class MemoryKV:
    """Thread-safe; keeps all history until `compact`. A key with a `ttl` goes by a timer, as with etcd."""

    def __init__(self, fault: Callable[[str], None] = _no_fault) -> None:
        self.fault = fault
        self.revision = 1
        self.compacted = 0
        self.condition = threading.Condition(threading.RLock())
        self.log: list[Change] = []
        self._now: dict[str, KeyValue] = {}
        self._history: dict[str, list[tuple[int, KeyValue | None]]] = defaultdict(list)
        self._streams: list[MemoryWatchStream] = []
        self._timers: list[threading.Timer] = []
        self._closed = False

    def get(self, key: str, deadline: Deadline) -> KeyValue | None:
        self._begin("get", deadline)
        return self._now.get(key)

    def get_many(self, keys: Sequence[str], deadline: Deadline) -> dict[str, KeyValue | None]:
        self._begin("get_many", deadline)
        with self.condition:
            return {key: self._now.get(key) for key in keys}

    def list(self, prefix: str, deadline: Deadline, *, keys_only: bool = False, revision: int = 0) -> Listing:
        self._begin("list", deadline)
        with self.condition:
            if revision and revision < self.compacted:
                raise Compacted(f"etcd has compacted up to revision {self.compacted}")
            found = [self._at(key, revision) for key in sorted(self._history) if key.startswith(prefix)]
            items = tuple(_without_value(item) if keys_only else item for item in found if item)
            return Listing(items, revision or self.revision)

    def create(self, key: str, value: bytes, deadline: Deadline) -> int:
        commit = self.commit((Compare(key, 0),), (Put(key, value),), deadline)
        if not commit.succeeded:
            raise AlreadyExists(key, commit.current[key])
        return commit.revision

    def replace(self, key: str, value: bytes, revision: int, deadline: Deadline) -> int:
        commit = self.commit((Compare(key, revision),), (Put(key, value),), deadline)
        if not commit.succeeded:
            raise _lost(key, revision, commit.current[key])
        return commit.revision

    def put(self, key: str, value: bytes, deadline: Deadline, *, ttl: int | None = None) -> int:
        self._begin("put", deadline)
        with self.condition:
            self._apply((Put(key, value),), lease=self._lease(key, ttl) if ttl else 0)
            return self.revision

    def delete(self, key: str, deadline: Deadline, *, revision: int | None = None) -> KeyValue:
        self._begin("delete", deadline)
        with self.condition:
            item = self._now.get(key)
            if item is None or (revision is not None and item.revision != revision):
                raise _lost(key, revision or 0, item)
            self._apply((Delete(key),))
            return item

    def delete_prefix(self, prefix: str, deadline: Deadline) -> int:
        self._begin("delete_prefix", deadline)
        with self.condition:
            keys = [key for key in sorted(self._now) if key.startswith(prefix)]
            self._apply([Delete(key) for key in keys])
            return len(keys)

    def commit(
        self, compares: Sequence[Compare], operations: Sequence[Put | Delete], deadline: Deadline
    ) -> Commit:
        self._begin("commit", deadline)
        with self.condition:
            current = {compare.key: self._now.get(compare.key) for compare in compares}
            held = all(self._holds(compare) for compare in compares)
            if held:
                self._apply(operations)
            return Commit(held, self.revision, {} if held else current)

    def _holds(self, compare: Compare) -> bool:
        if compare.prefix:
            under = [item for key, item in self._now.items() if key.startswith(compare.key)]
            return all(item.revision <= compare.revision for item in under)
        return _revision(self._now.get(compare.key)) == compare.revision

    def watch(self, prefix: str, revision: int) -> MemoryWatchStream:
        return self.watch_many({prefix: revision})

    def watch_many(self, starts: Mapping[str, int]) -> MemoryWatchStream:
        self.fault("watch")
        stream = MemoryWatchStream(self, starts)
        self._streams.append(stream)
        return stream

    def compact(self, revision: int, deadline: Deadline) -> None:
        self._begin("compact", deadline)
        with self.condition:
            self.compacted = revision
            self.log = [change for change in self.log if change.revision > revision]

    def status(self, deadline: Deadline) -> dict[str, str]:
        self._begin("status", deadline)
        return {"memory": "3.4.0"}

    def close(self) -> None:
        self._closed = True
        for timer in self._timers:
            timer.cancel()
        self.break_streams()

    def break_streams(self) -> None:
        """End all watches as a lost connection does."""
        with self.condition:
            for stream in self._streams:
                stream.broken = True
            self._streams.clear()
            self.condition.notify_all()

    def _begin(self, verb: str, deadline: Deadline) -> None:
        deadline.check("etcd in memory")
        if self._closed:
            raise DatastoreUnavailable("the connection to etcd in memory is closed")
        self.fault(verb)

    def _apply(self, operations: Sequence[Put | Delete], lease: int = 0) -> None:
        """One new revision for all of them, if they change anything."""
        revision = self.revision + 1
        for operation in operations:
            old = self._now.get(operation.key)
            if isinstance(operation, Put):
                created = old.create_revision if old else revision
                item = KeyValue(operation.key, operation.value, revision, created, lease)
                self._now[operation.key] = item
                self._record(Change(operation.key, item, revision, old))
            elif old is not None:
                del self._now[operation.key]
                self._record(Change(operation.key, None, revision, old))
        self.condition.notify_all()

    def _record(self, change: Change) -> None:
        self.revision = change.revision
        self.log.append(change)
        self._history[change.key].append((change.revision, change.item))

    def _at(self, key: str, revision: int) -> KeyValue | None:
        past = [item for at, item in self._history[key] if not revision or at <= revision]
        return past[-1] if past else None

    def _lease(self, key: str, ttl: int) -> int:
        lease = len(self._timers) + 1
        timer = threading.Timer(ttl, self._expire, (key, lease))
        timer.daemon = True
        self._timers.append(timer)
        timer.start()
        return lease

    def _expire(self, key: str, lease: int) -> None:
        with self.condition:
            item = self._now.get(key)
            if item and item.lease == lease:
                self._apply((Delete(key),))


class MemoryWatchStream:
    """A watch of a MemoryKV."""

    def __init__(self, store: MemoryKV, starts: Mapping[str, int]) -> None:
        self._store = store
        self.next_revisions = dict(starts)
        self.broken = False
        self._closed = False

    def __iter__(self) -> Iterator[tuple[Change, ...]]:
        self._check_start()
        yield ()
        while not self._closed:
            batch = self._next_batch()
            if batch:
                yield batch

    def close(self) -> None:
        with self._store.condition:
            self._closed = True
            self._store.condition.notify_all()

    def _check_start(self) -> None:
        start = min(self.next_revisions.values())
        if start <= self._store.compacted:
            raise Compacted(f"etcd has compacted up to revision {self._store.compacted}")
        if start > self._store.revision + 1:
            raise Compacted(f"etcd in memory is at revision {self._store.revision}, before the one already seen")

    def _next_batch(self) -> tuple[Change, ...]:
        with self._store.condition:
            while not self._closed:
                if self.broken:
                    raise DatastoreUnavailable("etcd does not answer: the watch in memory was broken")
                for prefix, start in self.next_revisions.items():
                    pending = [x for x in self._store.log if x.revision >= start and x.key.startswith(prefix)]
                    if pending:
                        self.next_revisions[prefix] = pending[-1].revision + 1
                        return tuple(pending)
                self._store.condition.wait()
            return ()


def _lost(key: str, revision: int, current: KeyValue | None) -> NotFound | Conflict:
    if current is None:
        return NotFound(key)
    return Conflict(key, current, f"it was read at revision {revision} and is now at {current.revision}")


def _revision(item: KeyValue | None) -> int:
    return item.revision if item else 0


def _without_value(item: KeyValue) -> KeyValue:
    return KeyValue(item.key, b"", item.revision, item.create_revision, item.lease)
