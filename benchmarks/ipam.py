"""Addresses per second: ours beside the original's way, in one run.

    python -m benchmarks.ipam [--rounds 3] [--seconds 2] [--addresses 2000] [--endpoint URL] [--no-fsync]

On an empty pool, on one full of other hosts' blocks, and on one where every block is claimed, so that addresses have to
be borrowed. Each simulated host is a process of its own, its callers are threads, as in a driver. Every address has a
handle and attributes. An etcd of its own is started on this disk, with fsync, unless `--endpoint` names one that may be
emptied.
"""
from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import subprocess
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Callable, Iterator

from msgspec.structs import replace

from benchmarks.ipam_original import OriginalClient
from benchmarks.report import FOLDER, Report, percentile
from calico_plugin.datastore.etcd import EtcdKV, connect
from calico_plugin.datastore.kv import Put
from calico_plugin.datastore.watch import Watch
from calico_plugin.deadline import Deadline
from calico_plugin.driver.view import View
from calico_plugin.ipam import Allocator
from calico_plugin.ipam import block as arithmetic
from calico_plugin.ipam.cidr import parse as parse_cidr
from calico_plugin.ipam.pools import Pool
from calico_plugin.model import codec, keys
from calico_plugin.model.ipam import Affinity, AllocationAttribute
from calico_plugin.policy.selector import parse
from tests.etcd_server import free_port

POOL = "192.168.0.0/16"
MAX_BLOCKS = 1000
# (hosts, callers on each): the Go original's addresses/s on an empty pool, and with 60,000 addresses in use.
GO_ORIGINAL = {(1, 1): (77, 40), (1, 16): (33, 7), (8, 4): (201, 27)}
# What the pool looks like before: (blocks of other hosts, free addresses in each).
POOLS = {"empty": (0, 0), "60,000 in use": (938, 0), "every block claimed": (1024, 5)}
GOALS = {(1, 1): 5, (1, 16): 30, (8, 4): 10}


@dataclass(frozen=True)
class Task:
    """What one simulated host does."""

    endpoint: str
    host: str
    callers: int
    ours: bool
    addresses: int
    seconds: float


@dataclass(frozen=True)
class Outcome:
    rate: float
    p50: float
    p99: float
    errors: int


def assigner(task: Task, kv: EtcdKV) -> tuple[Callable[[str], None], Callable[[], None]]:
    """(assign one address for a handle, close)."""
    attributes = {"node": task.host, "timestamp": datetime.now(timezone.utc).isoformat()}
    if not task.ours:
        pool = Pool("pool", parse_cidr(POOL), 26)
        original = OriginalClient(kv, task.host, pool)
        return lambda handle: original.assign(handle, attributes, Deadline(60)), lambda: None
    view = View(task.host)
    watch = Watch(kv, view.prefixes)
    threading.Thread(target=view.follow, args=(watch,), daemon=True).start()
    view.wait_synced(Deadline(30))
    allocator = Allocator(kv, lambda text, labels: parse(text).match(labels), view)

    def assign(handle: str) -> None:
        allocator.auto_assign(
            task.host, 1, handle=handle, attributes=attributes, max_blocks=MAX_BLOCKS, deadline=Deadline(60)
        )

    return assign, watch.close


