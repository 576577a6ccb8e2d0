"""The overlay that dry runs write to: like a datastore for who writes, without a trace in the one below."""

from __future__ import annotations

from typing import Callable

import pytest

from calico_plugin.datastore.kv import KV, Compare, Delete, Put
from calico_plugin.datastore.overlay import OverlayKV
from calico_plugin.deadline import Deadline
from calico_plugin.errors import AlreadyExists, Conflict, NotFound

Soon = Callable[[], Deadline]


def test_writes_are_seen_above_and_not_below(any_kv: KV, soon: Soon) -> None:
    """Create, replace, put and delete, one after the other, on what is stored and on what would be."""
    any_kv.create("/t/a", b"1", soon())
    any_kv.create("/t/gone", b"1", soon())
    over = OverlayKV(any_kv)
    read = over.get("/t/a", soon())
    assert read
    second = over.replace("/t/a", b"2", read.revision, soon())
    over.replace("/t/a", b"3", second, soon())
    over.create("/t/b", b"new", soon())
    over.put("/t/c", b"put", soon())
    over.delete("/t/gone", soon())
    assert [(item.key, item.value) for item in over.list("/t/", soon()).items] == [
        ("/t/a", b"3"), ("/t/b", b"new"), ("/t/c", b"put")
    ]
    assert [(item.key, item.value) for item in any_kv.list("/t/", soon()).items] == [("/t/a", b"1"), ("/t/gone", b"1")]


def test_errors_are_those_of_a_datastore(any_kv: KV, soon: Soon) -> None:
    """Exists already, does not exist, was changed meanwhile."""
    any_kv.create("/t/a", b"1", soon())
    over = OverlayKV(any_kv)
    with pytest.raises(AlreadyExists):
        over.create("/t/a", b"2", soon())
    with pytest.raises(NotFound):
        over.delete("/t/none", soon())
    with pytest.raises(NotFound):
        over.replace("/t/none", b"", 1, soon())
    with pytest.raises(Conflict):
        over.replace("/t/a", b"2", 1, soon())
    with pytest.raises(Conflict):
        over.delete("/t/a", soon(), revision=1)


def test_commit_holds_or_not(any_kv: KV, soon: Soon) -> None:
    """Compares on keys and prefixes look at what would be."""
    any_kv.create("/t/a", b"1", soon())
    over = OverlayKV(any_kv)
    assert over.commit([Compare("/t/b", 0)], [Put("/t/b", b"x"), Delete("/t/a")], soon()).succeeded
    lost = over.commit([Compare("/t/b", 0)], [Put("/t/b", b"y")], soon())
    found = over.get("/t/b", soon())
    assert not lost.succeeded and lost.current["/t/b"] == found and found and found.value == b"x"
    assert not over.commit([Compare("/t/", 1, prefix=True)], [], soon()).succeeded
    assert over.get("/t/a", soon()) is None and over.delete_prefix("/t/", soon()) == 1
    assert any_kv.get("/t/b", soon()) is None
