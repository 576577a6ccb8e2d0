"""Watch and difference without etcd: back-off, resumption, lists that fail."""

from __future__ import annotations

import threading
from itertools import islice

from calico_plugin.datastore.kv import Change, KeyValue
from calico_plugin.datastore.watch import LONGEST_PAUSE, Broken, Changes, Event, Listed, Watch, difference
from calico_plugin.deadline import Deadline
from calico_plugin.errors import Compacted, DatastoreUnavailable
from tests.fakes.memory_kv import MemoryKV


def item(key: str, value: bytes, revision: int) -> KeyValue:
    return KeyValue(key, value, revision, revision)


class Pauses:
    """Stands in for sleeping: keeps how long each pause was to be."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def __call__(self, closed: threading.Event, seconds: float) -> None:
        self.seconds.append(seconds)


class Unavailable:
    """The first `times` calls of a verb fail."""

    def __init__(self, verb: str, times: int) -> None:
        self.verb, self.left = verb, times

    def __call__(self, verb: str) -> None:
        if verb == self.verb and self.left > 0:
            self.left -= 1
            raise DatastoreUnavailable("etcd does not answer")


def kinds(events: list[Event]) -> list[type]:
    return [type(event) for event in events]


def test_pauses_grow_to_a_limit() -> None:
    """Each failure in a row doubles the pause, up to the limit; without jitter half of it."""
    pauses = Pauses()
    watch = Watch(MemoryKV(Unavailable("list", 10)), ("/a/",), wait=pauses, jitter=lambda: 0.0)
    events = list(islice(watch, 11))
    watch.close()
    assert kinds(events) == [Broken] * 10 + [Listed]
    assert pauses.seconds[:4] == [0.05, 0.1, 0.2, 0.4]
    assert pauses.seconds[-1] == LONGEST_PAUSE / 2


def test_jitter_doubles_at_most() -> None:
    """Clients that lost etcd together do not come back together."""
    pauses = Pauses()
    watch = Watch(MemoryKV(Unavailable("list", 1)), ("/a/",), wait=pauses, jitter=lambda: 1.0)
    list(islice(watch, 2))
    watch.close()
    assert pauses.seconds == [0.1]


def test_broken_stream_goes_on_where_it_was() -> None:
    """No new listing after a broken stream, no change twice, none missing; and the row of failures starts anew."""
    kv, pauses = MemoryKV(), Pauses()
    watch = Watch(kv, ("/a/",), wait=pauses, jitter=lambda: 0.0)
    events = iter(watch)
    assert isinstance(next(events), Listed) and next(events) == Changes(())
    for number in range(3):
        kv.put("/a/1", str(number).encode(), Deadline(5))
        change = next(events)
        assert isinstance(change, Changes) and change.changes[0].item and change.changes[0].item.value == b"%d" % number
        kv.break_streams()
        assert isinstance(next(events), Broken)
        assert next(events) == Changes(())
    watch.close()
    assert list(events) == []
    assert pauses.seconds[:3] == [0.05] * 3


def test_compaction_lists_again() -> None:
    """A start that is gone leads to Broken(Compacted) and then everything."""
    kv = MemoryKV()
    watch = Watch(kv, ("/a/",), wait=Pauses())
    events = iter(watch)
    next(events), next(events)
    kv.break_streams()
    kv.put("/a/1", b"1", Deadline(5))
    kv.put("/a/1", b"2", Deadline(5))
    kv.compact(kv.revision, Deadline(5))
    assert isinstance(next(events), Broken)
    broken = next(events)
    assert isinstance(broken, Broken) and isinstance(broken.error, Compacted)
    listed = next(events)
    assert isinstance(listed, Listed) and [item.value for item in listed.items["/a/"]] == [b"2"]
    watch.close()


def test_close_while_a_list_hangs() -> None:
    """Whatever the list waits for, close ends the iteration at once."""
    listing, release, ended = threading.Event(), threading.Event(), threading.Event()

    def hang(verb: str) -> None:
        listing.set()
        release.wait(20)

    watch = Watch(MemoryKV(hang), ("/a/",))

    def consume() -> None:
        list(watch)
        ended.set()

    threading.Thread(target=consume, daemon=True).start()
    assert listing.wait(5)
    watch.close()
    assert ended.wait(5)
    release.set()


def test_close_before_the_start() -> None:
    """A watch closed before it is used yields nothing."""
    watch = Watch(MemoryKV(), ("/a/",))
    watch.close()
    assert list(watch) == []


def test_difference() -> None:
    """Deletes come first, what is the same is left out, a key of an etcd that was set back is seen by its content."""
    same, old, gone = item("/same", b"1", 5), item("/changed", b"1", 5), item("/gone", b"1", 5)
    known = {each.key: each for each in (same, old, gone)}
    changed, new = item("/changed", b"2", 5), item("/new", b"1", 9)
    assert difference(known, (changed, new, same), 9) == (
        Change("/gone", None, 9, gone),
        Change("/changed", changed, 5, old),
        Change("/new", new, 9, None),
    )
    assert difference(known, tuple(known.values()), 9) == ()
