"""Choice of pools, reservations, and a host's way through a pool."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Mapping

import pytest

from calico_plugin.errors import InvalidInput, PoolExhausted
from calico_plugin.ipam.cidr import Cidr, parse
from calico_plugin.ipam.ledger import mark
from calico_plugin.ipam.pools import Pool, Reservations, Walk, Wish, choose, fnv1, pool_of, start_index
from calico_plugin.model import codec
from calico_plugin.model.resources import IPPool

GOLDEN = json.loads((Path(__file__).parents[2] / "data" / "golden" / "ipam.json").read_text())


def pool(name: str, cidr: str, size: int = 26, **rest: object) -> Pool:
    return Pool(name, parse(cidr), size, **rest)  # type: ignore[arg-type]


def by_rack(selector: str, labels: Mapping[str, str]) -> bool:
    """A matcher that is enough here: the selector names the rack."""
    return labels.get("rack") == selector


def names(pools: tuple[Pool, ...]) -> list[str]:
    return [one.name for one in pools]


A = pool("a", "10.50.0.0/16")
B = pool("b", "10.60.0.0/16", node_selector="r1")
SIX = pool("six", "fd00:50::/64", 122)


def test_pools_that_select_the_node_in_name_order() -> None:
    """Family, selector, mode and use decide; the order is that of the list."""
    manual, off = pool("m", "10.70.0.0/16", automatic=False), pool("o", "10.80.0.0/16", enabled=False)
    tunnel = pool("t", "10.90.0.0/16", uses=("Tunnel",))
    known = (A, B, manual, off, SIX, tunnel)
    assert names(choose(known, Wish(4, "Workload"), "n", {"rack": "r1"}, by_rack)) == ["a", "b"]
    assert names(choose(known, Wish(4, "Tunnel"), "n", {}, by_rack)) == ["a", "t"]
    assert names(choose(known, Wish(6, "Workload"), "n", {}, by_rack)) == ["six"]


def test_a_requested_pool_overrides_selector_and_mode_but_not_use() -> None:
    """In the order of the request; a use that the pool does not have is refused."""
    manual = pool("m", "10.70.0.0/16", automatic=False, uses=("Workload",))
    wish = Wish(4, "Workload", (manual.cidr, B.cidr))
    assert names(choose((A, B, manual), wish, "n", {}, by_rack)) == ["m", "b"]
    with pytest.raises(PoolExhausted, match=r"m \(10.70.0.0/16\) is not for Tunnel"):
        choose((A, manual), Wish(4, "Tunnel", (manual.cidr,)), "n", {}, by_rack)


def test_an_unknown_pool_is_named_with_those_that_exist() -> None:
    """A part of a pool's CIDR is not the pool."""
    with pytest.raises(InvalidInput, match=r"10.50.0.0/17.*no IPv4 pool has this CIDR; pools: a \(10.50.0.0/16\)"):
        choose((A, SIX), Wish(4, "Workload", (parse("10.50.0.0/17"),)), "n", {}, by_rack)


def test_a_disabled_pool_is_refused_as_such() -> None:
    """The user learns that it exists."""
    off = pool("o", "10.80.0.0/16", enabled=False)
    with pytest.raises(InvalidInput, match="10.80.0.0/16.*IP pool o is disabled"):
        choose((off,), Wish(4, "Workload", (off.cidr,)), "n", {}, by_rack)


def test_two_pools_with_one_cidr_the_enabled_one_serves() -> None:
    """A disabled namesake in front does not hide it."""
    off = pool("a0", "10.50.0.0/16", enabled=False)
    assert names(choose((off, A), Wish(4, "Workload", (A.cidr,)), "n", {}, by_rack)) == ["a"]


def test_when_no_pool_is_left_each_says_why() -> None:
    """One reason for each pool of the family."""
    known = (B, pool("m", "10.70.0.0/16", automatic=False), pool("o", "10.80.0.0/16", enabled=False))
    with pytest.raises(PoolExhausted) as caught:
        choose(known, Wish(4, "Workload"), "dock-x", {}, by_rack)
    for reason in ("b (10.60.0.0/16) does not select node dock-x (r1)", "m (10.70.0.0/16) is assigned", "is disabled"):
        assert reason in str(caught.value)
    with pytest.raises(PoolExhausted, match="no IPv6 pool exists"):
        choose(known, Wish(6, "Workload"), "dock-x", {}, by_rack)


def test_a_use_that_does_not_exist() -> None:
    """The known ones are listed."""
    with pytest.raises(InvalidInput, match="use = 'Nonsense': one of Workload, Tunnel, LoadBalancer"):
        choose((A,), Wish(4, "Nonsense"), "n", {}, by_rack)


def test_namespace_selectors_see_no_labels() -> None:
    """Docker has no namespaces."""
    picky = pool("p", "10.70.0.0/16", namespace_selector="r1")
    with pytest.raises(PoolExhausted, match="is for namespaces r1"):
        choose((picky,), Wish(4, "Workload"), "n", {"rack": "r1"}, by_rack)


def _allocatable(status: str) -> dict[str, object]:
    return {"conditions": [{"type": "Allocatable", "status": status}]}


SPEC = {"cidr": "10.50.0.0/16"}


