"""Questions about addresses. They read etcd at once and change nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterator, Mapping, Sequence

from calico_plugin.datastore.kv import KV
from calico_plugin.deadline import Deadline
from calico_plugin.errors import CorruptValue, NotFound
from calico_plugin.ipam import block as arithmetic
from calico_plugin.ipam.cidr import Address, Cidr, parse
from calico_plugin.ipam.ledger import block_cidr, block_key
from calico_plugin.ipam.usage import PoolUse, pool_use
from calico_plugin.ipam.view import ClusterView
from calico_plugin.model import codec, keys
from calico_plugin.model.ipam import Block, Handle


@dataclass(frozen=True, slots=True)
class Allocation:
    """An address in use: `sequence` is what a safe release has to show."""

    address: Address
    handle: str | None
    attributes: Mapping[str, str]
    sequence: int


class Queries:
    def __init__(self, kv: KV, view: ClusterView) -> None:
        self._kv, self._view = kv, view

    def ips_by_handle(self, handle: str, deadline: Deadline) -> tuple[Address, ...]:
        """In the order of the handle's blocks. Raises NotFound."""
        key = keys.handle(handle)
        item = self._kv.get(key, deadline)
        if item is None:
            raise NotFound(f"IPAM handle {handle}")
        cidrs = [parse(text) for text in codec.decode(Handle, key, item.value).block]
        blocks = self._blocks(cidrs, deadline)
        return tuple(cidr.at(n) for cidr, block in blocks for n in arithmetic.ordinals_of_handle(block, handle))

    def attributes_of(self, address: Address, deadline: Deadline) -> Allocation:
        """Raises NotFound for an address that is not in use; the hint tells when it rests."""
        pool = self._view.inputs(deadline).pool_of(address.version, int(address))
        cidr = pool.cidr.block_of(int(address), pool.block_size) if pool else self.block_holding(address, deadline)
        block = next((block for _, block in self._blocks([cidr], deadline)), None) if cidr else None
        attribute = arithmetic.attribute_of(block, int(address) - cidr.base) if cidr and block else None
        if cidr is None or block is None or attribute is None:
            raise NotFound(f"allocation of address {address}")
        if attribute.released_at:
            raise NotFound(f"allocation of address {address}", f"it rests since {attribute.released_at} (cooldown)")
        sequence = arithmetic.sequence_of(block, int(address) - cidr.base)
        return Allocation(address, attribute.handle_id, attribute.secondary or {}, sequence)

    def utilisation(self, wanted: Sequence[str], deadline: Deadline) -> tuple[PoolUse, ...]:
        inputs = self._view.inputs(deadline)
        uses = pool_use(inputs.pools, self.all_blocks(deadline), inputs.reservations)
        if not wanted:
            return uses
        return tuple(use for use in uses if use.pool and (use.pool.name in wanted or str(use.pool.cidr) in wanted))

    def all_blocks(self, deadline: Deadline) -> Iterator[tuple[Cidr, Block]]:
        """Every block that parses, in key order."""
        for item in self._kv.list(keys.BLOCKS, deadline).items:
            cidr = block_cidr(item.key)
            try:
                if cidr is not None:
                    yield cidr, codec.decode(Block, item.key, item.value)
            except CorruptValue:
                continue

    def block_holding(self, address: Address, deadline: Deadline) -> Cidr | None:
        """The stored block around an address that no pool holds (any more)."""
        prefix = f"{keys.BLOCKS}ipv{address.version}/"
        for item in self._kv.list(prefix, deadline, keys_only=True).items:
            cidr = block_cidr(item.key)
            if cidr is not None and int(address) in cidr:
                return cidr
        return None

    def _blocks(self, cidrs: Sequence[Cidr], deadline: Deadline) -> Iterator[tuple[Cidr, Block]]:
        found = self._kv.get_many([block_key(cidr) for cidr in cidrs], deadline)
        for cidr in cidrs:
            item = found[block_key(cidr)]
            if item is not None:
                yield cidr, codec.decode(Block, item.key, item.value)
