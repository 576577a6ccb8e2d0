"""One attempt to serve a batch of requests: reads go through the ledger, writes pile up, one commit carries all of
it.

Several requests are planned one after the other on the same turn and see each other's writes, so that they share one
etcd transaction. Every key that a plan relies on is compared in that transaction; when one has changed, nothing is
stored, the ledger learns what is there, and the batch is planned again on a new turn.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Callable, Iterable

import msgspec
from msgspec.structs import replace

from calico_plugin.datastore.kv import KV, Commit, Compare, Delete, Put
from calico_plugin.deadline import Deadline
from calico_plugin.errors import CorruptValue, DatastoreError, DeadlineExceeded
from calico_plugin.ipam import block as arithmetic
from calico_plugin.ipam.cidr import Cidr
from calico_plugin.ipam.ledger import ABSENT, Entry, Ledger, Scan, Stored, affinity_key, block_key
from calico_plugin.ipam.pools import Pool, Selects, StartIndex
from calico_plugin.ipam.view import HeldView, Inputs, NodeView
from calico_plugin.model import keys
from calico_plugin.model.ipam import Affinity, Block, Handle

CONFIRMED = Affinity(state="confirmed")

# etcd's default of --max-txn-ops is 128, for compares and for operations; one plan adds up to about 75 after the check.
ROOM = 48

_encode = msgspec.json.Encoder(order="deterministic").encode


@dataclass(frozen=True, slots=True)
class Rules:
    """What an allocator was made with. `now` is the wall clock, `scan_seconds` how long a look at all blocks of a
    pool is believed.
    """

    selects: Selects
    start: StartIndex
    now: Callable[[], datetime]
    now_ns: Callable[[], int]
    scan_seconds: float


@dataclass(frozen=True, slots=True)
class Mark:
    """Where a turn stood before a request that failed."""

    writes: dict[str, Stored | None]
    compares: dict[str, Compare]
    claimed: int


@dataclass(slots=True)
class Turn:
    """After a commit that failed, `stale_inputs` says that pools, reservations, configuration or nodes were not as the
    view said, and `contended` which blocks, affinities and handles were not as the ledger said.
    """

    kv: KV
    ledger: Ledger
    view: HeldView
    rules: Rules
    deadline: Deadline
    now: datetime
    stale_inputs: bool = False
    contended: list[str] = field(default_factory=list)
    _reads: dict[str, Entry] = field(default_factory=dict)
    _fetched: set[str] = field(default_factory=set)
    _writes: dict[str, Stored | None] = field(default_factory=dict)
    _compares: dict[str, Compare] = field(default_factory=dict)
    _claimed: list[tuple[str, Cidr]] = field(default_factory=list)
    _final: dict[str, Stored | None] = field(default_factory=dict)

    # What the view says

    @property
    def inputs(self) -> Inputs:
        return self.view.inputs(self.deadline)

    def node(self, name: str) -> NodeView | None:
        return self.view.node(name, self.deadline)

    def rely_on_inputs(self, pools: Iterable[Pool], node: str | None = None) -> None:
        """The commit shall hold only while configuration, reservations, these pools and this node are what the view
        said.
        """
        for compare in self.inputs.compares:
            self._compares[compare.key] = compare
        for pool in pools:
            self._compares[pool.key] = Compare(pool.key, pool.revision)
        if node is not None:
            view, key = self.node(node), keys.resource("Node", node)
            self._compares[key] = Compare(key, view.revision if view else 0)

    def rely_on_config(self) -> None:
        """For plans that ask the view for nothing else."""
        for compare in self.inputs.compares:
            if not compare.prefix:
                self._compares[compare.key] = compare

    # Values as this turn sees them

    def block(self, cidr: Cidr) -> Block | None:
        """With rested ordinals back in the queue. Raises CorruptValue."""
        found = self._value(block_key(cidr))
        if found is None:
            return None
        assert isinstance(found, Block)
        if block_key(cidr) in self._writes or not self._reads[block_key(cidr)].resting:
            return found
        return arithmetic.collect(found, self.now, self.inputs.config.ip_cooldown_seconds)

    def affinity(self, host: str, cidr: Cidr) -> Affinity | None:
        found = self._value(affinity_key(host, cidr))
        assert found is None or isinstance(found, Affinity)
        return found

    def handle(self, handle_id: str, *, guess: bool = False) -> Handle | None:
        """`guess`: a handle that we know nothing of is taken as absent without a read; the commit tells when it is
        not.
        """
        key = keys.handle(handle_id)
        if guess and self._seen(key) is None:
            self._reads[key] = ABSENT
        found = self._value(key)
        assert found is None or isinstance(found, Handle)
        return found

    def load(self, wanted: Iterable[str]) -> None:
        """Read in one round trip what is not known yet."""
        unknown = [key for key in dict.fromkeys(wanted) if key not in self._writes and self._seen(key) is None]
        if unknown:
            self.ledger.fetch(unknown, self.deadline)
            self._fetched.update(unknown)

    def _value(self, key: str) -> Stored | None:
        if key in self._writes:
            return self._writes[key]
        entry = self._seen(key)
        if entry is None:
            self.load((key,))
            entry = self._seen(key) or ABSENT
        # Pinned: what is written later rests on this very value, also when the ledger learns a newer one in between.
        self._reads[key] = entry
        if isinstance(entry.value, CorruptValue):
            raise entry.value
        return entry.value

    def _seen(self, key: str) -> Entry | None:
        return self._reads.get(key) or self.ledger.entry(key)

    def host_blocks(self, host: str, version: int) -> list[Cidr]:
        """Blocks for which the host holds an affinity key, those planned on this turn included, in key order."""
        known = self.ledger.host_blocks(host, version, self.deadline)
        mine = [cidr for name, cidr in self._claimed if name == host and cidr.version == version]
        planned = [(affinity_key(host, cidr), cidr) for cidr in mine]
        if not planned:
            return [cidr for _, cidr in known.cidrs]
        return [cidr for _, cidr in sorted({*known.cidrs, *planned}, key=lambda pair: pair[0])]

    def refresh(self, host: str, version: int, since: float) -> bool:
        """List the host's blocks again unless that was done after `since`; values got before must be asked for again.
        True: listed.
        """
        before = self.ledger.hosts.get((host, version))
        if self.ledger.host_blocks(host, version, self.deadline, since) is before:
            return False
        self._unpin()
        return True

    def scan(self, version: int, not_before: float) -> Scan:
        """All blocks as seen after `not_before`; values got before must be asked for again."""
        before = self.ledger.scans.get(version)
        scan = self.ledger.scan(version, self.deadline, not_before)
        if scan is not before:
            self._unpin()
        return scan

    def _unpin(self) -> None:
        """What the ledger has just learned counts, except where this turn relies on an older value already."""
        self._reads = {key: entry for key, entry in self._reads.items() if key in self._compares}

    # What this turn relies on and changes

    def rely(self, key: str) -> None:
        """The key must still be as this turn has seen it."""
        if key not in self._reads:
            self._reads[key] = self.ledger.entry(key) or ABSENT
        if key not in self._compares:
            self._compares[key] = Compare(key, self._reads[key].revision)

    def put_block(self, cidr: Cidr, value: Block | None) -> None:
        self._put(block_key(cidr), value)

    def put_affinity(self, host: str, cidr: Cidr, value: Affinity | None) -> None:
        if value is not None:
            self._claimed.append((host, cidr))
        self._put(affinity_key(host, cidr), value)

    def take_unclaimed(self, cidr: Cidr, host: str) -> None:
        """Plan on a block and an affinity that the index says do not exist; the commit tells when they do."""
        for key in (block_key(cidr), affinity_key(host, cidr)):
            if key not in self._writes:
                self._reads.setdefault(key, self.ledger.entry(key) or ABSENT)

    def rely_on_block(self, cidr: Cidr) -> None:
        self.rely(block_key(cidr))

    def rely_on_affinity(self, host: str, cidr: Cidr) -> None:
        self.rely(affinity_key(host, cidr))

    def count(self, handle_id: str, cidr: Cidr, by: int, *, guess: bool = False) -> None:
        """Count addresses of a block in a handle, down to its removal; a handle that is lost stays lost when counting
        down.
        """
        stored = self.handle(handle_id, guess=guess)
        self.rely(keys.handle(handle_id))
        if stored is None and by < 0:
            return
        counts = dict((stored or Handle()).block)
        counts[str(cidr)] = counts.get(str(cidr), 0) + by
        left = {name: number for name, number in counts.items() if number > 0}
        self._put(keys.handle(handle_id), replace(stored or Handle(), block=left) if left else None)

    def put_handle(self, handle_id: str, value: Handle | None) -> None:
        self._put(keys.handle(handle_id), value)

    def _put(self, key: str, value: Stored | None) -> None:
        self.rely(key)
        self._writes[key] = value

    # Requests on the turn

    def mark(self) -> Mark:
        return Mark(dict(self._writes), dict(self._compares), len(self._claimed))

    def back_to(self, mark: Mark, *, keep_compares: bool = False) -> None:
        """Undo what was planned since. A refusal keeps its compares: it is an answer only while what it rests on is
        still so.
        """
        self.ledger.rewind()
        self._writes = dict(mark.writes)
        del self._claimed[mark.claimed:]
        if not keep_compares:
            self._compares = dict(mark.compares)

    @property
    def crowded(self) -> bool:
        return len(self._compares) > ROOM

    def commit(self) -> bool:
        """Store all of it, or nothing. True also when there was nothing to store and all that was relied on was read
        just now.
        """
        operations = list(self._operations())
        if not operations and self._compares.keys() <= self._fetched:
            return True
        try:
            outcome = self.kv.commit(list(self._compares.values()), operations, self.deadline)
        except (DatastoreError, DeadlineExceeded):
            self.ledger.forget(self._compares)
            raise
        if outcome.succeeded:
            for key, value in self._final.items():
                self.ledger.store(key, value, outcome.revision)
        else:
            self._learn(outcome)
        return outcome.succeeded

    def _operations(self) -> Iterable[Put | Delete]:
        for key, value in self._writes.items():
            before = self._reads[key].value
            if value is before:
                continue
            final = _numbered(value, before) if isinstance(value, Block) else value
            self._final[key] = final
            yield Delete(key) if final is None else Put(key, encoded(final))

    def _learn(self, outcome: Commit) -> None:
        self.ledger.rewind()
        for compare in self._compares.values():
            if compare.prefix:
                continue
            current = outcome.current.get(compare.key)
            differs = (current.revision if current else 0) != compare.revision
            if compare.key.startswith(keys.IPAM) and compare.key != keys.IPAM_CONFIG:
                self.ledger.learn(compare.key, current)
                self.contended += [compare.key] if differs else []
            elif differs:
                self.stale_inputs = True
        # Only the compare over the list of reservations can have failed unseen.
        self.stale_inputs = self.stale_inputs or not self.contended


def _numbered(block: Block, before: Any) -> Block:
    """One step of the sequence number for each stored update. A block that is born with allocations counts as
    created, then updated.
    """
    created_empty = before is None and all(index is None for index in block.allocations)
    return block if created_empty else arithmetic.bumped(block)


def encoded(value: Stored) -> bytes:
    """The bytes of Go's encoder, as `model.codec.encode` gives them, in one pass: this is the hot path."""
    data = _encode(value)
    return data.replace(b"&", b"\\u0026").replace(b"<", b"\\u003c").replace(b">", b"\\u003e")
