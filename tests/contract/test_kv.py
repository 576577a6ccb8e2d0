"""What every KV does: values, revisions, compares, and the errors of each verb."""

from __future__ import annotations

import threading
from typing import Callable

import pytest

from calico_plugin.datastore.kv import KV, Compare, Delete, Put
from calico_plugin.deadline import Deadline
from calico_plugin.errors import AlreadyExists, Compacted, Conflict, DatastoreUnavailable, DeadlineExceeded, NotFound

Soon = Callable[[], Deadline]


def test_create_then_get(any_kv: KV, soon: Soon) -> None:
    """A created key has its bytes, and the commit's revision as both of its revisions."""
    revision = any_kv.create("/t/a", b"\x00\xff{}", soon())
    item = any_kv.get("/t/a", soon())
    assert item is not None
    assert (item.key, item.value, item.lease) == ("/t/a", b"\x00\xff{}", 0)
    assert (item.revision, item.create_revision) == (revision, revision)


def test_absent_key_is_none(any_kv: KV, soon: Soon) -> None:
    """Reading what is not there is no error."""
    assert any_kv.get("/t/none", soon()) is None


def test_empty_value_is_a_value(any_kv: KV, soon: Soon) -> None:
    """A key that holds nothing exists."""
    any_kv.create("/t/empty", b"", soon())
    item = any_kv.get("/t/empty", soon())
    assert item is not None and item.value == b""


def test_create_twice_shows_what_is_stored(any_kv: KV, soon: Soon) -> None:
    """The second creator gets AlreadyExists with the first one's value, and changes nothing."""
    revision = any_kv.create("/t/a", b"1", soon())
    with pytest.raises(AlreadyExists) as caught:
        any_kv.create("/t/a", b"2", soon())
    assert (caught.value.current.value, caught.value.current.revision) == (b"1", revision)


def test_replace_needs_the_revision(any_kv: KV, soon: Soon) -> None:
    """Of two writers that read the same, the second gets Conflict that names both revisions."""
    read = any_kv.create("/t/a", b"1", soon())
    first = any_kv.replace("/t/a", b"2", read, soon())
    assert first > read
    with pytest.raises(Conflict) as caught:
        any_kv.replace("/t/a", b"3", read, soon())
    assert caught.value.current.value == b"2"
    assert str(read) in str(caught.value) and str(first) in str(caught.value)
    kept = any_kv.get("/t/a", soon())
    assert kept is not None and (kept.value, kept.create_revision) == (b"2", read)


def test_replace_of_nothing(any_kv: KV, soon: Soon) -> None:
    """Replacing a key that is gone is NotFound."""
    with pytest.raises(NotFound, match="/t/none"):
        any_kv.replace("/t/none", b"x", 1, soon())


def test_delete_gives_what_was_there(any_kv: KV, soon: Soon) -> None:
    """Delete returns the last value; a second delete is NotFound."""
    any_kv.create("/t/a", b"1", soon())
    assert any_kv.delete("/t/a", soon()).value == b"1"
    with pytest.raises(NotFound):
        any_kv.delete("/t/a", soon())


def test_delete_at_a_revision(any_kv: KV, soon: Soon) -> None:
    """A guarded delete refuses a key that has changed, and a key that is gone."""
    old = any_kv.create("/t/a", b"1", soon())
    new = any_kv.replace("/t/a", b"2", old, soon())
    with pytest.raises(Conflict):
        any_kv.delete("/t/a", soon(), revision=old)
    assert any_kv.delete("/t/a", soon(), revision=new).value == b"2"
    with pytest.raises(NotFound):
        any_kv.delete("/t/a", soon(), revision=new)


def test_create_after_delete_is_a_new_key(any_kv: KV, soon: Soon) -> None:
    """A key that comes back has a new create_revision, and its old revision is of no use."""
    old = any_kv.create("/t/a", b"1", soon())
    any_kv.delete("/t/a", soon())
    new = any_kv.create("/t/a", b"1", soon())
    item = any_kv.get("/t/a", soon())
    assert item is not None and item.create_revision == new > old
    with pytest.raises(Conflict):
        any_kv.delete("/t/a", soon(), revision=old)


