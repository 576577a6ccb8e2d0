"""The allocator on a real etcd: how many round trips it takes, what a stale view can do, and what is left after
failures.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Callable, Iterator, Mapping

import pytest
from msgspec.structs import replace

from calico_plugin.datastore.etcd import EtcdKV, connect
from calico_plugin.datastore.kv import Put
from calico_plugin.datastore.watch import Watch
from calico_plugin.deadline import Deadline
from calico_plugin.driver.view import View
from calico_plugin.errors import (
    AlreadyExists,
    CalicoError,
    Conflict,
    CorruptValue,
    DatastoreUnavailable,
    DeadlineExceeded,
    InvalidInput,
    NotFound,
    PoolExhausted,
)
from calico_plugin.ipam import Allocator, DirectView, Inputs, NodeView, Release
from calico_plugin.ipam import block as arithmetic
from calico_plugin.ipam import set_config
from calico_plugin.model import codec, keys
from calico_plugin.model.ipam import Affinity, Block, Handle, IPAMConfig
from calico_plugin.policy.selector import parse
from tests.etcd_server import Cluster, etcd_cluster

BLOCK = "10.50.0.0/28"


def soon() -> Deadline:
    return Deadline(15)


def selects(selector: str, labels: Mapping[str, str]) -> bool:
    return parse(selector).match(labels)


def first(host: str, count: int) -> int:
    return 0


class Counting:
    """A KV that counts its calls, and can do something before each commit."""

    def __init__(self, kv: EtcdKV) -> None:
        self._kv = kv
        self.calls: Counter[str] = Counter()
        self.before_commit: Callable[[], None] = lambda: None

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls[name] += 1
            if name == "commit":
                self.before_commit()
            return getattr(self._kv, name)(*args, **kwargs)

        return call


@dataclass
class OldView:
    """What a view said once, until it is told to look again: a cache that lags."""

    kv: EtcdKV
    held: Inputs | None = None
    nodes: dict[str, NodeView | None] = field(default_factory=dict)

    def inputs(self, deadline: Deadline) -> Inputs:
        self.held = self.held or DirectView(self.kv).inputs(deadline)
        return self.held

    def node(self, name: str, deadline: Deadline) -> NodeView | None:
        if name not in self.nodes:
            self.nodes[name] = DirectView(self.kv).node(name, deadline)
        return self.nodes[name]


def put(kv: EtcdKV, kind: str, name: str, spec: dict[str, Any] | None = None, **metadata: Any) -> None:
    document = {"kind": kind, "metadata": {"name": name, **metadata}, "spec": spec or {}}
    kv.put(keys.resource(kind, name), json.dumps(document).encode(), soon())


def block_of(kv: EtcdKV, cidr: str = BLOCK) -> Block:
    item = kv.get(keys.block(cidr), soon())
    assert item is not None
    return codec.decode(Block, item.key, item.value)


def in_use(kv: EtcdKV) -> int:
    blocks = [codec.decode(Block, item.key, item.value) for item in kv.list(keys.BLOCKS, soon()).items]
    return sum(index is not None for block in blocks for index in block.allocations)


@pytest.fixture
def cluster(kv: EtcdKV) -> EtcdKV:
    """Two nodes and a pool of four /28 blocks."""
    put(kv, "Node", "dock-a")
    put(kv, "Node", "dock-b")
    put(kv, "IPPool", "web", {"cidr": "10.50.0.0/26", "blockSize": 28})
    return kv


@pytest.fixture
def view(cluster: EtcdKV) -> Iterator[View]:
    """As the driver of dock-a has it."""
    view = View("dock-a")
    watch = Watch(cluster, view.prefixes)
    thread = threading.Thread(target=view.follow, args=(watch,))
    thread.start()
    view.wait_synced(soon())
    yield view
    watch.close()
    thread.join()


def texts(addresses: Any) -> list[str]:
    return [str(one) for one in addresses]


class TestRoundTrips:
    def test_one_commit_gives_and_one_takes(self, cluster: EtcdKV, view: View) -> None:
        """In the hot path nothing is read: block and handle change in one transaction."""
        counting = Counting(cluster)
        allocator = Allocator(counting, selects, view, start=first)  # type: ignore[arg-type]
        allocator.auto_assign("dock-a", handle="h0", deadline=soon())
        counting.calls.clear()
        given = allocator.auto_assign("dock-a", handle="h1", attributes={"node": "dock-a"}, deadline=soon())
        assert (texts(given.addresses), counting.calls) == (["10.50.0.1/28"], {"commit": 1})
        counting.calls.clear()
        allocator.release([given.addresses[0].ip], soon())
        assert counting.calls == {"commit": 1}
        assert cluster.get(keys.handle("h1"), soon()) is None
        assert block_of(cluster).unallocated[-1] == 1

    def test_a_new_block_is_claimed_with_its_first_address(self, cluster: EtcdKV, view: View) -> None:
        """Affinity, block, handle and address come into being together."""
        counting = Counting(cluster)
        allocator = Allocator(counting, selects, view, start=first)  # type: ignore[arg-type]
        allocator.auto_assign("dock-a", handle="h1", deadline=soon())
        assert counting.calls["commit"] == 1
        items = [cluster.get(key, soon()) for key in (
            keys.affinity("dock-a", BLOCK), keys.block(BLOCK), keys.handle("h1")
        )]
        assert len({item.revision for item in items if item}) == 1
        assert codec.decode(Affinity, "", items[0].value if items[0] else b"").state == "confirmed"

    def test_requests_that_arrive_together_share_a_commit(self, cluster: EtcdKV, view: View) -> None:
        """Sixteen callers need far fewer than sixteen commits; assigns and releases go together."""
        counting = Counting(cluster)
        allocator = Allocator(counting, selects, view, start=first)  # type: ignore[arg-type]
        old = allocator.auto_assign("dock-a", 8, deadline=soon())
        counting.calls.clear()
        gate = threading.Event()
        counting.before_commit = lambda: gate.wait(10) and None
        results: list[Any] = []

        def take(number: int) -> None:
            results.append(allocator.auto_assign("dock-a", handle=f"h{number}", deadline=soon()).addresses[0])

        def give(number: int) -> None:
            allocator.release([old.addresses[number].ip], soon())

        threads = [threading.Thread(target=take, args=(number,)) for number in range(16)]
        threads += [threading.Thread(target=give, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        while len(allocator._combiner._queue) < 23:
            threading.Event().wait(0.002)
        gate.set()
        for thread in threads:
            thread.join()
        assert len(set(results)) == 16
        assert counting.calls["commit"] <= 3
        assert in_use(cluster) == 16
        assert arithmetic.problems(block_of(cluster), 16) == []

    def test_borrowing_in_a_full_pool_does_not_read_it_each_time(self, cluster: EtcdKV, view: View) -> None:
        """Where free addresses were seen is remembered: two more borrowed addresses are two commits and no list."""
        Allocator(cluster, selects).claim_affinity("dock-b", "10.50.0.0/26", soon())
        counting = Counting(cluster)
        allocator = Allocator(counting, selects, view, start=first, scan_seconds=60)  # type: ignore[arg-type]
        allocator.auto_assign("dock-a", deadline=soon())
        counting.calls.clear()
        for _ in range(2):
            allocator.auto_assign("dock-a", deadline=soon())
        assert counting.calls == {"commit": 2}

    def test_a_pool_full_of_other_hosts_blocks_is_not_read(self, cluster: EtcdKV, view: View) -> None:
        """Over 1,000 foreign blocks: free ones are found by one listing of keys, however many are needed later."""
        put(cluster, "IPPool", "big", {"cidr": "10.60.0.0/16", "blockSize": 26})
        cidrs = [f"10.60.{n // 4}.{n % 4 * 64}/26" for n in range(1000)]
        for start in range(0, 1000, 100):
            cluster.commit([], [Put(keys.block(cidr), b"{}") for cidr in cidrs[start:start + 100]], soon())
        while "big" not in [pool.name for pool in view.inputs(soon()).pools]:
            threading.Event().wait(0.005)
        counting = Counting(cluster)
        allocator = Allocator(counting, selects, view, start=first)  # type: ignore[arg-type]
        for number in range(5):
            given = allocator.auto_assign("dock-a", 64, pools=["10.60.0.0/16"], deadline=soon())
            assert str(given.addresses[0].ip) == f"10.60.250.{number * 64}" or number == 4
        # One listing of keys, and one of the host's own affinities at the start and before each claim.
        assert counting.calls["commit"] == 5 and counting.calls["list"] <= 7

    def test_a_refused_claim_leaves_its_blocks_to_be_claimed(self, cluster: EtcdKV, view: View) -> None:
        """A request that was too large does not make the next one borrow."""
        allocator = Allocator(cluster, selects, view, start=first, scan_seconds=60)
        allocator.auto_assign("dock-b", deadline=soon())
        with pytest.raises(PoolExhausted):
            allocator.auto_assign("dock-a", 64, deadline=soon())
        assert texts(allocator.auto_assign("dock-a", deadline=soon()).addresses) == ["10.50.0.16/28"]

    def test_a_lost_race_costs_one_more_commit_and_no_read(self, cluster: EtcdKV, view: View) -> None:
        """The failed transaction brings what is stored now."""
        counting = Counting(cluster)
        allocator = Allocator(counting, selects, view, start=first)  # type: ignore[arg-type]
        allocator.auto_assign("dock-a", deadline=soon())
        Allocator(cluster, selects, start=first).auto_assign("dock-a", deadline=soon())
        counting.calls.clear()
        assert texts(allocator.auto_assign("dock-a", deadline=soon()).addresses) == ["10.50.0.2/28"]
        assert counting.calls == {"commit": 2}


class TestMemory:
    """What a process remembers of blocks is never the reason of a refusal."""

    def test_room_made_by_others(self, cluster: EtcdKV, view: View) -> None:
        """Addresses that other processes have freed since, in own and in others' blocks, are found before a request
        fails.
        """
        other = Allocator(cluster, selects, start=first)
        other.auto_assign("dock-b", 32, deadline=soon())
        allocator = Allocator(cluster, selects, view, start=first, scan_seconds=60)
        allocator.auto_assign("dock-a", 32, deadline=soon())
        with pytest.raises(PoolExhausted):
            allocator.auto_assign("dock-a", deadline=soon())
        for address in ("10.50.0.3", "10.50.0.40", "10.50.0.17"):
            other.release([address], soon())
            assert texts(allocator.auto_assign("dock-a", deadline=soon()).addresses) == [f"{address}/28"]

    def test_blocks_let_go_by_others(self, cluster: EtcdKV, view: View) -> None:
        """A block that is unclaimed by now is claimed, not borrowed from or missed."""
        other = Allocator(cluster, selects, start=first)
        other.claim_affinity("dock-b", "10.50.0.0/26", soon())
        allocator = Allocator(cluster, selects, view, start=first, scan_seconds=60)
        allocator.auto_assign("dock-a", 64, deadline=soon())
        with pytest.raises(PoolExhausted):
            allocator.auto_assign("dock-a", deadline=soon())
        other.release([f"10.50.0.{number}" for number in range(16)], soon())
        other.release_affinity("dock-b", "10.50.0.0/28", soon())
        assert texts(allocator.auto_assign("dock-a", deadline=soon()).addresses) == ["10.50.0.0/28"]
        assert block_of(cluster).affinity == "host:dock-a"

    def test_claims_made_and_ended_by_others(self, cluster: EtcdKV, view: View) -> None:
        """Blocks are claimed and let go as they are stored, not as they were when this process last looked."""
        allocator, other = Allocator(cluster, selects, view, start=first), Allocator(cluster, selects, start=first)
        allocator.claim_affinity("dock-a", "10.50.0.0/27", soon())
        other.release_host_affinities("dock-a", soon())
        assert len(allocator.claim_affinity("dock-a", "10.50.0.0/27", soon()).claimed) == 2
        allocator.release_host_affinities("dock-a", soon())
        other.claim_affinity("dock-a", "10.50.0.0/27", soon())
        allocator.release_host_affinities("dock-a", soon())
        assert cluster.list(keys.IPAM, soon()).items == ()


class TestStaleViews:
    """A view that lags costs a second try, never a wrong answer."""

    @pytest.fixture
    def allocator(self, cluster: EtcdKV) -> Allocator:
        made = Allocator(cluster, selects, OldView(cluster), start=first)
        made.auto_assign("dock-a", deadline=soon())
        return made

    def test_a_pool_disabled_meanwhile(self, cluster: EtcdKV, allocator: Allocator) -> None:
        """No address comes out of it any more."""
        put(cluster, "IPPool", "web", {"cidr": "10.50.0.0/26", "blockSize": 28, "disabled": True})
        with pytest.raises(PoolExhausted, match=r"web \(10.50.0.0/26\) is disabled"):
            allocator.auto_assign("dock-a", deadline=soon())
        with pytest.raises(InvalidInput, match="10.50.0.9.*no enabled IP pool holds it"):
            allocator.assign("10.50.0.9", "dock-a", deadline=soon())
        assert in_use(cluster) == 1

    def test_an_address_reserved_meanwhile(self, cluster: EtcdKV, allocator: Allocator) -> None:
        """A reservation that the view does not know yet is kept."""
        put(cluster, "IPReservation", "r", {"reservedCIDRs": ["10.50.0.0/29"]})
        assert texts(allocator.auto_assign("dock-a", deadline=soon()).addresses) == ["10.50.0.8/28"]

    def test_strict_affinity_set_meanwhile(self, cluster: EtcdKV, allocator: Allocator) -> None:
        """Borrowing stops with the very next request."""
        Allocator(cluster, selects).claim_affinity("dock-b", "10.50.0.0/26", soon())
        allocator.auto_assign("dock-a", 15, deadline=soon())
        set_config(cluster, IPAMConfig(strict_affinity=True, auto_allocate_blocks=True), soon())
        with pytest.raises(PoolExhausted, match="strict affinity forbids"):
            allocator.auto_assign("dock-a", deadline=soon())

    def test_a_node_relabelled_meanwhile(self, cluster: EtcdKV, allocator: Allocator) -> None:
        """Its new labels decide."""
        put(cluster, "IPPool", "web", {"cidr": "10.50.0.0/26", "blockSize": 28, "nodeSelector": "rack == 'r1'"})
        put(cluster, "IPPool", "x", {"cidr": "10.60.0.0/26", "blockSize": 28, "nodeSelector": "rack == 'r2'"})
        put(cluster, "Node", "dock-a", labels={"rack": "r2"})
        assert texts(allocator.auto_assign("dock-a", deadline=soon()).addresses) == ["10.60.0.0/28"]

    def test_what_the_view_does_not_know_yet_is_no_reason(self, cluster: EtcdKV, allocator: Allocator) -> None:
        """A pool and a node made a moment ago serve."""
        with pytest.raises(InvalidInput, match="10.70.0.0/26"):
            allocator.auto_assign("dock-a", pools=["10.70.0.0/26"], deadline=soon())
        with pytest.raises(NotFound, match=r"Node\(dock-c\)"):
            allocator.auto_assign("dock-c", deadline=soon())
        put(cluster, "Node", "dock-c")
        put(cluster, "IPPool", "new", {"cidr": "10.70.0.0/26", "blockSize": 28})
        given = allocator.auto_assign("dock-c", pools=["10.70.0.0/26"], deadline=soon())
        assert texts(given.addresses) == ["10.70.0.0/28"]
        assert texts(allocator.release([given.addresses[0].ip], soon()).addresses) == ["10.70.0.0"]


class TestGiving:
    @pytest.fixture
    def allocator(self, cluster: EtcdKV) -> Allocator:
        return Allocator(cluster, selects, start=first)

    def test_all_or_nothing(self, cluster: EtcdKV, allocator: Allocator) -> None:
        """More than there is leaves nothing behind, and the text says which pool has how much."""
        with pytest.raises(PoolExhausted, match=r"gets 64 of 65 IPv4 addresses from web .*no free address in its 4"):
            allocator.auto_assign("dock-a", 65, handle="h", deadline=soon())
        assert cluster.list(keys.IPAM, soon()).items == ()

    def test_many_blocks_at_once(self, cluster: EtcdKV, allocator: Allocator) -> None:
        """More blocks than fit into one transaction come in several; a failure on the way takes all of it back."""
        put(cluster, "IPPool", "tiny", {"cidr": "10.60.0.0/25", "blockSize": 31})
        given = allocator.auto_assign(
            "dock-a", 90, handle="h", pools=["10.60.0.0/25"], max_blocks=100, deadline=soon()
        )
        assert len(set(given.addresses)) == 90
        handle = codec.decode(Handle, "", _value(cluster, keys.handle("h")))
        assert sum(handle.block.values()) == 90
        with pytest.raises(PoolExhausted):
            allocator.auto_assign("dock-a", 60, pools=["10.60.0.0/25"], max_blocks=100, deadline=soon())
        assert in_use(cluster) == 90
        assert len(allocator.release_by_handle("h", soon()).addresses) == 90
        assert in_use(cluster) == 0 and cluster.list(keys.HANDLES, soon()).items == ()

    def test_large_requests_together(self, cluster: EtcdKV, allocator: Allocator) -> None:
        """Their sum is more than etcd takes in one transaction: they go in several, and nobody sees it."""
        put(cluster, "IPPool", "tiny", {"cidr": "10.60.0.0/24", "blockSize": 31})
        given: list[Any] = []

        def take(number: int) -> None:
            given.extend(allocator.auto_assign(
                "dock-a", 40, handle=f"h{number}", pools=["10.60.0.0/24"], max_blocks=200, deadline=soon()
            ).addresses)

        threads = [threading.Thread(target=take, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(given)) == len(given) == in_use(cluster) == 240

    @pytest.mark.parametrize(
        "within, expected",
        [("10.50.0.20/30", ["10.50.0.20/28", "10.50.0.21/28"]), ("10.50.0.32/27", ["10.50.0.32/28", "10.50.0.33/28"])],
    )
    def test_only_out_of_a_range(self, allocator: Allocator, within: str, expected: list[str]) -> None:
        """Parts of a block and several blocks."""
        given = allocator.auto_assign("dock-a", 2, pools=["10.50.0.0/26"], within=within, deadline=soon())
        assert texts(given.addresses) == expected

    def test_a_range_that_is_used_up(self, allocator: Allocator) -> None:
        """Hosts share a range smaller than a block by borrowing; then it is full, although the pool is not."""
        for host in ("dock-a", "dock-b", "dock-a", "dock-b"):
            allocator.auto_assign(host, within="10.50.0.20/30", deadline=soon())
        with pytest.raises(PoolExhausted, match="within 10.50.0.20/30"):
            allocator.auto_assign("dock-a", within="10.50.0.20/30", deadline=soon())
        assert allocator.auto_assign("dock-a", deadline=soon()).addresses

    def test_a_block_without_usable_address_is_not_claimed(self, cluster: EtcdKV, allocator: Allocator) -> None:
        """The range's only block has nothing but reserved addresses in it: nothing is stored."""
        put(cluster, "IPReservation", "r", {"reservedCIDRs": ["10.50.0.20/30"]})
        with pytest.raises(PoolExhausted):
            allocator.auto_assign("dock-a", within="10.50.0.20/30", deadline=soon())
        assert cluster.list(keys.IPAM, soon()).items == ()

    def test_an_address_in_use_is_named_with_its_owner(self, allocator: Allocator) -> None:
        """The user learns who has it."""
        allocator.assign("10.50.0.5", "dock-a", attributes={"node": "dock-a"}, deadline=soon())
        with pytest.raises(AlreadyExists, match="10.50.0.5.*in use by node dock-a"):
            allocator.assign("10.50.0.5", "dock-b", deadline=soon())

    def test_strict_affinity_forbids_anothers_block(self, cluster: EtcdKV, allocator: Allocator) -> None:
        """Refused, naming the block and its owner."""
        set_config(cluster, IPAMConfig(strict_affinity=True, auto_allocate_blocks=True), soon())
        allocator.assign("10.50.0.5", "dock-a", deadline=soon())
        with pytest.raises(Conflict, match="10.50.0.6 is in block 10.50.0.0/28 of dock-a.*dock-b"):
            allocator.assign("10.50.0.6", "dock-b", deadline=soon())

    def test_the_block_limit_says_what_to_change(self, allocator: Allocator) -> None:
        """The limit and its number are in the text."""
        allocator.auto_assign("dock-a", 16, max_blocks=1, deadline=soon())
        with pytest.raises(PoolExhausted, match="limit of 1 blocks"):
            allocator.auto_assign("dock-a", max_blocks=1, deadline=soon())

    @pytest.mark.parametrize("bad", [{"count": 0}, {"pools": ["nonsense"]}, {"handle": "a/b"}, {"within": "x"}])
    def test_bad_input_is_named(self, allocator: Allocator, bad: dict[str, Any]) -> None:
        """Before anything is read."""
        with pytest.raises(InvalidInput):
            allocator.auto_assign("dock-a", **bad, deadline=soon())
        with pytest.raises(InvalidInput, match="address = '10.50.0.300'"):
            allocator.assign("10.50.0.300", "dock-a", deadline=soon())

    def test_a_block_that_does_not_parse_is_passed_over_and_never_overwritten(
        self, cluster: EtcdKV, allocator: Allocator
    ) -> None:
        """Addresses come from elsewhere; what asks for that very block is told."""
        cluster.put(keys.block(BLOCK), b"{broken", soon())
        cluster.put(keys.affinity("dock-a", BLOCK), b'{"state":"confirmed"}', soon())
        assert texts(allocator.auto_assign("dock-a", deadline=soon()).addresses) == ["10.50.0.16/28"]
        with pytest.raises(CorruptValue, match=r"10\.50\.0\.0-28"):
            allocator.assign("10.50.0.3", "dock-a", deadline=soon())
        assert _value(cluster, keys.block(BLOCK)) == b"{broken"

    def test_a_huge_ipv6_pool(self, cluster: EtcdKV, allocator: Allocator) -> None:
        """2^58 blocks, and a host's start anywhere in them."""
        put(cluster, "IPPool", "six", {"cidr": "fd00:50::/64"})
        for number in range(3):
            assert allocator.auto_assign("dock-a", 64, 6, deadline=soon()).addresses[0].network.prefixlen == 122


