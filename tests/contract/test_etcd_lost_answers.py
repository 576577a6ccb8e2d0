"""Writes whose answer is lost between etcd and us: done once, reported as done, never a conflict with oneself."""

from __future__ import annotations

from typing import Callable, Iterator
from urllib.parse import urlsplit

import pytest

from calico_plugin.datastore.etcd import EtcdKV, connect
from calico_plugin.datastore.kv import Compare, Delete, Put
from calico_plugin.deadline import Deadline
from calico_plugin.errors import AlreadyExists, Conflict, DatastoreUnavailable
from tests.faulty_proxy import FaultyProxy
from tests.follower import Follower

Soon = Callable[[], Deadline]


@pytest.fixture
def proxy(etcd: str) -> Iterator[FaultyProxy]:
    port = urlsplit(etcd).port
    assert port
    proxy = FaultyProxy(port)
    yield proxy
    proxy.close()


@pytest.fixture
def far(proxy: FaultyProxy) -> Iterator[EtcdKV]:
    """A client that reaches etcd through the proxy; its connection is open already."""
    client = connect([proxy.url], source="the tests")
    client.get("/t", Deadline(20))
    yield client
    client.close()


def test_create(proxy: FaultyProxy, far: EtcdKV, kv: EtcdKV, soon: Soon) -> None:
    """A create whose answer was lost succeeds with the revision of the first try."""
    proxy.answers_to_lose = 1
    revision = far.create("/t/a", b"mine", soon())
    item = kv.get("/t/a", soon())
    assert proxy.lost == 1 and item is not None
    assert (item.revision, item.create_revision) == (revision, revision)


def test_create_of_what_another_has(proxy: FaultyProxy, far: EtcdKV, kv: EtcdKV, soon: Soon) -> None:
    """A lost refusal stays a refusal."""
    kv.create("/t/a", b"theirs", soon())
    proxy.answers_to_lose = 1
    with pytest.raises(AlreadyExists):
        far.create("/t/a", b"mine", soon())
    assert proxy.lost == 1


def test_replace(proxy: FaultyProxy, far: EtcdKV, kv: EtcdKV, soon: Soon) -> None:
    """A replace is stored once; the compare of the second try fails against our own change, which is seen through."""
    old = kv.create("/t/a", b"old", soon())
    proxy.answers_to_lose = 2
    revision = far.replace("/t/a", b"new", old, soon())
    item = kv.get("/t/a", soon())
    assert proxy.lost == 2 and item is not None and (item.value, item.revision) == (b"new", revision)
    assert kv.list("/t/", soon()).revision == revision


def test_replace_that_lost_to_another(proxy: FaultyProxy, far: EtcdKV, kv: EtcdKV, soon: Soon) -> None:
    """A change that was refused for good reason is a Conflict also when the refusal was lost."""
    old = kv.create("/t/a", b"old", soon())
    kv.replace("/t/a", b"theirs", old, soon())
    proxy.answers_to_lose = 1
    with pytest.raises(Conflict):
        far.replace("/t/a", b"new", old, soon())


def test_commit_then_changed_by_another(proxy: FaultyProxy, far: EtcdKV, kv: EtcdKV, soon: Soon) -> None:
    """Ours was done and then overwritten: the history of the key tells, and the answer is our revision."""
    base = kv.create("/t/a", b"0", soon())
    ours = kv.commit((Compare("/t/a", base),), (Put("/t/a", b"1"), Put("/t/b", b"1")), soon()).revision
    kv.replace("/t/a", b"2", ours, soon())
    operations = (Put("/t/a", b"1"), Put("/t/b", b"1"))
    # The same request once more, after a lost answer that said "refused": what counts is that it is in the history.
    proxy.answers_to_lose = 1
    commit = far.commit((Compare("/t/a", base),), operations, soon())
    assert commit.succeeded and commit.revision == ours


def test_commit_of_deletes(proxy: FaultyProxy, far: EtcdKV, kv: EtcdKV, soon: Soon) -> None:
    """Gone is gone."""
    a, b = kv.create("/t/a", b"1", soon()), kv.create("/t/b", b"1", soon())
    proxy.answers_to_lose = 1
    commit = far.commit((Compare("/t/a", a), Compare("/t/b", b)), (Delete("/t/a"), Delete("/t/b")), soon())
    assert commit.succeeded and kv.list("/t/", soon()).items == ()


def test_commit_of_blind_deletes(proxy: FaultyProxy, far: EtcdKV, kv: EtcdKV, soon: Soon) -> None:
    """Deletes without a compare end in success whether or not the lost try had been carried out."""
    for key in ("/t/a", "/t/b"):
        kv.create(key, b"1", soon())
    proxy.answers_to_lose = 1
    assert far.commit((), (Delete("/t/a"), Delete("/t/b")), soon()).succeeded
    assert proxy.lost == 1 and kv.list("/t/", soon()).items == ()


