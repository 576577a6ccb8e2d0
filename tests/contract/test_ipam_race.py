"""Processes that race for addresses on one real etcd: none is ever given twice, none is lost, and it ends in bounded
time.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import threading
import traceback
from collections import Counter
from typing import Any

import pytest

from benchmarks.ipam_original import OriginalClient
from calico_plugin.datastore.etcd import EtcdKV, connect
from calico_plugin.deadline import Deadline
from calico_plugin.errors import NotFound, PoolExhausted
from calico_plugin.ipam import Allocator, Release
from calico_plugin.ipam import block as arithmetic
from calico_plugin.ipam.cidr import parse
from calico_plugin.ipam.pools import Pool
from calico_plugin.model import codec, keys
from calico_plugin.model.ipam import Block, Handle

PROCESSES, CALLERS = 8, 4
ADDRESSES = 2000

Given = list[tuple[str, str]]


def put_pool(kv: EtcdKV, cidrs: dict[str, str], hosts: list[str]) -> None:
    for name, cidr in cidrs.items():
        pool = {"kind": "IPPool", "metadata": {"name": name}, "spec": {"cidr": cidr, "blockSize": 28}}
        kv.put(keys.resource("IPPool", name), json.dumps(pool).encode(), Deadline(5))
    for host in hosts:
        node = {"kind": "Node", "metadata": {"name": host}, "spec": {}}
        kv.put(keys.resource("Node", host), json.dumps(node).encode(), Deadline(5))


def stored_blocks(kv: EtcdKV) -> list[Block]:
    return [codec.decode(Block, item.key, item.value) for item in kv.list(keys.BLOCKS, Deadline(10)).items]


def allocated(blocks: list[Block]) -> int:
    return sum(index is not None for block in blocks for index in block.allocations)


def check_sound(kv: EtcdKV) -> None:
    """Blocks keep their invariants, handles count exactly what blocks hold, confirmed affinities have their blocks."""
    blocks = stored_blocks(kv)
    assert [arithmetic.problems(block, 16) for block in blocks] == [[]] * len(blocks)
    counts: Counter[tuple[str, str]] = Counter()
    for block in blocks:
        for index in block.allocations:
            if index is not None and block.attributes and block.attributes[index].handle_id:
                counts[block.attributes[index].handle_id or "", block.cidr] += 1
    stored = {}
    for item in kv.list(keys.HANDLES, Deadline(10)).items:
        handle = codec.decode(Handle, item.key, item.value)
        stored.update({(item.key[len(keys.HANDLES):], cidr): count for cidr, count in handle.block.items()})
    assert stored == dict(counts)
    owners = {(arithmetic.owner(block), block.cidr) for block in blocks}
    affinities = [keys.parse_affinity(item.key) for item in kv.list(keys.AFFINITIES, Deadline(10)).items]
    assert set(affinities) <= owners


def take_all(endpoint: str, host: str, start: Any, results: Any) -> None:
    """A host whose callers take addresses, one and several at a time, until there are none."""
    kv = connect([endpoint])
    allocator = Allocator(kv, lambda selector, labels: True)
    given: Given = []
    errors: list[str] = []

    def call(caller: int) -> None:
        chance = random.Random(f"{host} {caller}")
        number = 0
        while True:
            handle, count = f"{host}-{caller}-{number}", chance.choice((1, 1, 1, 3))
            number += 1
            try:
                assigned = allocator.auto_assign(
                    host, count, handle=handle, attributes={"node": host}, max_blocks=1000, partial=True,
                    deadline=Deadline(50),
                )
            except Exception as error:
                errors.append("".join(traceback.format_exception(error)))
                return
            given.extend((str(address.ip), handle) for address in assigned.addresses)
            if assigned.shortfall is not None:
                return

    start.wait()
    threads = [threading.Thread(target=call, args=(caller,)) for caller in range(CALLERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results.put((given, errors))
    kv.close()


def take_as_original(endpoint: str, host: str, start: Any, results: Any) -> None:
    """A host that runs the original's two-phase claims and separate writes of handle and block, until there is no
    address.
    """
    kv = connect([endpoint])
    client = OriginalClient(kv, host, Pool("pool", parse("10.50.0.0/23"), 28))
    given: Given = []
    errors: list[str] = []
    start.wait()
    try:
        while True:
            handle = f"{host}-{len(given)}"
            given.append((str(client.assign(handle, {"node": host}, Deadline(50))), handle))
    except RuntimeError:
        pass
    except Exception as error:
        errors.append("".join(traceback.format_exception(error)))
    results.put((given, errors))
    kv.close()


def churn(endpoint: str, host: str, start: Any, results: Any) -> None:
    """A host whose callers take and give back at random; what they hold at the end is reported."""
    kv = connect([endpoint])
    allocator = Allocator(kv, lambda selector, labels: True)
    given: Given = []
    errors: list[str] = []

    def call(caller: int) -> None:
        chance, held = random.Random(f"{host} {caller}"), []
        for number in range(60):
            handle = f"{host}-{caller}-{number}"
            try:
                if held and chance.random() < 0.45:
                    _give_back(allocator, held.pop(chance.randrange(len(held))), chance)
                    continue
                assigned = allocator.auto_assign(
                    host, chance.choice((1, 1, 2)), handle=handle, attributes={"node": host}, deadline=Deadline(50)
                )
                held.append((handle, [str(address.ip) for address in assigned.addresses]))
            except PoolExhausted:
                continue
            except Exception as error:
                errors.append("".join(traceback.format_exception(error)))
        given.extend((address, handle) for handle, addresses in held for address in addresses)

    start.wait()
    threads = [threading.Thread(target=call, args=(caller,)) for caller in range(CALLERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results.put((given, errors))
    kv.close()


def _give_back(allocator: Allocator, held: tuple[str, list[str]], chance: random.Random) -> None:
    handle, addresses = held
    if chance.random() < 0.5:
        allocator.release_by_handle(handle, Deadline(50))
        return
    releases = []
    for address in addresses:
        stored = allocator.attributes_of(address, Deadline(50))
        assert stored.handle == handle
        releases.append(Release(stored.address, stored.sequence, handle))
    allocator.release(releases, Deadline(50))


def race(endpoint: str, target: Any, hosts: list[str], others: Any = None) -> Given:
    """What all processes were given; an error of any of them fails the test."""
    context = multiprocessing.get_context("spawn")
    start, results = context.Event(), context.Queue()
    processes = [
        context.Process(target=others if host.startswith("original") else target, args=(endpoint, host, start, results))
        for host in hosts
    ]
    for process in processes:
        process.start()
    start.set()
    parts = [results.get(timeout=100) for _ in processes]
    for process in processes:
        process.join()
    assert [error for _, errors in parts for error in errors] == []
    return [one for given, _ in parts for one in given]


def test_eight_hosts_and_two_thousand_addresses(etcd: str, kv: EtcdKV) -> None:
    """All 2,000 addresses of six pools are given, each once, down to the last, which only borrowing reaches."""
    # 1,024 + 512 + 256 + 128 + 64 + 16 = 2,000
    cidrs = ["10.50.0.0/22", "10.60.0.0/23", "10.70.0.0/24", "10.80.0.0/25", "10.90.0.0/26", "10.99.0.0/28"]
    race_for_all(etcd, kv, cidrs, [f"racer-{number}" for number in range(PROCESSES)], ADDRESSES)


def test_eight_processes_of_one_host(etcd: str, kv: EtcdKV) -> None:
    """They share the host's blocks, and meet in each of them."""
    race_for_all(etcd, kv, ["10.50.0.0/23", "10.60.0.0/26"], ["racer"] * PROCESSES, 576)


