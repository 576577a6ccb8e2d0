"""List, then watch, for ever: what a follower of some prefixes has to know, as events.

`Listed` is the whole content at one revision; `Changes` follow it without a gap. A broken stream goes on at the last
revision (`Broken`, then `Changes`); when that is compacted, or etcd was set back, a new `Listed` comes, and
`difference` tells what it changes. `close` may be called from any thread and ends the iteration at once, whatever
etcd does.
"""

from __future__ import annotations

import queue
import random
import threading
from dataclasses import dataclass
from typing import Callable, Iterator, Mapping, Sequence

from calico_plugin.datastore.kv import KV, Change, KeyValue, WatchStream
from calico_plugin.deadline import Deadline
from calico_plugin.errors import CalicoError, Compacted, DatastoreError, DeadlineExceeded

# For the whole content of all prefixes; 60,000 blocks take about 2 s.
LIST_SECONDS = 30.0
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0


@dataclass(frozen=True, slots=True)
class Listed:
    """All keys of all prefixes (each in key order), as they were at `revision`."""

    items: Mapping[str, tuple[KeyValue, ...]]
    revision: int


@dataclass(frozen=True, slots=True)
class Changes:
    """One answer of etcd for one prefix. An empty one comes when a stream is (again) in force."""

    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class Broken:
    """Nothing is heard of etcd until the next event of another type."""

    error: CalicoError


Event = Listed | Changes | Broken


class Watch:
    """An endless iterator of events for one consumer thread.

    `wait` sleeps until its event is set or so many seconds have passed; with `jitter` (0..1) a parameter for tests.
    """

    def __init__(
        self,
        kv: KV,
        prefixes: Sequence[str],
        *,
        list_seconds: float = LIST_SECONDS,
        wait: Callable[[threading.Event, float], object] = threading.Event.wait,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        _refuse_overlap(prefixes)
        self._kv, self._prefixes, self._list_seconds = kv, tuple(prefixes), list_seconds
        self._wait, self._jitter = wait, jitter
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._stream: WatchStream | None = None
        self._lists: queue.SimpleQueue[Listed | Exception | None] = queue.SimpleQueue()

    def __iter__(self) -> Iterator[Event]:
        starts: dict[str, int] = {}
        failures = 0
        while not self._closed.is_set():
            try:
                if not starts:
                    listed = self._list()
                    if listed is None:
                        return
                    starts = dict.fromkeys(self._prefixes, listed.revision + 1)
                    yield listed
                    del listed  # the whole content of etcd, which nobody needs any more
                for changes in self._follow(starts):
                    # Only a stream that has come into force ends a row of failures.
                    failures = 0
                    yield changes
            except Compacted as error:
                starts = {}
                yield Broken(error)
            except (DatastoreError, DeadlineExceeded) as error:
                yield Broken(error)
            self._pause(failures)
            failures += 1

    def close(self) -> None:
        with self._lock:
            self._closed.set()
            stream = self._stream
        self._lists.put(None)
        if stream is not None:
            stream.close()

    def _follow(self, starts: dict[str, int]) -> Iterator[Changes]:
        """Run one stream until it ends, keeping in `starts` where the next one goes on."""
        stream = self._kv.watch_many(starts)
        with self._lock:
            self._stream = stream
            if self._closed.is_set():
                stream.close()
        try:
            for changes in stream:
                starts.update(stream.next_revisions)
                yield Changes(changes)
        finally:
            stream.close()

    def _list(self) -> Listed | None:
        """None once closed. A list cannot be called off, so it has a thread, which ends by its deadline."""
        threading.Thread(target=self._list_into, args=(self._lists,), name="datastore-list", daemon=True).start()
        answer = self._lists.get()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _list_into(self, answers: queue.SimpleQueue[Listed | Exception | None]) -> None:
        try:
            answers.put(self._list_all())
        except Exception as error:
            answers.put(error)

    def _list_all(self) -> Listed:
        deadline = Deadline(self._list_seconds)
        revision = 0
        items: dict[str, tuple[KeyValue, ...]] = {}
        for prefix in self._prefixes:
            # All at the revision of the first, so that together they are one view.
            listing = self._kv.list(prefix, deadline, revision=revision)
            revision = revision or listing.revision
            items[prefix] = listing.items
        return Listed(items, revision)

    def _pause(self, failures: int) -> None:
        longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(failures, 16))
        self._wait(self._closed, longest * (0.5 + self._jitter() / 2))


def difference(known: Mapping[str, KeyValue], items: Sequence[KeyValue], revision: int) -> tuple[Change, ...]:
    """What a new listing changes for one who knew `known`: deletes first, at the listing's revision."""
    there = {item.key for item in items}
    gone = [Change(key, None, revision, old) for key, old in known.items() if key not in there]
    new = [
        Change(item.key, item, item.revision, old)
        for item in items
        if (old := known.get(item.key)) != item
    ]
    return (*gone, *new)


def _refuse_overlap(prefixes: Sequence[str]) -> None:
    """A key must belong to one prefix only."""
    ordered = sorted(prefixes)
    for shorter, longer in zip(ordered, ordered[1:]):
        if longer.startswith(shorter):
            raise ValueError(f"prefixes overlap: {shorter} and {longer}")