def run_host(task: Task, ready: Any, start: Any, results: Any) -> None:
    """One process: give addresses from all callers until the time or the number is up; sends (count, seconds,
    latencies, errors).
    """
    kv = connect([task.endpoint])
    assign, close = assigner(task, kv)
    assign(f"{task.host}-warm")
    latencies: list[list[float]] = [[] for _ in range(task.callers)]
    errors: list[str] = []

    def call(caller: int) -> None:
        until = begun + task.seconds
        for number in range(task.addresses // task.callers):
            before = time.monotonic()
            if before >= until:
                return
            try:
                assign(f"{task.host}-{caller}-{number}")
            except Exception as error:
                errors.append(repr(error))
                return
            latencies[caller].append(time.monotonic() - before)

    ready.put(task.host)
    start.wait()
    begun = time.monotonic()
    threads = [threading.Thread(target=call, args=(caller,)) for caller in range(task.callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spent = time.monotonic() - begun
    close()
    results.put((spent, [one for part in latencies for one in part], errors))


def measure(endpoint: str, hosts: int, callers: int, ours: bool, options: argparse.Namespace) -> Outcome:
    """All hosts at once; the rate is that of the whole cluster."""
    context = multiprocessing.get_context("spawn")
    ready, results, start = context.Queue(), context.Queue(), context.Event()
    processes = []
    for number in range(hosts):
        task = Task(endpoint, f"bench-{number}", callers, ours, options.addresses // hosts, options.seconds)
        processes.append(context.Process(target=run_host, args=(task, ready, start, results)))
        processes[-1].start()
    for _ in processes:
        ready.get(timeout=120)
    start.set()
    parts = [results.get(timeout=options.seconds + 120) for _ in processes]
    for process in processes:
        process.join()
    latencies = [one * 1000 for _, part, _ in parts for one in part]
    failures = [error for _, _, errors in parts for error in errors]
    if failures:
        print(f"{len(failures)} failed, first: {failures[0]}", flush=True)
    rate = len(latencies) / max(spent for spent, _, _ in parts)
    return Outcome(rate, percentile(latencies, 50), percentile(latencies, 99), len(failures))


def prepare(kv: EtcdKV, blocks: int, free: int) -> None:
    """An empty datastore with nodes and a pool, and so many blocks of other hosts with so many free addresses each."""
    deadline = Deadline(120)
    kv.delete_prefix("/calico/", deadline)
    for number in range(8):
        node = {"kind": "Node", "metadata": {"name": f"bench-{number}"}, "spec": {}}
        kv.put(keys.resource("Node", f"bench-{number}"), json.dumps(node).encode(), deadline)
    pool = {"kind": "IPPool", "metadata": {"name": "pool"}, "spec": {"cidr": POOL, "blockSize": 26}}
    kv.put(keys.resource("IPPool", "pool"), json.dumps(pool).encode(), deadline)
    for start in range(0, blocks, 16):
        puts: list[Put] = []
        for number in range(start, min(start + 16, blocks)):
            puts += foreign_block(number, free)
        kv.commit([], puts, deadline)


def foreign_block(number: int, free: int) -> list[Put]:
    """A block of another host, every address of which is in use by a container of its own. Blocks are spread over the
    pool.
    """
    count = 1024
    network = list(ip_network(POOL).subnets(new_prefix=26))[number * 7 % count]
    host = f"other-{number // 8}"
    block = arithmetic.fresh(str(network), 64, host, datetime.now(timezone.utc), time.time_ns())
    for ordinal in range(64 - free):
        attribute = AllocationAttribute(handle_id=f"{host}-{number}-{ordinal}", secondary={"node": host})
        block, _ = arithmetic.assign(block, 1, attribute)
        block = replace(block, sequence_number=block.sequence_number + 1)
    confirmed = codec.encode(Affinity(state="confirmed"))
    return [Put(keys.block(str(network)), codec.encode(block)), Put(keys.affinity(host, str(network)), confirmed)]


@contextmanager
def etcd(options: argparse.Namespace) -> Iterator[str]:
    """The client URL of an etcd of our own on this disk, or the given one."""
    if options.endpoint:
        yield options.endpoint
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="etcd-", dir=FOLDER))
    client, peer = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    command = ["etcd", "--data-dir", str(folder / "data"), "--listen-client-urls", client,
               "--advertise-client-urls", client, "--listen-peer-urls", peer,
               "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}",
               "--logger", "zap", "--log-level", "error"] + (["--unsafe-no-fsync"] if options.no_fsync else [])
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield client
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.ipam", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="longest time of one measurement")
    parser.add_argument("--addresses", type=int, default=2000, help="most addresses of one measurement")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured; the median counts")
    parser.add_argument("--endpoint", default="", help="an etcd that may be emptied, instead of one of our own")
    parser.add_argument("--no-fsync", action="store_true", help="etcd without fsync: shows what the disk costs")
    options = parser.parse_args()
    report = Report("ipam", "Addresses per second: the original's way and ours in one run; the Go original as recorded")
    with etcd(options) as endpoint:
        kv = connect([endpoint])
        for pool, (blocks, free) in POOLS.items():
            for hosts, callers in GO_ORIGINAL:
                outcomes: dict[bool, list[Outcome]] = {False: [], True: []}
                # The original takes seconds for one address where it has to borrow: once is enough.
                for _ in range(1 if free else options.rounds):
                    for ours in (False, True):
                        prepare(kv, blocks, free)
                        outcomes[ours].append(measure(endpoint, hosts, callers, ours, options))
                add(report, (hosts, callers), pool, middle(outcomes[False]), middle(outcomes[True]))
        kv.close()
    report.finish()
    return 0


def middle(outcomes: list[Outcome]) -> Outcome:
    """The one with the median rate: both ways are measured in turns, so that a busy moment hits neither alone."""
    return sorted(outcomes, key=lambda outcome: outcome.rate)[len(outcomes) // 2]


def add(report: Report, shape: tuple[int, int], pool: str, original: Outcome, ours: Outcome) -> None:
    recorded = dict(zip(POOLS, GO_ORIGINAL[shape])).get(pool)
    report.add(
        pool=pool, hosts=shape[0], callers=shape[1], original=original.rate, ours=ours.rate,
        ratio=ours.rate / original.rate if original.rate else float("inf"), go_recorded=recorded or "",
        ratio_go=ours.rate / recorded if recorded else "", goal=GOALS[shape],
        original_p50_ms=original.p50, original_p99_ms=original.p99, ours_p50_ms=ours.p50, ours_p99_ms=ours.p99,
        failed=ours.errors,
    )


if __name__ == "__main__":
    raise SystemExit(main())
