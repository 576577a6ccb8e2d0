"""Which pool serves a request, which addresses are reserved, and in which order a host walks a pool's blocks. Pure
(datamodel 4.6, 4.9).
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Callable, Container, Iterable, Iterator, Mapping, Sequence

from calico_plugin.errors import InvalidInput, PoolExhausted
from calico_plugin.ipam.cidr import Cidr, parse
from calico_plugin.model.resources.ipam import IPPool

Selects = Callable[[str, Mapping[str, str]], bool]
"""(selector, labels) -> match; the roots pass the policy engine's."""

StartIndex = Callable[[str, int], int]
"""(host, number of blocks) -> index of the block at which the host starts in a pool."""

USES = ("Workload", "Tunnel", "LoadBalancer")


@dataclass(frozen=True, slots=True)
class Pool:
    """What allocation needs of an IPPool; `revision` is that of the stored object under `key`."""

    name: str
    cidr: Cidr
    block_size: int
    enabled: bool = True
    automatic: bool = True
    uses: tuple[str, ...] = ("Workload", "Tunnel")
    node_selector: str = ""
    namespace_selector: str = ""
    key: str = ""
    revision: int = 0

    @property
    def number_of_blocks(self) -> int:
        return self.cidr.blocks(self.block_size)

    def __str__(self) -> str:
        return f"{self.name} ({self.cidr})"


def pool_of(resource: IPPool, key: str = "", revision: int = 0) -> Pool | None:
    """The pool of a stored object with Calico's defaults; None when its CIDR or block size makes no sense (treated as
    absent).
    """
    spec = resource.spec
    try:
        cidr = parse(spec.cidr)
    except ValueError:
        return None
    size = spec.effective_block_size
    if not cidr.prefix <= size <= (32 if cidr.version == 4 else 128):
        return None
    return Pool(
        name=resource.name,
        cidr=cidr,
        block_size=size,
        enabled=not (spec.disabled or resource.metadata.deletion_timestamp or _not_allocatable(resource)),
        automatic=spec.automatic,
        uses=spec.effective_uses,
        node_selector=spec.node_selector,
        namespace_selector=spec.namespace_selector,
        key=key,
        revision=revision,
    )


def _not_allocatable(resource: IPPool) -> bool:
    status = resource.status if isinstance(resource.status, dict) else {}
    conditions = status.get("conditions") or ()
    return any(
        isinstance(condition, dict) and condition.get("type") == "Allocatable" and condition.get("status") == "False"
        for condition in conditions
    )


@dataclass(frozen=True, slots=True)
class Reservations:
    """Reserved addresses of one IP version as disjoint, sorted, inclusive intervals."""

    starts: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()

    @classmethod
    def of(cls, cidrs: Iterable[Cidr]) -> Reservations:
        merged: list[list[int]] = []
        for cidr in sorted(cidrs, key=lambda cidr: cidr.base):
            if merged and cidr.base <= merged[-1][1] + 1:
                merged[-1][1] = max(merged[-1][1], cidr.last)
            else:
                merged.append([cidr.base, cidr.last])
        return cls(tuple(start for start, _ in merged), tuple(end for _, end in merged))

    def __contains__(self, number: int) -> bool:
        index = bisect_right(self.starts, number) - 1
        return index >= 0 and number <= self.ends[index]

    def covers(self, cidr: Cidr) -> bool:
        """Is every address of the network reserved?"""
        index = bisect_right(self.starts, cidr.base) - 1
        return index >= 0 and cidr.last <= self.ends[index]

    def touches(self, cidr: Cidr) -> bool:
        return any(start <= cidr.last and cidr.base <= end for start, end in zip(self.starts, self.ends))

    def count(self, cidr: Cidr) -> int:
        """How many addresses of the network are reserved."""
        pairs = zip(self.starts, self.ends)
        return sum(max(0, min(end, cidr.last) - max(start, cidr.base) + 1) for start, end in pairs)


@dataclass(frozen=True, slots=True)
class Wish:
    """Which pools a request may use. `pools` None: those that select the node; else these CIDRs, in this order."""

    version: int
    use: str
    pools: tuple[Cidr, ...] | None = None


def selects_node(pool: Pool, labels: Mapping[str, str], selects: Selects) -> bool:
    return pool.node_selector in ("", "all()") or selects(pool.node_selector, labels)


