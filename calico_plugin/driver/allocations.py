"""What is stored about given addresses: read with who has them, and name those that are no container's.

Docker asks for the addresses of `--aux-address` exactly as for a container's `--ip`; only CreateNetwork tells which
they were. Then they get a handle and attributes that say what they are, in one commit for the block and the handle.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from ipaddress import ip_network
from typing import Iterator, Sequence

from msgspec.structs import replace

from calico_plugin.datastore.kv import KV, Compare, Put
from calico_plugin.deadline import Deadline
from calico_plugin.driver.view import View
from calico_plugin.driver.wire import IPAddress
from calico_plugin.errors import Conflict, CorruptValue, NotFound
from calico_plugin.ipam import block as arithmetic
from calico_plugin.ipam.queries import Queries
from calico_plugin.model import codec, keys
from calico_plugin.model.ipam import AllocationAttribute, Block, Handle

NODE, TIMESTAMP, TYPE, NAME = "node", "timestamp", "type", "name"
GATEWAY_TYPE, AUXILIARY_TYPE = "dockerGateway", "dockerAuxAddress"
OUR_TYPES = (GATEWAY_TYPE, AUXILIARY_TYPE)
_TRIES = 16


@dataclass(frozen=True, slots=True)
class Allocation:
    """One given address. `sequence` tells this allocation from any other of the same address."""

    address: IPAddress
    node: str
    type: str
    handle: str
    since: datetime | None
    sequence: int

    @property
    def by_driver(self) -> bool:
        """Given by a driver like this one: to a container, or as gateway or auxiliary address of a network."""
        return bool(self.node) and (self.type in OUR_TYPES or not (self.handle or self.type))


class Allocations:
    def __init__(self, kv: KV, view: View, node: str) -> None:
        self._kv, self._view, self._node = kv, view, node
        self._queries = Queries(kv, view)

    def find(self, address: IPAddress, deadline: Deadline) -> Allocation | None:
        """Who has an address; None when it is free."""
        found = self._block(address, deadline)
        return of_ordinal(found[1], _ordinal(found[1], address)) if found else None

    def of_node(self, deadline: Deadline, everywhere: bool) -> list[Allocation]:
        """All that is given to this node: in its own blocks, or `everywhere`, in others' as well."""
        blocks = self._all_blocks(deadline) if everywhere else self._own_blocks(deadline)
        return [allocation for block in blocks for allocation in of_block(block) if allocation.node == self._node]

    def name(self, address: IPAddress, kind: str, name: str, deadline: Deadline) -> None:
        """Say of an address that was given already what it is. Raises Conflict when others keep changing its block."""
        for _ in range(_TRIES):
            found = self._block(address, deadline)
            if found is None:
                raise NotFound(f"address {address}", "it lies in no block")
            revision, block = found
            ordinal = _ordinal(block, address)
            present = arithmetic.attribute_of(block, ordinal)
            if present is None:
                raise NotFound(f"address {address}", "it was released meanwhile: create the network again")
            wanted = attribute(self._node, kind, address, name)
            if present.handle_id == wanted.handle_id or self._rename(block, ordinal, wanted, revision, deadline):
                return
        raise Conflict(f"address {address}", hint="its block keeps changing in etcd; try again")

    def _rename(
        self, block: Block, ordinal: int, wanted: AllocationAttribute, revision: int, deadline: Deadline
    ) -> bool:
        freed = arithmetic.release(block, (ordinal,))
        renamed = arithmetic.assign_ordinal(freed, ordinal, wanted)
        assert renamed is not None and wanted.handle_id
        # The queue of free addresses keeps its order: the address was never free.
        renamed = arithmetic.bumped(replace(renamed, unallocated=block.unallocated))
        key = keys.handle(wanted.handle_id)
        stored = self._kv.get(key, deadline)
        counts = dict(codec.decode(Handle, key, stored.value).block) if stored else {}
        counts[block.cidr] = counts.get(block.cidr, 0) + 1
        commit = self._kv.commit(
            (Compare(keys.block(block.cidr), revision), Compare(key, stored.revision if stored else 0)),
            (Put(keys.block(block.cidr), codec.encode(renamed)), Put(key, codec.encode(Handle(block=counts)))),
            deadline,
        )
        return commit.succeeded

    def _block(self, address: IPAddress, deadline: Deadline) -> tuple[int, Block] | None:
        """(revision, block) that holds the address, also when its pool was deleted before the network."""
        pool = self._view.inputs(deadline).pool_of(address.version, int(address))
        holder = self._queries.block_holding(address, deadline) if pool is None else (
            pool.cidr.block_of(int(address), pool.block_size))
        if holder is None:
            return None
        key = keys.block(str(holder))
        item = self._kv.get(key, deadline)
        return (item.revision, codec.decode(Block, key, item.value)) if item else None

    def _own_blocks(self, deadline: Deadline) -> Iterator[Block]:
        affinities = self._kv.list(keys.affinity_prefix(self._node), deadline, keys_only=True)
        parsed = [found for item in affinities.items if (found := keys.parse_affinity(item.key))]
        wanted = [keys.block(cidr) for _, cidr in parsed]
        for key, item in (self._kv.get_many(wanted, deadline) if wanted else {}).items():
            if item is not None:
                yield from _readable(key, item.value)

    def _all_blocks(self, deadline: Deadline) -> Iterator[Block]:
        for item in self._kv.list(keys.BLOCKS, deadline).items:
            yield from _readable(item.key, item.value)


def attribute(node: str, kind: str, address: IPAddress, name: str) -> AllocationAttribute:
    secondary = {NODE: node, TYPE: kind, TIMESTAMP: now()}
    return AllocationAttribute(
        handle_id=handle(kind, address), secondary={**secondary, NAME: name} if name else secondary
    )


def handle(kind: str, address: IPAddress) -> str:
    """Handle of an address that Docker keeps for a network; the address makes it unique."""
    return f"{'docker-gateway' if kind == GATEWAY_TYPE else 'docker-aux'}-{str(address).replace(':', '-')}"


def now() -> str:
    return arithmetic.rfc3339(datetime.now(timezone.utc))


def of_block(block: Block) -> Sequence[Allocation]:
    found = (of_ordinal(block, ordinal) for ordinal, index in enumerate(block.allocations) if index is not None)
    return [allocation for allocation in found if allocation is not None]


def of_ordinal(block: Block, ordinal: int) -> Allocation | None:
    """None also for an address that only rests after its release."""
    stored = arithmetic.attribute_of(block, ordinal)
    if stored is None or arithmetic.is_cooling(stored):
        return None
    secondary = stored.secondary or {}
    return Allocation(
        address=ip_network(block.cidr)[ordinal],
        node=secondary.get(NODE, ""),
        type=secondary.get(TYPE, ""),
        handle=stored.handle_id or "",
        since=arithmetic.parse_rfc3339(secondary.get(TIMESTAMP, "")),
        sequence=arithmetic.sequence_of(block, ordinal),
    )


def _ordinal(block: Block, address: IPAddress) -> int:
    return int(address) - int(ip_network(block.cidr).network_address)


def _readable(key: str, value: bytes) -> Iterator[Block]:
    """Bad data counts as absent."""
    try:
        yield codec.decode(Block, key, value)
    except CorruptValue:
        return
