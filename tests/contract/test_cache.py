"""Watch and Cache on every KV: one view without gaps through broken streams, compaction and lists."""

from __future__ import annotations

import queue
import threading
from typing import Callable, Iterator

import pytest

from calico_plugin.datastore.cache import Cache, View
from calico_plugin.datastore.kv import KV, Change, Compare, Delete, Put
from calico_plugin.datastore.watch import Changes, Listed, Watch
from calico_plugin.deadline import Deadline
from calico_plugin.errors import DeadlineExceeded

Soon = Callable[[], Deadline]
PREFIXES = ("/a/", "/b/")


@pytest.fixture
def cache(any_kv: KV) -> Iterator[Cache]:
    """Not started, so that a test can prepare."""
    cache = Cache(any_kv, PREFIXES, name="test")
    yield cache
    cache.close()


def contents(cache: Cache) -> dict[str, bytes]:
    return {item.key: item.value for prefix in PREFIXES for item in cache.items(prefix)}


def test_watch_lists_then_follows(any_kv: KV, soon: Soon) -> None:
    """First everything at one revision, then the stream in force, then what changes."""
    any_kv.put("/a/1", b"x", soon())
    any_kv.put("/b/1", b"x", soon())
    any_kv.put("/c/1", b"x", soon())
    watch = Watch(any_kv, PREFIXES)
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


def test_cache_follows(any_kv: KV, cache: Cache, soon: Soon) -> None:
    """What is written is read from memory soon after; deletes go; other prefixes are not there."""
    any_kv.put("/a/1", b"1", soon())
    cache.start().wait_in_sync(soon())
    assert contents(cache) == {"/a/1": b"1"} and cache.in_sync and cache.last_error is None
    any_kv.commit((Compare("/b/1", 0),), (Put("/b/1", b"1"), Put("/a/2", b"2"), Delete("/a/1")), soon())
    cache.wait_for(lambda c: contents(c) == {"/a/2": b"2", "/b/1": b"1"}, soon(), "both writes")
    found = cache.get("/b/1")
    assert found is not None and found.revision == found.create_revision
    assert cache.get("/a/1") is None
    with pytest.raises(KeyError):
        cache.get("/c/1")


def test_items_in_key_order_also_of_a_narrower_prefix(any_kv: KV, cache: Cache, soon: Soon) -> None:
    """Lists are sorted whatever the order of writes."""
    cache.start().wait_in_sync(soon())
    for key in ("/a/y/2", "/a/x/1", "/a/y/1"):
        any_kv.put(key, b"", soon())
    cache.wait_for(lambda c: len(c.items("/a/")) == 3, soon(), "the writes")
    assert [item.key for item in cache.items("/a/")] == ["/a/x/1", "/a/y/1", "/a/y/2"]
    assert [item.key for item in cache.items("/a/y/")] == ["/a/y/1", "/a/y/2"]


def test_subscribers_hear_everything_once(any_kv: KV, cache: Cache, soon: Soon) -> None:
    """The first content comes as changes; what a subscriber is told it finds in the cache already."""
    any_kv.put("/a/1", b"1", soon())
    told: queue.Queue[tuple[Change, bool]] = queue.Queue()

    def subscriber(changes: tuple[Change, ...]) -> None:
        for change in changes:
            told.put((change, cache.get(change.key) == change.item))

    def heard() -> tuple[bytes | None, bytes | None]:
        change, visible = told.get(timeout=20)
        assert visible
        return change.previous and change.previous.value, change.item and change.item.value

    cache.on_change(subscriber)
    cache.start().wait_in_sync(soon())
    assert heard() == (None, b"1")
    any_kv.put("/a/1", b"2", soon())
    assert heard() == (b"1", b"2")
    any_kv.delete("/a/1", soon())
    assert heard() == (b"2", None)
    assert told.empty()


def test_failing_subscriber_stops_nobody(any_kv: KV, cache: Cache, soon: Soon) -> None:
    """An exception of one subscriber is logged; the cache and the others go on."""
    heard = threading.Event()

    def broken(changes: tuple[Change, ...]) -> None:
        raise RuntimeError("a mistake in a subscriber")

    cache.on_change(broken)
    cache.on_change(lambda changes: heard.set())
    cache.start().wait_in_sync(soon())
    any_kv.put("/a/1", b"1", soon())
    assert heard.wait(20)


def test_view_builds_once_per_change(any_kv: KV, cache: Cache, soon: Soon) -> None:
    """A view of a prefix is made anew after a change of it, and not after one of another prefix."""
    built: list[int] = []
    view = View(cache, "/a/", lambda items: built.append(1) or [item.value for item in items])
    cache.start().wait_in_sync(soon())
    assert view() == [] and view() == []
    any_kv.put("/b/1", b"1", soon())
    cache.wait_for(lambda c: c.get("/b/1"), soon(), "the other write")
    assert view() == [] and len(built) == 1
    any_kv.put("/a/1", b"1", soon())
    cache.wait_for(lambda c: c.get("/a/1"), soon(), "the write")
    assert view() == [b"1"] and len(built) == 2


def test_wait_for_ends_with_the_deadline(cache: Cache, soon: Soon) -> None:
    """What never comes true ends with an error that names it."""
    cache.start().wait_in_sync(soon())
    with pytest.raises(DeadlineExceeded, match="the moon"):
        cache.wait_for(lambda c: None, Deadline(0.2), "the moon")


def test_close_ends_waiters(cache: Cache, soon: Soon) -> None:
    """A thread that waits for a change is not left behind by close."""
    cache.start().wait_in_sync(soon())
    ended = threading.Event()

    def wait() -> None:
        with pytest.raises(DeadlineExceeded):
            cache.wait_for(lambda c: None, soon(), "nothing")
        ended.set()

    threading.Thread(target=wait, daemon=True).start()
    cache.close()
    assert ended.wait(5)