def test_list_is_ordered_and_bounded_by_the_prefix(any_kv: KV, soon: Soon) -> None:
    """A prefix with its slash matches no longer word, and keys come in order."""
    for key in ("/t/pools/b", "/t/pools/a", "/t/pools2/c", "/t/pool"):
        any_kv.put(key, b"x", soon())
    listing = any_kv.list("/t/pools/", soon())
    assert [item.key for item in listing.items] == ["/t/pools/a", "/t/pools/b"]
    assert listing.revision >= max(item.revision for item in listing.items)


def test_list_of_nothing_has_a_revision(any_kv: KV, soon: Soon) -> None:
    """An empty listing still says where a watch goes on."""
    written = any_kv.put("/t/other", b"x", soon())
    listing = any_kv.list("/t/none/", soon())
    assert listing.items == () and listing.revision == written


def test_list_of_keys_only(any_kv: KV, soon: Soon) -> None:
    """Without values, everything else is there."""
    revision = any_kv.create("/t/a", b"long", soon())
    (item,) = any_kv.list("/t/", soon(), keys_only=True).items
    assert (item.key, item.value, item.revision) == ("/t/a", b"", revision)


def test_list_in_the_past(any_kv: KV, soon: Soon) -> None:
    """A list at a revision shows what was there then; once compacted it raises Compacted."""
    first = any_kv.create("/t/a", b"1", soon())
    any_kv.create("/t/b", b"1", soon())
    last = any_kv.replace("/t/a", b"2", first, soon())
    assert [item.value for item in any_kv.list("/t/", soon(), revision=first).items] == [b"1"]
    any_kv.compact(last, soon())
    with pytest.raises(Compacted):
        any_kv.list("/t/", soon(), revision=first)
    assert len(any_kv.list("/t/", soon()).items) == 2


def test_get_many(any_kv: KV, soon: Soon) -> None:
    """Each key asked for is in the answer, the absent ones as None; more keys than one transaction of etcd takes."""
    for number in range(0, 300, 2):
        any_kv.put(f"/t/{number}", str(number).encode(), soon())
    found = any_kv.get_many([f"/t/{number}" for number in range(300)], soon())
    assert len(found) == 300
    for number in range(300):
        item = found[f"/t/{number}"]
        assert (item.value if item else None) == (None if number % 2 else str(number).encode())
    assert any_kv.get_many([], soon()) == {}


def test_commit_is_all_or_nothing(any_kv: KV, soon: Soon) -> None:
    """All operations get one revision when all compares hold."""
    a = any_kv.create("/t/a", b"1", soon())
    b = any_kv.create("/t/b", b"1", soon())
    commit = any_kv.commit(
        (Compare("/t/a", a), Compare("/t/b", b), Compare("/t/c", 0)),
        (Put("/t/a", b"2"), Delete("/t/b"), Put("/t/c", b"2")),
        soon(),
    )
    assert commit.succeeded and commit.current == {}
    found = any_kv.get_many(["/t/a", "/t/b", "/t/c"], soon())
    assert found["/t/b"] is None
    assert {item.revision for item in found.values() if item} == {commit.revision}


def test_failed_commit_shows_all_compared_keys(any_kv: KV, soon: Soon) -> None:
    """When one compare fails nothing is done, and the caller learns what each compared key holds."""
    a = any_kv.create("/t/a", b"1", soon())
    b = any_kv.create("/t/b", b"1", soon())
    any_kv.replace("/t/b", b"2", b, soon())
    commit = any_kv.commit(
        (Compare("/t/a", a), Compare("/t/b", b), Compare("/t/c", 0)), (Put("/t/a", b"9"), Put("/t/d", b"9")), soon()
    )
    assert not commit.succeeded
    assert {key: item and item.value for key, item in commit.current.items()} == {
        "/t/a": b"1",
        "/t/b": b"2",
        "/t/c": None,
    }
    assert any_kv.get("/t/d", soon()) is None


def test_commit_deletes_what_is_absent(any_kv: KV, soon: Soon) -> None:
    """A delete in a commit has nothing against a key that is gone."""
    assert any_kv.commit((), (Delete("/t/none"), Put("/t/a", b"1")), soon()).succeeded


