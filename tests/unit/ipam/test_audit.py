"""Allocations against what uses them."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from ipaddress import ip_address
from typing import Any

from msgspec.structs import replace

from calico_plugin.ipam import block as arithmetic
from calico_plugin.ipam.audit import Audit, allocations_of, audit, leaks
from calico_plugin.ipam.cidr import parse
from calico_plugin.ipam.pools import Pool, Reservations
from calico_plugin.ipam.usage import pool_use
from calico_plugin.model.ipam import AllocationAttribute, Block, Handle
from calico_plugin.model.resources import Metadata, Node, WorkloadEndpoint
from calico_plugin.model.resources.endpoint import WorkloadEndpointSpec
from calico_plugin.model.resources.node import NodeBGPSpec, NodeSpec

NOW = datetime(2026, 8, 20, 9, 0, 0, tzinfo=timezone.utc)
CIDR = parse("10.50.7.64/29")
POOL = Pool("small", parse("10.50.7.64/27"), 29)


def block_with(*owners: tuple[int, str | None, dict[str, str]]) -> Block:
    """A block of dock-a with these (ordinal, handle, attributes) in use."""
    block = arithmetic.fresh(str(CIDR), 8, "dock-a", NOW, 100)
    for ordinal, handle, secondary in owners:
        attribute = AllocationAttribute(handle_id=handle, secondary=secondary or None)
        changed = arithmetic.assign_ordinal(block, ordinal, attribute)
        assert changed is not None
        block = arithmetic.bumped(changed)
    return block


def endpoint(name: str, node: str, *addresses: str) -> WorkloadEndpoint:
    spec = WorkloadEndpointSpec(node=node, ip_networks=tuple(f"{one}/32" for one in addresses))
    return WorkloadEndpoint(metadata=Metadata(name=name, namespace="libnetwork"), spec=spec)


def run(block: Block, **listings: Any) -> Audit:
    defaults: dict[str, Any] = {"handles": {}, "affinities": (), "pools": (POOL,), "endpoints": (), "nodes": ()}
    return audit([(CIDR, block)], **{**defaults, **listings})


def addresses(found: Any) -> list[str]:
    return [str(one.address) for one in found]


def test_all_is_well() -> None:
    """Endpoints and tunnels account for all addresses, handles for all blocks."""
    block = block_with((0, "tunnel", {"node": "dock-a"}), (1, "h", {"node": "dock-a"}))
    node = Node(metadata=Metadata(name="dock-a"), spec=NodeSpec(bgp=NodeBGPSpec(ipv4_ipip_tunnel_addr="10.50.7.64")))
    found = run(
        block, nodes=[node], endpoints=[endpoint("w", "dock-a", "10.50.7.65")], affinities=[("dock-a", CIDR)],
        handles={"tunnel": Handle(block={str(CIDR): 1}), "h": Handle(block={str(CIDR): 1})},
    )
    assert (found.problems, found.by_node, found.handles.used) == (0, (("dock-a", 2),), ("tunnel", "h"))
    assert [use.owner for use in found.uses] == ["Workload(libnetwork/w)", "Node(dock-a)"]


def test_leaks_and_what_docker_keeps() -> None:
    """An address that nobody has is leaked; a network's gateway is not, and says so."""
    found = run(block_with((0, None, {}), (1, "docker-gateway-x", {"node": "dock-a", "type": "dockerGateway"})))
    assert (addresses(found.leaked), addresses(found.kept)) == (["10.50.7.64"], ["10.50.7.65"])
    assert found.by_node == (("dock-a", 2),)


def test_used_without_being_allocated() -> None:
    """Inside an active pool it is a lost allocation, outside it is a foreign address."""
    off = Pool("off", parse("10.60.0.0/16"), 26, enabled=False)
    uses = [endpoint("w", "dock-a", "10.50.7.70", "10.60.0.1", "192.0.2.1")]
    found = run(block_with(), endpoints=uses, pools=(POOL, off))
    assert addresses(found.unallocated) == ["10.50.7.70"]
    assert addresses(found.outside_pools) == ["10.60.0.1", "192.0.2.1"]
    assert found.problems == 3


