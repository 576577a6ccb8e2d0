"""Allocations against what uses them: what is leaked, used twice, used without being allocated, or does not add up.
Pure.

`audit` takes whole listings and is what `calicoctl ipam check` prints; `leaks` is the part of it with which a node
frees its own forgotten addresses. A release made from a finding carries the sequence number seen here, so that an
address which was given out anew in the meantime keeps its new owner.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Iterable, Mapping, Sequence

from calico_plugin.errors import InvalidInput
from calico_plugin.ipam import block as arithmetic
from calico_plugin.ipam.cidr import Address, Cidr, parse, parse_address
from calico_plugin.ipam.pools import Pool
from calico_plugin.ipam.releasing import Release
from calico_plugin.model.ipam import Block, Handle
from calico_plugin.model.resources import Node, WorkloadEndpoint

# Addresses that Docker keeps for a network: no endpoint has them, and they are no leaks.
KEPT_TYPES = ("dockerGateway", "dockerAuxAddress")


@dataclass(frozen=True, slots=True)
class Allocated:
    """An address that a block records as given. `host` is the block's owner."""

    address: Address
    block: Cidr
    host: str | None
    handle: str | None
    attributes: Mapping[str, str]
    sequence: int

    @property
    def node(self) -> str | None:
        """Where it is used: the attribute, else the block's owner."""
        return self.attributes.get("node") or self.host

    @property
    def release(self) -> Release:
        """Takes back exactly this allocation."""
        return Release(self.address, self.sequence, self.handle or "")


@dataclass(frozen=True, slots=True)
class Use:
    """Someone who has an address: an endpoint (`owner` is ``Workload(<namespace>/<name>)``) or a node's tunnel
    (``Node(<name>)``).
    """

    address: Address
    owner: str
    node: str


@dataclass(frozen=True, slots=True)
class Miscount:
    """A handle that counts other numbers than its blocks hold."""

    handle: str
    counted: Mapping[str, int]
    held: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class HandleFindings:
    """`used` have addresses, `unused` none; `missing` are named by blocks and not stored."""

    used: tuple[str, ...]
    unused: tuple[str, ...]
    missing: tuple[str, ...]
    miscounted: tuple[Miscount, ...]


@dataclass(frozen=True, slots=True)
class Audit:
    """What was found. `problems` counts as the original does; double use, foreign use and miscounts are ours."""

    blocks: tuple[tuple[Cidr, Block], ...]
    allocations: tuple[Allocated, ...]
    uses: tuple[Use, ...]
    by_node: tuple[tuple[str, int], ...]
    leaked: tuple[Allocated, ...]
    kept: tuple[Allocated, ...]
    outside_pools: tuple[Use, ...]
    unallocated: tuple[Use, ...]
    double: tuple[tuple[Use, ...], ...]
    foreign: tuple[tuple[Allocated, Use], ...]
    handles: HandleFindings
    invalid_blocks: tuple[tuple[Cidr, tuple[str, ...]], ...]
    affinities_without_block: tuple[tuple[str, Cidr], ...]

    @property
    def problems(self) -> int:
        found: tuple[Sequence[object], ...] = (
            self.leaked, self.outside_pools, self.unallocated, self.double, self.foreign,
            self.handles.unused, self.handles.missing, self.invalid_blocks, self.affinities_without_block,
        )
        return sum(map(len, found))


def audit(
    blocks: Iterable[tuple[Cidr, Block]],
    handles: Mapping[str, Handle],
    affinities: Iterable[tuple[str, Cidr]],
    pools: Sequence[Pool],
    endpoints: Iterable[WorkloadEndpoint],
    nodes: Iterable[Node],
) -> Audit:
    """`affinities` are the confirmed ones as (host, block); all listings are whole, of both families."""
    stored = tuple(blocks)
    allocations = tuple(one for cidr, block in stored for one in allocations_of(cidr, block))
    uses = (*uses_of_endpoints(endpoints), *uses_of_nodes(nodes))
    users = _by_address(uses)
    known = {one.address for one in allocations}
    idle = [one for one in allocations if one.address not in users and not _is_reserved(one)]
    in_pool = {use: _is_in(pools, use.address) for use in uses}
    return Audit(
        blocks=stored,
        allocations=allocations,
        uses=uses,
        by_node=tuple(Counter(one.node for one in allocations if one.node).most_common()),
        leaked=tuple(one for one in idle if one.attributes.get("type") not in KEPT_TYPES),
        kept=tuple(one for one in idle if one.attributes.get("type") in KEPT_TYPES),
        outside_pools=tuple(use for use in uses if not in_pool[use]),
        unallocated=tuple(use for use in uses if in_pool[use] and use.address not in known),
        double=tuple(group for group in users.values() if len(group) > 1),
        foreign=tuple((one, use) for one in allocations for use in users.get(one.address, ()) if _is_foreign(one, use)),
        handles=_handle_findings(allocations, handles),
        invalid_blocks=tuple((cidr, tuple(wrong)) for cidr, block in stored if (wrong := _problems(cidr, block))),
        affinities_without_block=_without_block(affinities, stored),
    )


