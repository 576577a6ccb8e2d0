"""The original's way to give an address, with its number and order of reads and writes: the yardstick of
`benchmarks.ipam`.

Follows Calico's allocator as its round trips were recorded (8 reads and 2 writes for an address out of a block with
room; more for full blocks ahead of it, lost races and new blocks, for which all blocks are listed). In Python, over
the same client as ours, so that what is compared is the way, not the language: the Go original's absolute figures are
in `benchmarks.ipam`.
"""
from __future__ import annotations

import time
from datetime import datetime, timezone

import msgspec
from msgspec.structs import replace

from calico_plugin.datastore.kv import KV, Compare, Delete, Put
from calico_plugin.deadline import Deadline
from calico_plugin.ipam import block as arithmetic
from calico_plugin.ipam.cidr import Address, Cidr, parse
from calico_plugin.ipam.pools import Pool, Walk, start_index
from calico_plugin.ipam.view import POOLS, RESERVATIONS
from calico_plugin.model import codec, keys
from calico_plugin.model.ipam import Affinity, AllocationAttribute, Block, Handle

TRIES = 100


class OriginalClient:
    """Shared by no threads: the original's callers are processes of their own."""

    def __init__(self, kv: KV, host: str, pool: Pool) -> None:
        self.kv, self.host, self.pool = kv, host, pool

    def assign(self, handle: str, attributes: dict[str, str], deadline: Deadline) -> Address:
        """One address; raises RuntimeError when there is none."""
        self.kv.get(keys.IPAM_CONFIG, deadline)
        self.kv.list(RESERVATIONS, deadline)
        self.kv.get(keys.resource("Node", self.host), deadline)
        self.kv.list(POOLS, deadline)
        affine = self.kv.list(keys.affinity_prefix(self.host, 4), deadline)
        attribute = AllocationAttribute(handle_id=handle, secondary=attributes)
        for item in affine.items:
            parsed = keys.parse_affinity(item.key)
            assert parsed is not None
            self.kv.get(item.key, deadline)
            if given := self._assign_from(parse(parsed[1]), handle, attribute, deadline):
                return given
        for _ in range(TRIES):
            cidr = self._free_block(deadline)
            if cidr is None:
                break
            if not self._claim_block(cidr, deadline):
                continue
            if given := self._assign_from(cidr, handle, attribute, deadline):
                return given
        # Borrow: block after block from the host's start on, each read anew.
        walk = Walk.of(self.pool, self.host, None, start_index)
        for rank in range(walk.count):
            if given := self._assign_from(walk.block(rank), handle, attribute, deadline):
                return given
        raise RuntimeError("no address")

    def _assign_from(
        self, cidr: Cidr, handle: str, attribute: AllocationAttribute, deadline: Deadline
    ) -> Address | None:
        key = keys.block(str(cidr))
        for _ in range(TRIES):
            item = self.kv.get(key, deadline)
            if item is None:
                return None
            block, ordinals = arithmetic.assign(codec.decode(Block, key, item.value), 1, attribute)
            if not ordinals:
                return None
            self._count(handle, cidr, 1, deadline)
            data = codec.encode(arithmetic.bumped(block))
            if self.kv.commit([Compare(key, item.revision)], [Put(key, data)], deadline).succeeded:
                return cidr.at(ordinals[0])
            self._count(handle, cidr, -1, deadline)
        return None

    def _count(self, handle: str, cidr: Cidr, by: int, deadline: Deadline) -> None:
        key = keys.handle(handle)
        for _ in range(TRIES):
            item = self.kv.get(key, deadline)
            value = codec.decode(Handle, key, item.value) if item else Handle()
            counts = {**value.block, str(cidr): value.block.get(str(cidr), 0) + by}
            left = {name: count for name, count in counts.items() if count > 0}
            change = Put(key, codec.encode(replace(value, block=left))) if left else Delete(key)
            if self.kv.commit([Compare(key, item.revision if item else 0)], [change], deadline).succeeded:
                return

    def _free_block(self, deadline: Deadline) -> Cidr | None:
        listing = self.kv.list(keys.BLOCKS, deadline)
        # The original decodes every block that it lists.
        blocks = [msgspec.json.decode(item.value, type=Block) for item in listing.items]
        used = {block.cidr for block in blocks}
        walk = Walk.of(self.pool, self.host, None, start_index)
        return next((one for rank in range(walk.count) if str(one := walk.block(rank)) not in used), None)

    def _claim_block(self, cidr: Cidr, deadline: Deadline) -> bool:
        """Two phases: affinity pending (twice), block, affinity confirmed."""
        affinity, key = keys.affinity(self.host, str(cidr)), keys.block(str(cidr))
        pending, confirmed = (codec.encode(Affinity(state=state)) for state in ("pending", "confirmed"))
        first = self.kv.commit([Compare(affinity, 0)], [Put(affinity, pending)], deadline)
        current = first.current.get(affinity) if not first.succeeded else None
        self.kv.get(key, deadline)
        revision = current.revision if current else first.revision
        again = self.kv.commit([Compare(affinity, revision)], [Put(affinity, pending)], deadline)
        self.kv.get(keys.IPAM_CONFIG, deadline)
        fresh = arithmetic.fresh(str(cidr), cidr.size, self.host, datetime.now(timezone.utc), time.time_ns())
        if not self.kv.commit([Compare(key, 0)], [Put(key, codec.encode(fresh))], deadline).succeeded:
            item = self.kv.get(key, deadline)
            if item is None or arithmetic.owner(codec.decode(Block, key, item.value)) != self.host:
                self.kv.commit([Compare(affinity, again.revision)], [Delete(affinity)], deadline)
                return False
        self.kv.commit([Compare(affinity, again.revision)], [Put(affinity, confirmed)], deadline)
        return True
