"""A part of etcd held in memory by a thread that follows it: answers without a round trip, and tells what changed.

Its thread is the only writer; readers get immutable values. Values are kept as bytes and decoded by who asks (`View`
decodes a prefix once for each time it changed). A cache that was never in sync refuses to answer; one that lost etcd
goes on answering with what it knows, and says so (`in_sync`, `last_error`, `stale_seconds`).
"""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import Callable, Generic, Iterable, Sequence, TypeVar

import structlog

from calico_plugin.datastore.kv import KV, Change, KeyValue
from calico_plugin.datastore.watch import Broken, Changes, Event, Listed, Watch, difference
from calico_plugin.deadline import Clock, Deadline
from calico_plugin.errors import CalicoError, DatastoreUnavailable, DeadlineExceeded
from calico_plugin.observe.log import bug

T = TypeVar("T")
Subscriber = Callable[[tuple[Change, ...]], None]

_JOIN_SECONDS = 2.0


class Cache:
    """Follows `prefixes` (none may begin with another) from `start` to `close`. `name` is for logs and errors."""

    def __init__(
        self,
        kv: KV,
        prefixes: Sequence[str],
        *,
        name: str = "cache",
        watch: Watch | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self._name, self._clock = name, clock
        self._watch = watch or Watch(kv, prefixes)
        self._tables: dict[str, dict[str, KeyValue]] = {prefix: {} for prefix in prefixes}
        self._versions = dict.fromkeys(prefixes, 0)
        self._subscribers: list[Subscriber] = []
        self._condition = threading.Condition()
        self._filled = False
        self._closed = False
        self._broken_at: float | None = clock()
        self._error: CalicoError | None = None
        self._log = structlog.get_logger(part="datastore", cache=name)
        self._thread = threading.Thread(target=self._run, name=f"cache-{name}", daemon=True)

    def start(self) -> Cache:
        self._thread.start()
        return self

    def close(self) -> None:
        """Ends the thread; waiters get an error."""
        self._watch.close()
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(_JOIN_SECONDS)

    def on_change(self, subscriber: Subscriber) -> None:
        """Call `subscriber` in the cache's thread with the changes of each event, after they are visible here.

        Register before `start`: the first listing comes as changes too.
        """
        self._subscribers.append(subscriber)

    @property
    def in_sync(self) -> bool:
        """True while the watch is in force."""
        return self._filled and self._broken_at is None

    @property
    def last_error(self) -> CalicoError | None:
        """Why it is out of sync; None while in sync."""
        return self._error

    @property
    def stale_seconds(self) -> float:
        """How long nothing has been heard of etcd; 0 while in sync."""
        broken_at = self._broken_at
        return 0.0 if broken_at is None else self._clock() - broken_at

    @property
    def version(self) -> int:
        """Grows with each change of any prefix."""
        return sum(self._versions.values())

    def version_of(self, prefix: str) -> int:
        """Grows with each change of one of the prefixes."""
        return self._versions[prefix]

    def get(self, key: str) -> KeyValue | None:
        """Raises DatastoreUnavailable when never in sync."""
        self._check_filled()
        return self._tables[self._prefix_of(key)].get(key)

    def items(self, prefix: str) -> list[KeyValue]:
        """All keys that begin with `prefix`, in key order. Raises DatastoreUnavailable when never in sync."""
        self._check_filled()
        owner = self._prefix_of(prefix)
        with self._condition:
            values = list(self._tables[owner].values())
        if prefix != owner:
            values = [item for item in values if item.key.startswith(prefix)]
        return sorted(values, key=_by_key)

    def wait_in_sync(self, deadline: Deadline) -> None:
        """Until the first listing is in. Raises DatastoreUnavailable."""
        with self._condition:
            self._condition.wait_for(lambda: self._filled or self._closed, deadline.left())
        self._check_filled()

    def wait_for(self, predicate: Callable[[Cache], T | None], deadline: Deadline, what: str) -> T:
        """The first result of `predicate` that is true; it is asked now and after each change.

        Raises DatastoreUnavailable when never in sync, DeadlineExceeded that names `what`.
        """
        self.wait_in_sync(deadline)
        while True:
            version = self.version
            result = predicate(self)
            if result:
                return result
            with self._condition:
                self._condition.wait_for(lambda: self._closed or self.version != version, deadline.left())
            if self._closed or deadline.expired():
                raise DeadlineExceeded(f"time is over while waiting for {what}{self._trouble()}")

    def _run(self) -> None:
        try:
            for event in self._watch:
                self._on_event(event)
        except Exception:
            bug(self._log, "the cache's thread ends")
            raise

    def _on_event(self, event: Event) -> None:
        if isinstance(event, Broken):
            self._on_broken(event.error)
            return
        changes = self._on_listed(event) if isinstance(event, Listed) else self._on_changes(event)
        for subscriber in self._subscribers if changes else ():
            try:
                subscriber(changes)
            except Exception:
                bug(self._log, "a subscriber failed", subscriber=repr(subscriber))

    def _on_broken(self, error: CalicoError) -> None:
        with self._condition:
            first, self._error = self._error is None, error
            if self._broken_at is None:
                self._broken_at = self._clock()
        if first:
            self._log.warning("lost the datastore", error=str(error))

    def _on_listed(self, listed: Listed) -> tuple[Change, ...]:
        changes: list[Change] = []
        with self._condition:
            for prefix, items in listed.items.items():
                changed = difference(self._tables[prefix], items, listed.revision)
                if changed:
                    self._tables[prefix] = {item.key: item for item in items}
                    self._versions[prefix] += 1
                    changes.extend(changed)
            self._filled = True
            self._heard()
        return tuple(changes)

    def _on_changes(self, event: Changes) -> tuple[Change, ...]:
        changes: tuple[Change, ...] = ()
        with self._condition:
            if event.changes:
                prefix = self._prefix_of(event.changes[0].key)
                changes = _apply(self._tables[prefix], event.changes)
                self._versions[prefix] += 1
            self._heard()
        return changes

    def _heard(self) -> None:
        if self._error is not None:
            self._log.info("in sync with the datastore again", seconds=round(self.stale_seconds, 1))
        self._broken_at = self._error = None
        self._condition.notify_all()

    def _check_filled(self) -> None:
        if not self._filled:
            trouble = self._trouble() or "; etcd has not answered yet"
            raise DatastoreUnavailable(f"the datastore etcd could not be read yet ({self._name}){trouble}")

    def _trouble(self) -> str:
        error = self._error
        if self._closed:
            return "; this program is stopping"
        return f"; {error}" if error else ""

    def _prefix_of(self, key: str) -> str:
        for prefix in self._tables:
            if key.startswith(prefix):
                return prefix
        raise KeyError(f"{key} is under none of {', '.join(self._tables)}")


class View(Generic[T]):
    """What `build` makes of all items of one followed prefix, made anew only after it changed; for any thread."""

    def __init__(self, cache: Cache, prefix: str, build: Callable[[Iterable[KeyValue]], T]) -> None:
        self._cache, self._prefix, self._build = cache, prefix, build
        self._made: tuple[int, T] | None = None

    def __call__(self) -> T:
        """Raises DatastoreUnavailable when the cache was never in sync, and what `build` raises."""
        made, version = self._made, self._cache.version_of(self._prefix)
        if made is None or made[0] != version:
            # Read after the version: at worst a newer content is made once more.
            made = self._made = (version, self._build(self._cache.items(self._prefix)))
        return made[1]


def _apply(table: dict[str, KeyValue], changes: Iterable[Change]) -> tuple[Change, ...]:
    """Change the table; the changes as its readers saw them, since etcd forgets previous values when it compacts."""
    applied = []
    for change in changes:
        if change.item is None:
            known = table.pop(change.key, None)
        else:
            known = table.get(change.key)
            table[change.key] = change.item
        applied.append(change if change.previous == known else replace(change, previous=known))
    return tuple(applied)


def _by_key(item: KeyValue) -> str:
    return item.key