def race_for_all(endpoint: str, kv: EtcdKV, cidrs: list[str], hosts: list[str], count: int) -> None:
    put_pool(kv, {f"pool-{number}": cidr for number, cidr in enumerate(cidrs)}, sorted(set(hosts)))
    given = race(endpoint, take_all, hosts)
    assert len({address for address, _ in given}) == len(given) == count
    assert allocated(stored_blocks(kv)) == count
    check_sound(kv)


def test_beside_the_originals_way(etcd: str, kv: EtcdKV) -> None:
    """Hosts that claim and write as Calico's own tools do share the pool with ours: nothing is given twice or lost."""
    hosts = ["racer-0", "racer-1", "original-0", "original-1"]
    put_pool(kv, {"pool": "10.50.0.0/23"}, hosts)
    given = race(etcd, take_all, hosts, take_as_original)
    assert len({address for address, _ in given}) == len(given) == 512
    assert allocated(stored_blocks(kv)) == 512
    check_sound(kv)


def test_taking_and_giving_back_at_random(etcd: str, kv: EtcdKV) -> None:
    """Hosts that take and give back in a pool that is nearly full: who holds an address at the end is who etcd says."""
    hosts = [f"racer-{n}" for n in range(4)]
    put_pool(kv, {"pool": "10.50.0.0/25"}, hosts)
    given = race(etcd, churn, hosts)
    assert len({address for address, _ in given}) == len(given)
    assert allocated(stored_blocks(kv)) == len(given)
    check_sound(kv)
    allocator = Allocator(kv, lambda selector, labels: True)
    assert {(a, allocator.attributes_of(a, Deadline(5)).handle) for a, _ in given} == set(given)
    with pytest.raises(NotFound):
        allocator.release_by_handle("nobody", Deadline(5))
