"""Three real members on loopback: frozen, killed, without a leader. Nothing is lost and nothing hangs."""

from __future__ import annotations

import threading
import time
from typing import Iterator

import pytest

from calico_plugin.datastore.etcd import EtcdKV, connect
from calico_plugin.deadline import Deadline
from calico_plugin.errors import Conflict, DatastoreError, DatastoreUnavailable, DeadlineExceeded
from tests.etcd_server import Cluster, Member, etcd_cluster, wait_ready
from tests.follower import Follower


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with etcd_cluster(tmp_path_factory.mktemp("three"), size=3) as cluster:
        yield cluster


@pytest.fixture
def cluster(three: Cluster) -> Iterator[Cluster]:
    """All three members up and emptied, before and after each test."""
    yield three
    for member in three.members:
        if member.process is None:
            three.restart(member)
        member.thaw()
    wait_ready(three.endpoints)


@pytest.fixture
def client(cluster: Cluster) -> Iterator[EtcdKV]:
    client = connect(cluster.endpoints, source="the tests")
    client.delete_prefix("", Deadline(20))
    yield client
    client.close()


def in_use(cluster: Cluster, client: EtcdKV) -> Member:
    """The member that the client talks to."""
    url = client._transport.member().url
    return next(member for member in cluster.members if member.client_url == url)


def test_frozen_member_is_left(cluster: Cluster, client: EtcdKV) -> None:
    """A member that hangs costs one call a try; the next ones go to another member from the start."""
    revision = client.create("/t/a", b"1", Deadline(20))
    frozen = in_use(cluster, client)
    frozen.freeze()
    revision = client.replace("/t/a", b"2", revision, Deadline(20))
    assert in_use(cluster, client) is not frozen
    client.replace("/t/a", b"3", revision, Deadline(20))
    assert in_use(cluster, client) is not frozen


def test_killed_member_is_left(cluster: Cluster, client: EtcdKV) -> None:
    """kill -9 of the member in use: the same call succeeds at another."""
    client.create("/t/a", b"1", Deadline(20))
    in_use(cluster, client).kill()
    item = client.get("/t/a", Deadline(20))
    assert item is not None and item.value == b"1"
    client.put("/t/b", b"1", Deadline(20))


def test_watch_leaves_a_frozen_member(cluster: Cluster, client: EtcdKV) -> None:
    """The watch notices within seconds that its member hangs, and goes on at another without a gap."""
    follower = Follower(client, ("/t/",)).start()
    try:
        follower.wait_in_sync(Deadline(20))
        in_use(cluster, client).freeze()
        writer = connect([m.client_url for m in cluster.members if m is not in_use(cluster, client)], source="tests")
        for number in range(20):
            writer.put(f"/t/{number}", b"x", Deadline(20))
        writer.close()
        started = time.monotonic()
        follower.wait_for(lambda f: len(f.items()) == 20, Deadline(30), "all writes")
        assert time.monotonic() - started < 20
    finally:
        follower.close()


def test_no_quorum_is_said_and_ends(cluster: Cluster, client: EtcdKV) -> None:
    """One member of three: calls fail in time, the watch says that it is broken, and all comes back with the others."""
    follower = Follower(client, ("/t/",)).start()
    try:
        follower.wait_in_sync(Deadline(20))
        others = [member for member in cluster.members if member is not in_use(cluster, client)]
        for member in others:
            member.kill()
        started = time.monotonic()
        with pytest.raises(DatastoreUnavailable, match="etcd"):
            client.put("/t/a", b"1", Deadline(8))
        assert time.monotonic() - started < 12
        over = Deadline(30)
        while follower.in_sync and not over.expired():
            time.sleep(0.05)
        assert not follower.in_sync and follower.error is not None
        for member in others:
            cluster.restart(member)
        client.put("/t/b", b"1", Deadline(30))
        follower.wait_for(lambda f: f.in_sync and f.get("/t/b"), Deadline(30), "the write")
    finally:
        follower.close()


def test_close_while_the_member_hangs(cluster: Cluster, client: EtcdKV) -> None:
    """A watch closes at once although etcd answers nothing, in the list as in the stream."""
    following = Follower(client, ("/t/",)).start()
    following.wait_in_sync(Deadline(20))
    for member in cluster.members:
        member.freeze()
    listing = Follower(client, ("/t/",)).start()
    with pytest.raises(DeadlineExceeded):
        listing.wait_in_sync(Deadline(0.3))
    for one in (listing, following):
        started = time.monotonic()
        one.close()
        assert time.monotonic() - started < 2


def test_counter_is_exact_through_kills_and_elections(cluster: Cluster, client: EtcdKV) -> None:
    """Increments from four clients while members are killed and frozen in turn: each success counts once.

    A write that ends in doubt may count or not; all others are exact. Each value names its writer (see `kv`).
    """
    client.create("/t/n", b"0", Deadline(20))
    follower = Follower(client, ("/t/",)).start()
    stop = threading.Event()
    done, doubtful = [0] * 4, [0] * 4

    def increment(index: int) -> None:
        own = connect(cluster.endpoints[index % 3 :] + cluster.endpoints[: index % 3], source="the tests")
        while not stop.is_set():
            try:
                item = own.get("/t/n", Deadline(10))
                assert item is not None
                count = int(item.value.split()[0]) + 1
                own.replace("/t/n", f"{count} {index} {done[index]}".encode(), item.revision, Deadline(10))
                done[index] += 1
            except Conflict:
                continue
            except DatastoreError as error:
                doubtful[index] += getattr(error, "maybe_applied", False)
        own.close()

    threads = [threading.Thread(target=increment, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for member in cluster.members:
        member.kill()
        stop.wait(1.0)
        cluster.restart(member)
        wait_ready([member.client_url])
        member.freeze()
        stop.wait(1.5)
        member.thaw()
        stop.wait(0.5)
    stop.set()
    for thread in threads:
        thread.join(60)
    item = client.get("/t/n", Deadline(20))
    assert item is not None
    follower.wait_for(lambda f: f.get("/t/n") == item, Deadline(20), "the last value, through all changes of leader")
    follower.close()
    assert sum(done) <= int(item.value.split()[0]) <= sum(done) + sum(doubtful)
    assert sum(done) > 50