def test_one_address_of_two_endpoints() -> None:
    """Both are told."""
    found = run(
        block_with((1, None, {"node": "dock-a"})),
        endpoints=[endpoint("one", "dock-a", "10.50.7.65"), endpoint("two", "dock-b", "10.50.7.65")],
    )
    assert [[use.owner for use in group] for group in found.double] == [
        ["Workload(libnetwork/one)", "Workload(libnetwork/two)"]
    ]
    assert [(str(one.address), use.node) for one, use in found.foreign] == [("10.50.7.65", "dock-b")]


def test_handles_that_do_not_add_up() -> None:
    """Without addresses, without a stored handle, with a wrong count."""
    block = block_with((0, "lost", {}), (1, "over", {}), (2, "right", {}))
    counts = {"over": 3, "idle": 1, "right": 1}
    handles = {name: Handle(block={str(CIDR): count}) for name, count in counts.items()}
    found = run(block, handles=handles).handles
    assert (found.used, found.unused, found.missing) == (("over", "right"), ("idle",), ("lost",))
    assert [(one.handle, dict(one.counted), dict(one.held)) for one in found.miscounted] == [
        ("over", {str(CIDR): 3}, {str(CIDR): 1})
    ]


def test_invalid_blocks_and_claims_without_block() -> None:
    """Broken invariants are named; what can be read of such a block is still used."""
    broken = replace(block_with((0, "h", {})), unallocated=(1, 2, 3), cidr="10.50.7.72/29")
    found = run(broken, affinities=[("dock-a", CIDR), ("dock-b", CIDR), ("dock-a", parse("10.50.7.80/29"))])
    assert found.invalid_blocks[0][1][-1] == "says it is 10.50.7.72/29" and len(found.invalid_blocks[0][1]) == 2
    assert [(host, str(cidr)) for host, cidr in found.affinities_without_block] == [
        ("dock-b", "10.50.7.64/29"), ("dock-a", "10.50.7.80/29")
    ]
    wild = replace(block_with(), allocations=(5, *[None] * 7), unallocated=tuple(range(1, 8)))
    assert run(wild).allocations == ()


def test_resting_addresses_are_neither_in_use_nor_leaked() -> None:
    """Cooldown is no leak."""
    block = arithmetic.release(block_with((0, "h", {})), (0,), cooling_since=NOW)
    assert run(block).allocations == ()


def test_a_node_frees_only_its_own_old_forgotten_container_addresses() -> None:
    """Not another node's, not what has a type, no time, or was given just now; and exactly the allocation seen."""
    old, new = "2026-08-20T08:00:00Z", "2026-08-20T08:59:50Z"
    block = block_with(
        (0, None, {"node": "dock-a", "timestamp": old}), (1, None, {"node": "dock-a", "timestamp": new}),
        (2, None, {"node": "dock-b", "timestamp": old}), (3, None, {"node": "dock-a"}), (4, None, {}),
        (5, "gw", {"node": "dock-a", "timestamp": old, "type": "dockerGateway"}),
        (6, None, {"node": "dock-a", "timestamp": old}),
    )
    found = leaks(allocations_of(CIDR, block), [ip_address("10.50.7.70")], "dock-a", NOW, timedelta(minutes=1))
    assert addresses(found) == ["10.50.7.64"]
    assert (found[0].release.sequence, found[0].release.handle) == (100, "")


def test_how_full_pools_are() -> None:
    """Reserved, resting and free addresses are told apart; blocks in no pool come last."""
    block = arithmetic.release(block_with((0, "h", {}), (1, "h", {}), (2, "g", {})), (1,), cooling_since=NOW)
    reserved = {4: Reservations.of([parse("10.50.7.66/31"), parse("10.50.7.72/30")]), 6: Reservations()}
    orphan = replace(block, cidr="10.99.0.0/29")
    small, rest = pool_use((POOL,), [(CIDR, block), (parse("10.99.0.0/29"), orphan)], reserved)
    assert (small.capacity, small.in_use, small.reserved, small.available) == (32, 2, 5, 24)
    assert (small.blocks[0].in_use, small.blocks[0].reserved, small.blocks[0].available) == (2, 1, 4)
    assert (rest.pool, rest.capacity, rest.in_use) == (None, 8, 2)