def allocations_of(cidr: Cidr, block: Block) -> Iterable[Allocated]:
    """Addresses in use; those that only rest after their release (cooldown) are not."""
    count = len(block.attributes or ())
    for ordinal, index in enumerate(block.allocations):
        if index is None or not 0 <= index < count:
            continue
        attribute = arithmetic.attribute_of(block, ordinal)
        if attribute is None or arithmetic.is_cooling(attribute):
            continue
        yield Allocated(
            address=cidr.at(ordinal),
            block=cidr,
            host=arithmetic.owner(block),
            handle=attribute.handle_id,
            attributes=attribute.secondary or {},
            sequence=arithmetic.sequence_of(block, ordinal),
        )


def uses_of_endpoints(endpoints: Iterable[WorkloadEndpoint]) -> Iterable[Use]:
    for endpoint in endpoints:
        for text in endpoint.spec.ip_networks:
            address = _address(text)
            if address is not None:
                yield Use(address, f"Workload({endpoint.namespace}/{endpoint.name})", endpoint.spec.node)


def uses_of_nodes(nodes: Iterable[Node]) -> Iterable[Use]:
    """Addresses of tunnel devices."""
    for node in nodes:
        spec, wireguard = node.spec, node.spec.wireguard or {}
        texts = (
            spec.bgp.ipv4_ipip_tunnel_addr if spec.bgp else "",
            spec.ipv4_vxlan_tunnel_addr,
            spec.ipv6_vxlan_tunnel_addr,
            str(wireguard.get("interfaceIPv4Address") or ""),
            str(wireguard.get("interfaceIPv6Address") or ""),
        )
        for text in texts:
            address = _address(text)
            if address is not None:
                yield Use(address, f"Node({node.name})", node.name)


def leaks(
    allocations: Iterable[Allocated], used: Iterable[Address], node: str, now: datetime, grace: timedelta
) -> tuple[Allocated, ...]:
    """A node's own container addresses that no endpoint has, given out longer ago than `grace`.

    Only what was given with a node and a time and to nothing but a container: of anything else we cannot know who
    needs it.
    """
    in_use = set(used)
    return tuple(
        one for one in allocations
        if one.attributes.get("node") == node and "type" not in one.attributes and one.address not in in_use
        and _is_older(one, now, grace)
    )


def _is_older(one: Allocated, now: datetime, grace: timedelta) -> bool:
    since = arithmetic.parse_rfc3339(one.attributes.get("timestamp", ""))
    return since is not None and now - since > grace


def _address(text: str) -> Address | None:
    try:
        return parse_address(text.partition("/")[0])
    except InvalidInput:
        return None


def _by_address(uses: Iterable[Use]) -> dict[Address, tuple[Use, ...]]:
    found: dict[Address, tuple[Use, ...]] = {}
    for use in uses:
        found[use.address] = (*found.get(use.address, ()), use)
    return found


def _is_reserved(one: Allocated) -> bool:
    return one.handle == arithmetic.WINDOWS_RESERVED


def _is_in(pools: Sequence[Pool], address: Address) -> bool:
    return any(
        pool.enabled and pool.cidr.version == address.version and int(address) in pool.cidr for pool in pools
    )


def _is_foreign(one: Allocated, use: Use) -> bool:
    """Is it used on another node than the one it was given to? Then routes lead to the wrong host."""
    given_to = one.attributes.get("node")
    return bool(given_to and use.node and given_to != use.node)


def _problems(cidr: Cidr, block: Block) -> list[str]:
    wrong = arithmetic.problems(block, cidr.size)
    try:
        named = parse(block.cidr)
    except ValueError:
        named = None
    return wrong if named == cidr else [*wrong, f"says it is {block.cidr}"]


def _without_block(
    affinities: Iterable[tuple[str, Cidr]], blocks: Iterable[tuple[Cidr, Block]]
) -> tuple[tuple[str, Cidr], ...]:
    """Confirmed claims whose block is missing or another's."""
    owners = {cidr: arithmetic.owner(block) for cidr, block in blocks}
    return tuple((host, cidr) for host, cidr in affinities if owners.get(cidr) != host)


def _handle_findings(allocations: Iterable[Allocated], handles: Mapping[str, Handle]) -> HandleFindings:
    held: dict[str, Counter[str]] = {}
    for one in allocations:
        if one.handle:
            held.setdefault(one.handle, Counter())[str(one.block)] += 1
    return HandleFindings(
        used=tuple(name for name in handles if name in held),
        unused=tuple(name for name in handles if name not in held),
        missing=tuple(name for name in held if name not in handles),
        miscounted=tuple(
            Miscount(name, handle.block, dict(held[name]))
            for name, handle in handles.items()
            if name in held and dict(handle.block) != dict(held[name])
        ),
    )