@pytest.mark.parametrize(
    "document, enabled",
    [
        ({"spec": SPEC}, True),
        ({"spec": {**SPEC, "disabled": True}}, False),
        ({"metadata": {"deletionTimestamp": "2026-08-20T09:00:00Z"}, "spec": SPEC}, False),
        ({"spec": SPEC, "status": _allocatable("False")}, False),
        ({"spec": SPEC, "status": _allocatable("True")}, True),
    ],
)
def test_stored_pools_with_calicos_defaults(document: dict[str, object], enabled: bool) -> None:
    """Old objects lack everything but the CIDR; deletion and Allocatable=False stop assignments."""
    made = pool_of(codec.decode(IPPool, "key", json.dumps({"kind": "IPPool", **document}).encode()), "key", 7)
    assert made is not None and made.enabled is enabled
    assert (made.block_size, made.automatic, made.uses, made.revision) == (26, True, ("Workload", "Tunnel"), 7)


@pytest.mark.parametrize("spec", [{"cidr": "nonsense"}, {"cidr": "10.50.0.0/28", "blockSize": 26}, {"cidr": ""}])
def test_a_stored_pool_that_makes_no_sense_counts_as_absent(spec: dict[str, object]) -> None:
    """Bad data must not stop the others."""
    assert pool_of(codec.decode(IPPool, "key", json.dumps({"kind": "IPPool", "spec": spec}).encode())) is None


def test_reservations_merge_and_count() -> None:
    """Neighbours and overlaps become one interval."""
    reserved = Reservations.of(map(parse, ("10.50.0.8/30", "10.50.0.0/29", "10.50.0.4/31", "10.50.1.0/32")))
    assert len(reserved.starts) == 2
    assert reserved.covers(parse("10.50.0.0/29")) and not reserved.covers(parse("10.50.0.0/28"))
    assert reserved.touches(parse("10.50.0.0/28")) and not reserved.touches(parse("10.50.0.16/28"))
    assert (reserved.count(parse("10.50.0.0/16")), reserved.count(parse("10.50.0.10/31"))) == (13, 2)
    assert int(parse("10.50.1.0/32").base) in reserved and int(parse("10.50.1.1/32").base) not in reserved


@pytest.mark.parametrize("one", GOLDEN["host_order"][::4], ids=lambda one: one["host"][:12] or "none")
def test_host_names_hash_as_in_the_original(one: dict[str, object]) -> None:
    """FNV-1, 32 bits."""
    assert fnv1(str(one["host"])) == one["fnv1_32"]


def test_consecutive_hosts_start_far_apart() -> None:
    """Where a host starts depends on its name only, and neighbours by name are no neighbours in the pool."""
    starts = [start_index(f"node-{number}", 1024) for number in range(64)]
    assert starts == [start_index(f"node-{number}", 1024) for number in range(64)]
    assert len(set(starts)) > 55 and all(0 <= one < 1024 for one in starts)
    assert sum(abs(one - other) <= 1 for one, other in zip(starts, starts[1:])) == 0
    assert start_index("node-1", 1) == 0 and start_index("node-1", 2**58) < 2**58


def test_a_walk_visits_each_block_once_and_wraps() -> None:
    """From the start to the end, then from the beginning; `rank` is its inverse."""
    walk = Walk.of(pool("p", "10.50.0.0/26", 28), "host", None, lambda host, count: 3)
    blocks = [walk.block(rank) for rank in range(walk.count)]
    assert list(map(str, blocks)) == ["10.50.0.48/28", "10.50.0.0/28", "10.50.0.16/28", "10.50.0.32/28"]
    assert [walk.rank(block) for block in blocks] == [0, 1, 2, 3]
    assert walk.rank(parse("10.50.0.0/27")) is None and walk.rank(parse("10.50.0.64/28")) is None
    assert list(walk.unused({mark(blocks[0]), mark(blocks[2])})) == [blocks[1], blocks[3]]


@pytest.mark.parametrize(
    "within, expected",
    [
        ("10.50.0.16/28", ["10.50.0.16/28"]),
        ("10.50.0.20/30", ["10.50.0.16/28"]),
        ("10.50.0.0/27", ["10.50.0.0/28", "10.50.0.16/28"]),
        ("10.50.0.0/16", ["10.50.0.48/28", "10.50.0.0/28", "10.50.0.16/28", "10.50.0.32/28"]),
        ("10.51.0.0/16", []),
    ],
)
def test_a_walk_within_a_range(within: str, expected: list[str]) -> None:
    """Only blocks that overlap the range, whole or in part."""
    walk = Walk.of(pool("p", "10.50.0.0/26", 28), "host", parse(within), lambda host, count: 3 % count)
    assert sorted(map(str, walk.unused(set()))) == sorted(expected)
    assert all(walk.rank(parse(block)) is not None for block in expected)


def test_a_huge_pool_costs_nothing_to_enter() -> None:
    """2^58 blocks: the first unused one comes at once."""
    walk = Walk.of(SIX, "host", None, start_index)
    assert next(walk.unused(set())) == walk.block(0)


def test_cidr_arithmetic() -> None:
    """Numbers and text agree, for both families."""
    four, six = parse("10.50.7.65/26"), parse("FD00:50::41/122")
    assert (str(four), str(six)) == ("10.50.7.64/26", "fd00:50::40/122")
    assert four.size == six.size == 64 and str(four.at(1)) == "10.50.7.65"
    assert four.covers(parse("10.50.7.96/27")) and not four.covers(six) and not parse("10.50.7.96/27").covers(four)
    assert parse("10.50.0.0/16").block_of(four.base + 5, 26) == four
    assert Cidr(4, 0, 0).blocks(26) == 1 << 26
