"""Random histories of several allocators that remember, against a plain model of who has which address.

Each allocator is a process of its own as far as memory goes: all but the one that acts hold old values, and their views
of pools, reservations and configuration lag. Whatever the history, an address is given when the rules allow one, never
twice, and what is stored stays sound.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from calico_plugin.datastore.etcd import EtcdKV
from calico_plugin.deadline import Deadline
from calico_plugin.errors import AlreadyExists, Conflict, DatastoreUnavailable, NotFound, PoolExhausted
from calico_plugin.ipam import Allocator, DirectView, Inputs, NodeView, Release
from calico_plugin.ipam import block as arithmetic
from calico_plugin.ipam import set_config
from calico_plugin.model import codec, keys
from calico_plugin.model.ipam import Block, Handle, IPAMConfig
from tests.contract.test_ipam_race import put_pool

HOSTS = ("dock-a", "dock-b", "dock-c")
FIRST, SIZE = int(ip_address("10.50.0.0")), 64


def soon() -> Deadline:
    return Deadline(20)


class LaggingView:
    """Says what it saw when it last looked."""

    def __init__(self, kv: EtcdKV) -> None:
        self._direct = DirectView(kv)
        self.catch_up()

    def catch_up(self) -> None:
        self._inputs = self._direct.inputs(soon())
        self._nodes = {name: self._direct.node(name, soon()) for name in HOSTS}

    def inputs(self, deadline: Deadline) -> Inputs:
        return self._inputs

    def node(self, name: str, deadline: Deadline) -> NodeView | None:
        return self._nodes.get(name)


@dataclass
class World:
    """`held` is the model: address -> (handle, host)."""

    kv: EtcdKV
    chance: random.Random
    views: list[LaggingView]
    allocators: list[Allocator]
    held: dict[str, tuple[str, str]] = field(default_factory=dict)
    handles: int = 0
    strict: bool = False
    reserved: set[str] = field(default_factory=set)

    @property
    def ipam(self) -> Allocator:
        return self.chance.choice(self.allocators)

    def new_handle(self) -> str:
        if self.handles and self.chance.random() < 0.2:
            return f"h{self.chance.randrange(self.handles)}"
        self.handles += 1
        return f"h{self.handles}"

    def auto_assign(self) -> None:
        host, handle, count = self.chance.choice(HOSTS), self.new_handle(), self.chance.choice((1, 1, 2, 3, 9))
        within = self.chance.choice((None, None, None, "10.50.0.16/29", "10.50.0.32/27"))
        room = [one for one in self.addresses(within) if one not in self.held and one not in self.reserved]
        if self.strict:
            room = [one for one in room if self.owner_of(one) in (host, "nobody's block")]
        try:
            given = self.ipam.auto_assign(
                host, count, handle=handle, attributes={"node": host}, within=within, deadline=soon()
            )
        except PoolExhausted:
            assert len(room) < count
            return
        taken = [str(one.ip) for one in given.addresses]
        assert len(set(taken)) == count and set(taken) <= set(room)
        self.held.update(dict.fromkeys(taken, (handle, host)))

    def owner_of(self, address: str) -> str | None:
        """The host of the block around an address; None when the block has no owner."""
        number = int(ip_address(address))
        item = self.kv.get(keys.block(f"{ip_address(number - number % 8)}/29"), soon())
        return arithmetic.owner(codec.decode(Block, item.key, item.value)) if item else "nobody's block"

    def addresses(self, within: str | None) -> list[str]:
        first, size = {None: (0, SIZE), "10.50.0.16/29": (16, 8), "10.50.0.32/27": (32, 32)}[within]
        return [str(ip_address(FIRST + first + number)) for number in range(size)]

    def assign(self) -> None:
        address, host, handle = self.any_address(), self.chance.choice(HOSTS), self.new_handle()
        try:
            self.ipam.assign(address, host, handle=handle, attributes={"node": host}, deadline=soon())
        except AlreadyExists:
            assert address in self.held
            return
        except Conflict:
            assert self.strict and self.owner_of(address) != host
            return
        assert address not in self.held and not (self.strict and self.owner_of(address) != host)
        self.held[address] = (handle, host)

    def any_address(self) -> str:
        return str(ip_address(FIRST + self.chance.randrange(SIZE)))

    def release(self) -> None:
        wanted = {self.any_address() for _ in range(self.chance.choice((1, 2, 7)))}
        done = self.ipam.release(sorted(wanted), soon())
        assert set(map(str, done.addresses)) == wanted & set(self.held)
        assert set(map(str, done.unallocated)) == wanted - set(self.held)
        self.held = {address: owner for address, owner in self.held.items() if address not in wanted}

    def release_wrongly(self) -> None:
        address = self.any_address()
        try:
            self.ipam.release([Release(ip_address(address), sequence=1)], soon())
            assert address not in self.held
        except Conflict:
            assert address in self.held

    def release_handle(self) -> None:
        handle = f"h{self.chance.randint(0, self.handles)}"
        mine = {address for address, (owner, _) in self.held.items() if owner == handle}
        try:
            done = self.ipam.release_by_handle(handle, soon())
        except NotFound:
            assert not mine
            return
        assert set(map(str, done.addresses)) == mine
        self.held = {address: owner for address, owner in self.held.items() if address not in mine}

    def claim(self) -> None:
        claims = self.ipam.claim_affinity(self.chance.choice(HOSTS), "10.50.0.0/27", soon())
        assert len(claims.claimed) + len(claims.failed) == 4

    def let_go(self) -> None:
        host, must_be_empty = self.chance.choice(HOSTS), self.chance.random() < 0.5
        try:
            self.ipam.release_host_affinities(host, soon(), must_be_empty=must_be_empty)
        except Conflict:
            assert must_be_empty
            return
        assert self.kv.list(keys.affinity_prefix(host), soon()).items == ()

    def set_strict(self) -> None:
        self.strict = not self.strict
        set_config(self.kv, IPAMConfig(strict_affinity=self.strict, auto_allocate_blocks=True), soon())

    def reserve(self) -> None:
        key = keys.resource("IPReservation", "some")
        if self.reserved:
            self.kv.delete(key, soon())
            self.reserved = set()
            return
        cidr = self.chance.choice(("10.50.0.8/29", "10.50.0.16/30", "10.50.0.32/28"))
        self.kv.put(key, json.dumps({"kind": "IPReservation", "spec": {"reservedCIDRs": [cidr]}}).encode(), soon())
        self.reserved = set(map(str, ip_network(cidr)))

    def look_again(self) -> None:
        """One of the views catches up."""
        self.chance.choice(self.views).catch_up()

    def step(self) -> None:
        steps: dict[Any, int] = {
            self.auto_assign: 10, self.assign: 3, self.release: 5, self.release_wrongly: 1,
            self.release_handle: 4, self.claim: 1, self.let_go: 1, self.set_strict: 1, self.reserve: 1,
            self.look_again: 2,
        }
        self.chance.choices(list(steps), list(steps.values()))[0]()

    def check(self) -> None:
        """What is stored is the model, and keeps all invariants."""
        assert self.stored() == self.held

    def stored(self) -> dict[str, tuple[str, str]]:
        """Who has which address by the blocks; fails when blocks, handles and affinities do not fit together."""
        stored: dict[str, tuple[str, str]] = {}
        counts: dict[str, dict[str, int]] = {}
        owners = {}
        for item in self.kv.list(keys.BLOCKS, soon()).items:
            block = codec.decode(Block, item.key, item.value)
            assert arithmetic.problems(block, 8) == []
            owners[block.cidr] = arithmetic.owner(block)
            base = int(ip_address(block.cidr.partition("/")[0]))
            for ordinal in range(8):
                attribute = arithmetic.attribute_of(block, ordinal)
                if attribute is not None:
                    handle, host = attribute.handle_id or "", (attribute.secondary or {})["node"]
                    stored[str(ip_address(base + ordinal))] = (handle, host)
                    counts.setdefault(handle, {}).setdefault(block.cidr, 0)
                    counts[handle][block.cidr] += 1
        handles = {
            item.key[len(keys.HANDLES):]: codec.decode(Handle, item.key, item.value).block
            for item in self.kv.list(keys.HANDLES, soon()).items
        }
        assert handles == counts
        claims = {(cidr, owner) for cidr, owner in owners.items() if owner}
        parsed = [keys.parse_affinity(item.key) for item in self.kv.list(keys.AFFINITIES, soon()).items]
        assert {(pair[1], pair[0]) for pair in parsed if pair} == claims
        return stored


class LosingKV:
    """Loses some transactions on the way, and of some others the answer."""

    def __init__(self, kv: EtcdKV, chance: random.Random) -> None:
        self._kv, self._chance = kv, chance

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kv, name)

    def commit(self, *args: Any) -> Any:
        fate = self._chance.random()
        outcome = self._kv.commit(*args) if fate > 0.1 else None
        if fate < 0.2:
            raise DatastoreUnavailable("etcd does not answer")
        return outcome


def make_world(kv: EtcdKV, seed: int, client: Any) -> World:
    put_pool(kv, {"pool": "10.50.0.0/26"}, list(HOSTS))
    pool = kv.get(keys.resource("IPPool", "pool"), soon())
    assert pool is not None
    kv.put(pool.key, pool.value.replace(b'"blockSize": 28', b'"blockSize": 29'), soon())
    views = [LaggingView(kv) for _ in range(2)]
    seconds = (0.0, 60.0, 60.0)
    allocators = [
        Allocator(client, lambda selector, labels: True, view, scan_seconds=one) for view, one in zip(views, seconds)
    ]
    return World(kv, random.Random(seed), views, allocators)


@pytest.mark.parametrize("seed", range(2))
def test_random_histories(kv: EtcdKV, seed: int) -> None:
    """After each step what is stored is what the model says."""
    world = make_world(kv, seed, kv)
    for _ in range(150):
        world.step()
        world.check()


@pytest.mark.parametrize("seed", range(2))
def test_random_histories_with_lost_answers(kv: EtcdKV, seed: int) -> None:
    """A call that failed may have been carried out, whole or not at all; the calls after it are right about it."""
    world = make_world(kv, seed, LosingKV(kv, random.Random(seed)))
    for _ in range(150):
        try:
            world.step()
        except DatastoreUnavailable:
            world.held = world.stored()
        world.check()