def test_commit_that_only_compares(proxy: FaultyProxy, far: EtcdKV, kv: EtcdKV, soon: Soon) -> None:
    """A question whether all is as it was read is asked again."""
    base = kv.create("/t/a", b"1", soon())
    proxy.answers_to_lose = 1
    assert far.commit((Compare("/t/a", base), Compare("/t/b", 0)), (), soon()).succeeded
    proxy.answers_to_lose = 1
    commit = far.commit((Compare("/t/a", base + 1),), (), soon())
    assert not commit.succeeded and commit.current["/t/a"] is not None


def test_commit_that_does_not_guard_itself(proxy: FaultyProxy, far: EtcdKV, kv: EtcdKV, soon: Soon) -> None:
    """A commit that would hold a second time too is not sent twice: the caller is told that it is in doubt."""
    base = kv.create("/t/lock", b"1", soon())
    proxy.answers_to_lose = 1
    with pytest.raises(DatastoreUnavailable, match="not known") as caught:
        far.commit((Compare("/t/lock", base),), (Put("/t/a", b"1"),), soon())
    item = kv.get("/t/a", soon())
    assert caught.value.maybe_applied and item is not None and item.revision == item.create_revision


@pytest.mark.parametrize("guarded", [True, False])
def test_delete(proxy: FaultyProxy, far: EtcdKV, kv: EtcdKV, soon: Soon, guarded: bool) -> None:
    """A delete whose answer was lost is no NotFound."""
    revision = kv.create("/t/a", b"1", soon())
    proxy.answers_to_lose = 1
    gone = far.delete("/t/a", soon(), revision=revision if guarded else None)
    assert proxy.lost == 1 and gone.key == "/t/a" and kv.get("/t/a", soon()) is None
    assert gone.value == (b"1" if guarded else b"")


def test_put(proxy: FaultyProxy, far: EtcdKV, kv: EtcdKV, soon: Soon) -> None:
    """A blind put is put again."""
    proxy.answers_to_lose = 1
    far.put("/t/a", b"1", soon())
    item = kv.get("/t/a", soon())
    assert item is not None and item.value == b"1"


def test_write_that_stays_unknown(proxy: FaultyProxy, far: EtcdKV, kv: EtcdKV) -> None:
    """When no answer ever comes, the error says that the change may be stored."""
    proxy.answers_to_lose = 1_000_000
    with pytest.raises(DatastoreUnavailable, match="not known") as caught:
        far.create("/t/a", b"1", Deadline(1.5))
    assert caught.value.maybe_applied


def test_refused_connection_is_no_doubt(proxy: FaultyProxy, far: EtcdKV) -> None:
    """A write that never left is not said to be in doubt."""
    proxy.close()
    far.close()
    other = connect([proxy.url], source="the tests")
    with pytest.raises(DatastoreUnavailable) as caught:
        other.create("/t/a", b"1", Deadline(0.7))
    other.close()
    assert not caught.value.maybe_applied


def test_watch_resumes_after_a_cut(proxy: FaultyProxy, far: EtcdKV, kv: EtcdKV, soon: Soon) -> None:
    """Changes made while the connection was down arrive, each once, without a new listing."""
    kv.put("/a/1", b"1", soon())
    follower = Follower(far, ("/a/",))
    follower.start().wait_in_sync(soon())
    proxy.cut()
    kv.delete("/a/1", soon())
    kv.put("/a/2", b"2", soon())
    kv.put("/a/2", b"3", soon())
    proxy.mend()
    follower.wait_for(lambda f: (item := f.get("/a/2")) and item.value == b"3", soon(), "the last write")
    follower.close()
    assert [change.item and change.item.value for change in follower.heard] == [b"1", None, b"2", b"3"]


def test_compaction_while_the_watch_is_down(proxy: FaultyProxy, far: EtcdKV, kv: EtcdKV, soon: Soon) -> None:
    """With its history gone, the watch lists again and tells what changed, deletes among it."""
    for name in ("kept", "changed", "deleted"):
        kv.put(f"/a/{name}", b"1", soon())
    follower = Follower(far, ("/a/", "/b/"))
    follower.start().wait_in_sync(soon())
    follower.heard.clear()
    proxy.cut()
    kv.put("/a/changed", b"2", soon())
    kv.put("/b/new", b"1", soon())
    kv.compact(_delete(kv, "/a/deleted"), soon())
    proxy.mend()
    follower.wait_for(lambda f: f.get("/b/new") and f.get("/a/deleted") is None, soon(), "the new listing")
    follower.close()
    told = {change.key: (change.previous, change.item) for change in follower.heard}
    values = {key: (old and old.value, new and new.value) for key, (old, new) in told.items()}
    assert values == {"/a/deleted": (b"1", None), "/a/changed": (b"1", b"2"), "/b/new": (None, b"1")}


def _delete(kv: EtcdKV, key: str) -> int:
    """Delete and return the revision at which it went."""
    kv.delete(key, Deadline(20))
    return kv.list(key, Deadline(20)).revision
