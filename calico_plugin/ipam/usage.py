"""How full the pools are: a pure count over listings, as `calicoctl ipam show` prints it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterable, Mapping, Sequence

from calico_plugin.ipam import block as arithmetic
from calico_plugin.ipam.cidr import Cidr
from calico_plugin.ipam.pools import Pool, Reservations
from calico_plugin.model.ipam import Block


@dataclass(frozen=True, slots=True)
class BlockUse:
    """Numbers of addresses; `reserved` are reserved and not in use. A resting address (cooldown) is neither in use
    nor available.
    """

    cidr: Cidr
    host: str | None
    capacity: int
    in_use: int
    reserved: int
    available: int


@dataclass(frozen=True, slots=True)
class PoolUse:
    """A pool, or with `pool` None the blocks that lie in no pool (`orphaned`)."""

    pool: Pool | None
    capacity: int
    in_use: int
    reserved: int
    available: int
    blocks: tuple[BlockUse, ...]


def pool_use(
    pools: Sequence[Pool], blocks: Iterable[tuple[Cidr, Block]], reservations: Mapping[int, Reservations]
) -> tuple[PoolUse, ...]:
    """One entry for each pool in the order given, then one for the blocks outside all of them."""
    held: dict[str | None, list[tuple[Cidr, Block]]] = {}
    for cidr, block in blocks:
        pool = next((pool for pool in pools if pool.cidr.covers(cidr)), None)
        held.setdefault(pool.name if pool else None, []).append((cidr, block))
    uses = [_use_of_pool(pool, held.get(pool.name, ()), reservations[pool.cidr.version]) for pool in pools]
    orphans = tuple(block_use(cidr, block, reservations[cidr.version]) for cidr, block in held.get(None, ()))
    return (*uses, _sum(None, sum(use.capacity for use in orphans), 0, orphans))


def _use_of_pool(pool: Pool, blocks: Iterable[tuple[Cidr, Block]], reservations: Reservations) -> PoolUse:
    uses = tuple(block_use(cidr, block, reservations) for cidr, block in blocks)
    outside = reservations.count(pool.cidr) - sum(reservations.count(use.cidr) for use in uses)
    return _sum(pool, pool.cidr.size, outside, uses)


def _sum(pool: Pool | None, capacity: int, reserved_outside: int, uses: tuple[BlockUse, ...]) -> PoolUse:
    reserved = reserved_outside + sum(use.reserved for use in uses)
    taken = sum(use.capacity - use.available for use in uses)
    return PoolUse(
        pool=pool,
        capacity=capacity,
        in_use=sum(use.in_use for use in uses),
        reserved=reserved,
        available=capacity - taken - reserved_outside,
        blocks=uses,
    )


def block_use(cidr: Cidr, block: Block, reservations: Reservations) -> BlockUse:
    touched = reservations.touches(cidr)
    reserved = sum(cidr.base + ordinal in reservations for ordinal in block.unallocated) if touched else 0
    attributes = block.attributes or ()
    in_use = sum(index is not None and not attributes[index].released_at for index in block.allocations)
    return BlockUse(
        cidr=cidr,
        host=arithmetic.owner(block),
        capacity=len(block.allocations),
        in_use=in_use,
        reserved=reserved,
        available=len(block.unallocated) - reserved,
    )