class TestTaking:
    @pytest.fixture
    def allocator(self, cluster: EtcdKV) -> Allocator:
        return Allocator(cluster, selects, start=first)

    def test_a_stale_release_leaves_the_new_owner_alone(self, cluster: EtcdKV, allocator: Allocator) -> None:
        """The sequence number tells the allocation that was seen from the one that came after (no ABA)."""
        allocator.assign("10.50.0.5", "dock-a", deadline=soon())
        seen = allocator.attributes_of("10.50.0.5", soon())
        allocator.release(["10.50.0.5"], soon())
        allocator.assign("10.50.0.5", "dock-b", handle="new", deadline=soon())
        with pytest.raises(Conflict, match="10.50.0.5 has sequence number"):
            allocator.release([Release(seen.address, seen.sequence)], soon())
        with pytest.raises(Conflict, match="has handle new, not none"):
            allocator.release([Release(seen.address, handle="")], soon())
        assert allocator.attributes_of("10.50.0.5", soon()).handle == "new"

    def test_twice_is_success(self, allocator: Allocator) -> None:
        """What is free already is reported as such."""
        given = allocator.auto_assign("dock-a", 2, deadline=soon())
        ips = [one.ip for one in given.addresses]
        assert allocator.release(ips, soon()).addresses == tuple(ips)
        again = allocator.release(ips, soon())
        assert (again.addresses, again.unallocated) == ((), tuple(ips))

    def test_free_is_never_said_from_memory(self, cluster: EtcdKV, allocator: Allocator) -> None:
        """An address that another process has given since we looked is released, not taken for free."""
        given = allocator.auto_assign("dock-a", deadline=soon())
        allocator.release([given.addresses[0].ip], soon())
        Allocator(cluster, selects).assign("10.50.0.0", "dock-a", handle="h", deadline=soon())
        assert texts(allocator.release(["10.50.0.0"], soon()).addresses) == ["10.50.0.0"]
        assert cluster.get(keys.handle("h"), soon()) is None

    def test_many_addresses_of_many_handles(self, cluster: EtcdKV, allocator: Allocator) -> None:
        """More than one transaction holds go in several."""
        ips = [allocator.auto_assign("dock-a", handle=f"h{n}", deadline=soon()).addresses[0].ip for n in range(50)]
        assert len(allocator.release(ips, soon()).addresses) == 50
        assert in_use(cluster) == 0 and cluster.list(keys.HANDLES, soon()).items == ()

    def test_an_address_of_a_pool_that_is_gone(self, cluster: EtcdKV, allocator: Allocator) -> None:
        """Its block is found without the pool."""
        given = allocator.auto_assign("dock-a", deadline=soon())
        cluster.delete(keys.resource("IPPool", "web"), soon())
        assert texts(allocator.release([given.addresses[0].ip, "192.0.2.1"], soon()).unallocated) == ["192.0.2.1"]
        assert in_use(cluster) == 0

    def test_blocks_that_must_be_empty(self, cluster: EtcdKV, allocator: Allocator) -> None:
        """One that is not keeps all of them."""
        allocator.claim_affinity("dock-a", "10.50.0.0/26", soon())
        allocator.assign("10.50.0.40", "dock-a", deadline=soon())
        with pytest.raises(Conflict, match="block 10.50.0.32/28 of node dock-a"):
            allocator.release_host_affinities("dock-a", soon(), must_be_empty=True)
        assert len(cluster.list(keys.BLOCKS, soon()).items) == 4
        allocator.release_host_affinities("dock-a", soon())
        assert [item.key for item in cluster.list(keys.IPAM, soon()).items] == [keys.block("10.50.0.32/28")]
        assert block_of(cluster, "10.50.0.32/28").affinity is None

    @pytest.mark.parametrize("host", ["dock-a", "dock-b"], ids=["own block", "borrowed"])
    def test_a_rested_address_is_given_again(self, cluster: EtcdKV, host: str) -> None:
        """With a cooldown a released address is left alone until it has rested, also by one that remembers the block.
        """
        put(cluster, "IPPool", "web", {"cidr": "10.50.0.0/28", "blockSize": 28})
        set_config(cluster, IPAMConfig(auto_allocate_blocks=True, ip_cooldown_seconds=600), soon())
        allocator = Allocator(cluster, selects, start=first, scan_seconds=0)
        allocator.auto_assign("dock-a", 16, deadline=soon())
        allocator.release(["10.50.0.3"], soon())
        with pytest.raises(PoolExhausted):
            allocator.auto_assign(host, deadline=soon())
        with pytest.raises(AlreadyExists, match="10.50.0.3.*rests for the cooldown"):
            allocator.assign("10.50.0.3", host, deadline=soon())
        stored = block_of(cluster)
        old = "2026-01-01T00:00:00Z"
        marks = [replace(one, released_at=old) if one.released_at else one for one in stored.attributes or ()]
        cluster.put(keys.block(BLOCK), codec.encode(replace(stored, attributes=tuple(marks))), soon())
        assert texts(allocator.auto_assign(host, deadline=soon()).addresses) == ["10.50.0.3/28"]
        assert arithmetic.problems(block_of(cluster), 16) == []

    def test_a_whole_pool_of_many_hosts(self, cluster: EtcdKV, allocator: Allocator) -> None:
        """Claims of 128 blocks go in a few commits, and all that was empty is gone."""
        put(cluster, "IPPool", "big", {"cidr": "10.60.0.0/21", "blockSize": 28})
        for host, part in (("dock-a", "10.60.0.0/22"), ("dock-b", "10.60.4.0/22")):
            assert len(allocator.claim_affinity(host, part, soon()).claimed) == 64
        allocator.release_pool_affinities("10.60.0.0/21", soon())
        assert cluster.list(keys.IPAM, soon()).items == ()