def test_commit_that_relies_on_a_whole_list(any_kv: KV, soon: Soon) -> None:
    """A compare over a prefix fails once any key under it was put after the list, and does not see other keys."""
    any_kv.put("/t/a/1", b"1", soon())
    listed = any_kv.list("/t/a/", soon()).revision
    any_kv.put("/t/b", b"1", soon())
    assert any_kv.commit((Compare("/t/a/", listed, prefix=True),), (Put("/t/c", b"1"),), soon()).succeeded
    assert any_kv.commit((Compare("/t/none/", listed, prefix=True),), (Put("/t/c", b"1"),), soon()).succeeded
    any_kv.put("/t/a/2", b"1", soon())
    assert not any_kv.commit((Compare("/t/a/", listed, prefix=True),), (Put("/t/c", b"2"),), soon()).succeeded


def test_put_is_blind(any_kv: KV, soon: Soon) -> None:
    """Put creates and overwrites."""
    first = any_kv.put("/t/a", b"1", soon())
    second = any_kv.put("/t/a", b"2", soon())
    item = any_kv.get("/t/a", soon())
    assert item is not None and (item.value, item.create_revision, item.revision) == (b"2", first, second)


def test_key_with_time_to_live_goes(any_kv: KV, soon: Soon) -> None:
    """A key with a ttl has a lease and vanishes by itself, which a watch sees as a delete."""
    revision = any_kv.put("/t/alive", b"1", soon(), ttl=2)
    item = any_kv.get("/t/alive", soon())
    assert item is not None and item.lease
    stream = any_kv.watch("/t/", revision + 1)
    (change,) = next(batch for batch in stream if batch)
    stream.close()
    assert change.item is None and change.previous is not None and change.previous.value == b"1"


def test_delete_prefix(any_kv: KV, soon: Soon) -> None:
    """All keys of the prefix go, others stay; the answer says how many."""
    for key in ("/t/a/1", "/t/a/2", "/t/ab"):
        any_kv.put(key, b"x", soon())
    assert any_kv.delete_prefix("/t/a/", soon()) == 2
    assert any_kv.delete_prefix("/t/a/", soon()) == 0
    assert [item.key for item in any_kv.list("/t/", soon()).items] == ["/t/ab"]


def test_keys_are_text(any_kv: KV, soon: Soon) -> None:
    """Keys beyond ASCII, and prefixes that end in the highest byte of a range, work."""
    any_kv.put("/t/é/1", b"x", soon())
    any_kv.put("/t/\U0010ffff", b"y", soon())
    assert [item.key for item in any_kv.list("/t/é/", soon()).items] == ["/t/é/1"]
    assert [item.value for item in any_kv.list("/t/\U0010ffff", soon()).items] == [b"y"]


def test_two_writers_lose_nothing(any_kv: KV, soon: Soon) -> None:
    """Concurrent compare-and-swap increments add up: each success was alone."""
    any_kv.create("/t/n", b"0", soon())

    def add(times: int) -> None:
        for _ in range(times):
            while True:
                item = any_kv.get("/t/n", soon())
                assert item is not None
                try:
                    any_kv.replace("/t/n", str(int(item.value) + 1).encode(), item.revision, soon())
                    break
                except Conflict:
                    continue

    threads = [threading.Thread(target=add, args=(25,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    item = any_kv.get("/t/n", soon())
    assert item is not None and item.value == b"100"


def test_one_creator_wins(any_kv: KV, soon: Soon) -> None:
    """Of many creators of one key exactly one succeeds."""
    outcomes: list[bool] = []

    def create(number: int) -> None:
        try:
            any_kv.create("/t/one", str(number).encode(), soon())
            outcomes.append(True)
        except AlreadyExists:
            outcomes.append(False)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(outcomes) == [False] * 7 + [True]


def test_time_that_is_over(any_kv: KV) -> None:
    """With no time left nothing is sent; the error says that etcd was waited for."""
    with pytest.raises(DeadlineExceeded, match="etcd"):
        any_kv.get("/t/a", Deadline(0))


def test_after_close(any_kv: KV, soon: Soon) -> None:
    """A closed store refuses, by a datastore error."""
    any_kv.close()
    with pytest.raises(DatastoreUnavailable, match="etcd"):
        any_kv.get("/t/a", soon())


def test_status_names_a_version(any_kv: KV, soon: Soon) -> None:
    """Each endpoint answers with its version."""
    assert all(version.startswith("3.") for version in any_kv.status(soon()).values())