def choose(
    pools: Sequence[Pool], wish: Wish, node: str, labels: Mapping[str, str], selects: Selects
) -> tuple[Pool, ...]:
    """The pools that may serve, in the order of use; `pools` come in name order.

    Raises InvalidInput for a use or CIDR that does not exist, PoolExhausted when no pool is left, with the reason for
    each.
    """
    if wish.use not in USES:
        raise InvalidInput("use", wish.use, f"one of {', '.join(USES)}")
    family = [pool for pool in pools if pool.cidr.version == wish.version]
    if wish.pools is not None:
        candidates = [_requested(family, cidr) for cidr in wish.pools]
        refused = {}
    else:
        refused = {pool: _refusal(pool, node, labels, selects) for pool in family}
        candidates = [pool for pool in family if not refused[pool]]
    refused.update((pool, f"is not for {wish.use}") for pool in candidates if wish.use not in pool.uses)
    usable = tuple(pool for pool in candidates if wish.use in pool.uses)
    if not usable:
        raise PoolExhausted(_none_left(wish, node, refused))
    return usable


def _requested(family: Sequence[Pool], cidr: Cidr) -> Pool:
    """A request names a pool by its exact CIDR, and overrides its selectors and assignment mode."""
    same = [pool for pool in family if pool.cidr == cidr]
    for pool in same:
        if pool.enabled:
            return pool
    if same:
        raise InvalidInput("pool", str(cidr), f"IP pool {same[0].name} is disabled: no new address is taken from it")
    known = ", ".join(str(pool) for pool in family) or "none"
    raise InvalidInput("pool", str(cidr), f"no IPv{cidr.version} pool has this CIDR; pools: {known}")


def _refusal(pool: Pool, node: str, labels: Mapping[str, str], selects: Selects) -> str:
    """Why a pool does not serve a node unasked; empty when it does."""
    if not pool.enabled:
        return "is disabled"
    if not pool.automatic:
        return "is assigned from by hand only"
    if not selects_node(pool, labels, selects):
        return f"does not select node {node} ({pool.node_selector})"
    # Docker has no namespace objects: the selector sees one without labels.
    if pool.namespace_selector and not selects(pool.namespace_selector, {}):
        return f"is for namespaces {pool.namespace_selector}"
    return ""


def _none_left(wish: Wish, node: str, refused: Mapping[Pool, str]) -> str:
    if not refused:
        return f"no IPv{wish.version} pool exists: create an IPPool first"
    reasons = "; ".join(f"{pool} {why}" for pool, why in refused.items())
    return f"no IPv{wish.version} pool can give node {node} an address for {wish.use}: {reasons}"


def fnv1(text: str) -> int:
    """32-bit FNV-1 (not 1a), the hash with which Calico seeds a host's place in a pool."""
    value = 0x811C9DC5
    for byte in text.encode():
        value = (value * 0x01000193 & 0xFFFFFFFF) ^ byte
    return value


def start_index(host: str, count: int) -> int:
    """Where a host starts in a pool of `count` blocks: depends on the name only.

    Go's random source is not reproduced (datamodel 4.9: not needed). The hash alone would put hosts with consecutive
    names into neighbouring blocks, where they collide as soon as they need a second one, hence the multiplication
    (Fibonacci hashing).
    """
    spread = (fnv1(host) + 1) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
    return spread * count >> 64


@dataclass(frozen=True, slots=True)
class Walk:
    """The blocks of a pool that a host may use, in its order: from its start to the end, then from the beginning.

    With `within` (an ip-range) only blocks that overlap it, in the same order.
    """

    pool: Pool
    start: int
    first: int
    count: int

    @classmethod
    def of(cls, pool: Pool, host: str, within: Cidr | None, index: StartIndex) -> Walk:
        shift = (32 if pool.cidr.version == 4 else 128) - pool.block_size
        first, last = 0, pool.number_of_blocks - 1
        if within is not None:
            first = max(first, (within.base - pool.cidr.base) >> shift)
            last = min(last, (within.last - pool.cidr.base) >> shift)
        count = max(0, last - first + 1)
        # A single-address block has no order worth keeping in the original (its seed is the clock); ours is as for all.
        start = index(host, pool.number_of_blocks)
        inside = start - first if first <= start <= last else (index(host, count) if count else 0)
        return cls(pool, inside, first, count)

    def rank(self, block: Cidr) -> int | None:
        """The block's place in the walk; None when it is not in it."""
        if block.prefix != self.pool.block_size or not self.pool.cidr.covers(block):
            return None
        position = (block.base - self.pool.cidr.base) // block.size - self.first
        return (position - self.start) % self.count if 0 <= position < self.count else None

    def unused(self, used: Container[int]) -> Iterator[Cidr]:
        """Blocks whose mark (first address, shifted by 8, with the prefix length) is not in `used`."""
        size = self.pool.cidr.block(0, self.pool.block_size).size
        base = self.pool.cidr.base + self.first * size
        for rank in range(self.count):
            block = base + (self.start + rank) % self.count * size
            if block << 8 | self.pool.block_size not in used:
                yield self.block(rank)

    def block(self, rank: int) -> Cidr:
        return self.pool.cidr.block(self.first + (self.start + rank) % self.count, self.pool.block_size)