class TestTrouble:
    """etcd that stops answering: calls end in time with the word that helps, and nothing is given twice afterwards."""

    @pytest.fixture
    def server(self, tmp_path: Any) -> Iterator[Cluster]:
        with etcd_cluster(tmp_path) as cluster:
            yield cluster

    def test_a_frozen_etcd(self, server: Cluster) -> None:
        """All callers get an error by their own deadline; after the thaw addresses are distinct again."""
        kv = connect([server.endpoints[0]])
        put(kv, "Node", "dock-a")
        put(kv, "IPPool", "web", {"cidr": "10.50.0.0/24", "blockSize": 26})
        allocator = Allocator(kv, selects, OldView(kv))
        given = [allocator.auto_assign("dock-a", attributes={"node": "dock-a"}, deadline=soon()).addresses[0]]
        server.members[0].freeze()
        errors: list[CalicoError] = []

        def call(seconds: float) -> None:
            try:
                given.append(allocator.auto_assign("dock-a", deadline=Deadline(seconds)).addresses[0])
            except (DatastoreUnavailable, DeadlineExceeded) as error:
                errors.append(error)

        threads = [threading.Thread(target=call, args=(0.5 + 0.2 * number,)) for number in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(5)
            assert not thread.is_alive()
        assert len(errors) == 5 and all("etcd" in str(error) for error in errors)
        server.members[0].thaw()
        given += [allocator.auto_assign("dock-a", deadline=soon()).addresses[0] for _ in range(10)]
        assert len(set(given)) == len(given)
        kv.close()


def _value(kv: EtcdKV, key: str) -> bytes:
    item = kv.get(key, soon())
    assert item is not None
    return item.value
