"""What every KV's watch does: order, whole revisions, resumption, compaction, close; and Watch upon it."""

from __future__ import annotations

import threading
from itertools import islice
from typing import Callable, Iterator

import pytest

from calico_plugin.datastore.kv import KV, Change, Delete, Put, WatchStream
from calico_plugin.datastore.watch import Changes, Listed, Watch
from calico_plugin.deadline import Deadline
from calico_plugin.errors import Compacted

Soon = Callable[[], Deadline]


def changes_of(stream: WatchStream) -> Iterator[Change]:
    """One by one: a late watch gets several revisions in one batch."""
    return (change for batch in stream for change in batch)


def batches(stream: WatchStream) -> Iterator[tuple[Change, ...]]:
    """Only those that carry changes."""
    return (batch for batch in stream if batch)


def test_first_batch_is_empty(any_kv: KV, soon: Soon) -> None:
    """The stream says when it is in force, before anything has changed."""
    revision = any_kv.put("/t/a", b"1", soon())
    stream = any_kv.watch("/t/", revision + 1)
    assert next(iter(stream)) == ()
    stream.close()


def test_changes_in_order_with_previous_values(any_kv: KV, soon: Soon) -> None:
    """Create, change and delete come in order, each with what was there before."""
    revision = any_kv.list("/t/", soon()).revision
    stream = any_kv.watch("/t/", revision + 1)
    created = any_kv.create("/t/a", b"1", soon())
    changed = any_kv.replace("/t/a", b"2", created, soon())
    any_kv.put("/elsewhere", b"x", soon())
    any_kv.delete("/t/a", soon())
    one, two, three = islice(changes_of(stream), 3)
    stream.close()
    assert one.item and one.previous is None and (one.item.value, one.revision) == (b"1", created)
    assert two.item and two.previous and (two.item.value, two.previous.value, two.revision) == (b"2", b"1", changed)
    assert two.item.create_revision == created
    assert three.item is None and three.previous and three.previous.value == b"2" and three.revision > changed


def test_from_the_past(any_kv: KV, soon: Soon) -> None:
    """A watch from an old revision delivers from exactly that one on, and then what comes new."""
    revisions = [any_kv.put("/t/a", str(number).encode(), soon()) for number in range(5)]
    stream = any_kv.watch("/t/", revisions[2])
    changes = changes_of(stream)
    assert [change.revision for change in islice(changes, 3)] == revisions[2:]
    new = any_kv.put("/t/a", b"new", soon())
    assert next(changes).revision == new
    stream.close()


def test_a_revision_is_never_split(any_kv: KV, soon: Soon) -> None:
    """All changes of one commit come in one batch, also many of them."""
    revision = any_kv.list("/t/", soon()).revision
    stream = any_kv.watch("/t/", revision + 1)
    it = iter(stream)
    assert next(it) == ()
    any_kv.commit((), [Put(f"/t/{number:03}", b"x" * 10_000) for number in range(100)], soon())
    assert len(next(it)) == 100
    any_kv.commit((), [Delete(f"/t/{number:03}") for number in range(100)], soon())
    gone = next(it)
    stream.close()
    assert [change.key for change in gone] == [f"/t/{number:03}" for number in range(100)]
    assert all(change.item is None for change in gone)


def test_several_prefixes_in_one_stream(any_kv: KV, soon: Soon) -> None:
    """Each prefix goes from its own start; a batch belongs to one of them."""
    a = any_kv.put("/a/1", b"x", soon())
    b = any_kv.put("/b/1", b"x", soon())
    stream = any_kv.watch_many({"/a/": b + 1, "/b/": a})
    assert [change.key for change in next(batches(stream))] == ["/b/1"]
    any_kv.commit((), (Put("/a/2", b"x"), Put("/b/2", b"x"), Put("/c/2", b"x")), soon())
    seen = {tuple(change.key for change in batch) for batch in islice(batches(stream), 2)}
    stream.close()
    assert seen == {("/a/2",), ("/b/2",)}


