"""EtcdKV across forks and etcd restarts, on members of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

from calico_plugin.datastore.etcd import EtcdKV, connect
from calico_plugin.datastore.kv import Put
from calico_plugin.deadline import Deadline
from tests.etcd_server import etcd_cluster, wait_ready
from tests.follower import Follower

_FORKING = """
import os, sys
from calico_plugin.datastore.etcd import connect
from calico_plugin.deadline import Deadline
client = connect([sys.argv[1]])
children = []
for number in range(3):
    pid = os.fork()
    if pid == 0:
        client.put(f"/t/{number}", b"x", Deadline(10))
        os._exit(0)
    children.append(pid)
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
client.put("/t/parent", b"x", Deadline(10))
sys.exit(any(codes))
"""


def test_made_before_a_fork(kv: EtcdKV, etcd: str) -> None:
    """A client made in gunicorn's parent works in each worker, and in the parent afterwards."""
    subprocess.run([sys.executable, "-c", _FORKING, etcd], check=True, timeout=60)
    assert [item.key for item in kv.list("/t/", Deadline(20)).items] == ["/t/0", "/t/1", "/t/2", "/t/parent"]


def test_restart_is_ridden_out(tmp_path: Path) -> None:
    """kill -9 and a restart of the only etcd: a call made meanwhile succeeds in its time, the watch comes back."""
    with etcd_cluster(tmp_path) as cluster:
        client = connect(cluster.endpoints)
        client.put("/t/a", b"1", Deadline(20))
        follower = Follower(client, ("/t/",)).start()
        follower.wait_in_sync(Deadline(20))
        (member,) = cluster.members
        member.kill()
        cluster.restart(member)
        client.put("/t/b", b"1", Deadline(20))
        follower.wait_for(lambda f: f.in_sync and f.get("/t/b") and f.get("/t/a"), Deadline(20), "both keys")
        follower.close()
        client.close()


def test_etcd_that_lost_its_data(tmp_path: Path) -> None:
    """An etcd that comes back empty, its revisions starting anew: the watch hears that everything is gone."""
    with etcd_cluster(tmp_path) as cluster:
        client = connect(cluster.endpoints)
        for number in range(20):
            client.put(f"/t/{number}", b"1", Deadline(20))
        follower = Follower(client, ("/t/",)).start()
        follower.wait_in_sync(Deadline(20))
        (member,) = cluster.members
        member.kill()
        shutil.rmtree(member.data_dir)
        cluster.restart(member)
        wait_ready(cluster.endpoints)
        client.put("/t/new", b"1", Deadline(20))
        wanted = ["/t/new"]
        follower.wait_for(lambda f: [item.key for item in f.items()] == wanted, Deadline(20), "the new content")
        follower.close()
        client.close()


def test_long_list_in_bounded_pages(kv: EtcdKV) -> None:
    """Ten thousand keys (10 MB) are read in pages at one revision, without a later write in between."""
    for part in range(100):
        kv.commit((), [Put(f"/t/{part:03}-{number:03}", b"x" * 1000) for number in range(100)], Deadline(20))
    listing = kv.list("/t/", Deadline(20))
    keys = [item.key for item in listing.items]
    assert len(keys) == 10_000 and keys == sorted(keys) and len(set(keys)) == 10_000


def test_hung_single_endpoint_ends_in_time(tmp_path: Path) -> None:
    """SIGSTOP of the only etcd: calls end by their deadline, the watch is declared broken within some seconds."""
    with etcd_cluster(tmp_path) as cluster:
        client = connect(cluster.endpoints)
        follower = Follower(client, ("/t/",)).start()
        follower.wait_in_sync(Deadline(20))
        (member,) = cluster.members
        member.freeze()
        started = time.monotonic()
        over = Deadline(30)
        while follower.in_sync and not over.expired():
            time.sleep(0.05)
        assert time.monotonic() - started < 15
        member.thaw()
        client.put("/t/a", b"1", Deadline(20))
        follower.wait_for(lambda f: f.in_sync and f.get("/t/a"), Deadline(20), "the write")
        follower.close()
        client.close()
