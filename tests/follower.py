"""A thread that follows some prefixes by a Watch and keeps what it is told, for tests that wait for something."""

from __future__ import annotations

import threading
from typing import Callable, Sequence, TypeVar

from calico_plugin.datastore.kv import KV, Change, KeyValue
from calico_plugin.datastore.watch import Broken, Event, Listed, Watch, difference
from calico_plugin.deadline import Deadline
from calico_plugin.errors import CalicoError, DeadlineExceeded

T = TypeVar("T")


class Follower:
    """`heard` are all changes in order, those of a listing among them; `error` says why nothing is heard now."""

    def __init__(self, kv: KV, prefixes: Sequence[str]) -> None:
        self._watch = Watch(kv, prefixes)
        self._known: dict[str, KeyValue] = {}
        self._condition = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)
        self._listed = False
        self.heard: list[Change] = []
        self.error: CalicoError | None = None

    def start(self) -> Follower:
        self._thread.start()
        return self

    def close(self) -> None:
        """The thread ends, whatever etcd does."""
        self._watch.close()
        self._thread.join(2.0)
        assert not self._thread.is_alive(), "the watch does not end"

    @property
    def in_sync(self) -> bool:
        return self._listed and self.error is None

    def get(self, key: str) -> KeyValue | None:
        return self._known.get(key)

    def items(self) -> list[KeyValue]:
        """In key order."""
        return [self._known[key] for key in sorted(self._known)]

    def wait_in_sync(self, deadline: Deadline) -> None:
        self.wait_for(lambda follower: follower.in_sync, deadline, "the first listing")

    def wait_for(self, predicate: Callable[[Follower], T], deadline: Deadline, what: str) -> T:
        """The first true result of `predicate`, which is asked now and after each event. Raises DeadlineExceeded."""
        with self._condition:
            result = self._condition.wait_for(lambda: predicate(self), deadline.left())
        if not result:
            raise DeadlineExceeded(f"time is over while waiting for {what}; {self.error}")
        return result

    def _run(self) -> None:
        for event in self._watch:
            with self._condition:
                self._take(event)
                self._condition.notify_all()

    def _take(self, event: Event) -> None:
        if isinstance(event, Broken):
            self.error = event.error
            return
        self.error = None
        if isinstance(event, Listed):
            self._listed = True
            items = [item for part in event.items.values() for item in part]
            changes = difference(self._known, items, event.revision)
        else:
            changes = event.changes
        for change in changes:
            self.heard.append(change)
            if change.item is None:
                self._known.pop(change.key, None)
            else:
                self._known[change.key] = change.item