def test_next_revisions_resume_without_gap_or_double(any_kv: KV, soon: Soon) -> None:
    """A second stream that goes on where the first ended sees each change once."""
    first = any_kv.put("/t/a", b"1", soon())
    stream = any_kv.watch("/t/", first)
    next(batches(stream))
    any_kv.put("/t/a", b"2", soon())
    stream.close()
    second = any_kv.watch_many(stream.next_revisions)
    any_kv.put("/t/a", b"3", soon())
    values = [change.item and change.item.value for change in islice(changes_of(second), 2)]
    second.close()
    assert values == [b"2", b"3"]


def test_compacted_start(any_kv: KV, soon: Soon) -> None:
    """History that is gone ends the stream with Compacted, also when the start is exactly the compacted revision."""
    any_kv.put("/t/a", b"1", soon())
    any_kv.delete("/t/a", soon())
    revision = any_kv.list("/t/", soon()).revision
    any_kv.put("/t/b", b"1", soon())
    any_kv.compact(revision, soon())
    for start in (revision - 1, revision):
        with pytest.raises(Compacted):
            list(islice(changes_of(any_kv.watch("/t/", start)), 1))
    stream = any_kv.watch("/t/", revision + 1)
    assert [change.key for change in next(batches(stream))] == ["/t/b"]
    stream.close()


def test_start_in_the_future(any_kv: KV, soon: Soon) -> None:
    """An etcd that is behind what was seen (set back, or another one) is not waited for: list again."""
    revision = any_kv.put("/t/a", b"1", soon())
    with pytest.raises(Compacted):
        list(islice(any_kv.watch("/t/", revision + 1000), 1))


def test_close_from_another_thread(any_kv: KV, soon: Soon) -> None:
    """A consumer that waits for changes returns when another thread closes the stream."""
    stream = any_kv.watch("/t/", any_kv.list("/t/", soon()).revision + 1)
    in_force, ended = threading.Event(), threading.Event()

    def consume() -> None:
        for _ in stream:
            in_force.set()
        ended.set()

    threading.Thread(target=consume, daemon=True).start()
    assert in_force.wait(20)
    stream.close()
    assert ended.wait(5)
    stream.close()


def test_close_before_iterating(any_kv: KV, soon: Soon) -> None:
    """A stream closed before it was used yields nothing that matters and ends."""
    stream = any_kv.watch("/t/", 1)
    stream.close()
    assert not list(batches(stream))


def test_many_changes_arrive_all(any_kv: KV, soon: Soon) -> None:
    """More changes than etcd's buffer for a slow consumer: none is lost, order is kept."""
    start = any_kv.list("/t/", soon()).revision + 1
    stream = any_kv.watch("/t/", start)
    it = iter(stream)
    next(it)
    total = 1500
    written = [any_kv.put(f"/t/{number % 7}", str(number).encode(), soon()) for number in range(total)]
    seen: list[int] = []
    while len(seen) < total:
        seen.extend(change.revision for change in next(it))
    stream.close()
    assert seen == written


def test_watch_lists_then_follows(any_kv: KV, soon: Soon) -> None:
    """First everything at one revision, then the stream in force, then what changes."""
    any_kv.put("/a/1", b"x", soon())
    any_kv.put("/b/1", b"x", soon())
    any_kv.put("/c/1", b"x", soon())
    watch = Watch(any_kv, ("/a/", "/b/"))
    events = iter(watch)
    listed = next(events)
    assert isinstance(listed, Listed)
    assert {prefix: [item.key for item in items] for prefix, items in listed.items.items()} == {
        "/a/": ["/a/1"],
        "/b/": ["/b/1"],
    }
    assert next(events) == Changes(())
    any_kv.delete("/b/1", soon())
    change = next(events)
    assert isinstance(change, Changes) and [(x.key, x.item) for x in change.changes] == [("/b/1", None)]
    watch.close()
    assert list(events) == []


def test_watch_refuses_overlapping_prefixes(any_kv: KV) -> None:
    """A key belongs to one prefix."""
    with pytest.raises(ValueError, match="overlap"):
        Watch(any_kv, ("/a/", "/b/", "/a/x/"))
