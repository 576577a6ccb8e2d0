"""What a process remembers of the stored blocks, affinities and handles: last seen values with their revisions, and
which blocks exist.

Nothing here is trusted: a commit compares every revision that it relied on, and what is stored instead comes back and
is learned. Not thread-safe; only the thread that leads the combiner touches it.
"""

from __future__ import annotations

import time
from bisect import insort
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Callable, Iterable, Type

import msgspec

from calico_plugin.datastore.kv import KV, KeyValue, Listing
from calico_plugin.deadline import Deadline
from calico_plugin.errors import CorruptValue
from calico_plugin.ipam.cidr import Cidr, parse
from calico_plugin.model import codec, keys
from calico_plugin.model.ipam import Affinity, Block, Handle

Stored = Block | Affinity | Handle

# Values kept in memory at most; far more than the blocks and handles that one host works with.
_KEPT = 2048


@dataclass(frozen=True, slots=True)
class Entry:
    """A key as last seen: its value (None: absent; CorruptValue: does not parse) and mod_revision (0: absent).

    `resting`: a block that has, or had when it was read, addresses in cooldown.
    """

    value: Stored | CorruptValue | None
    revision: int
    resting: bool = False


ABSENT = Entry(None, 0)


@lru_cache(maxsize=16384)
def block_key(cidr: Cidr) -> str:
    return keys.block(str(cidr))


@lru_cache(maxsize=16384)
def affinity_key(host: str, cidr: Cidr) -> str:
    return keys.affinity(host, str(cidr))


def block_cidr(key: str) -> Cidr | None:
    """The block that a key names; faster than `keys.parse_block` for keys that we wrote or listed."""
    family, _, segment = key[len(keys.BLOCKS):].partition("/block/")
    try:
        cidr = parse("/".join(segment.rsplit("-", 1)))
    except ValueError:
        return None
    return cidr if family == f"ipv{cidr.version}" else None


def mark(cidr: Cidr) -> int:
    """A block as one number: sets of numbers are what makes walking a large pool cheap."""
    return cidr.base << 8 | cidr.prefix


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a block that a search needs; decoding it skips the rest. `resting`: it has addresses in cooldown."""

    affinity: str | None = None
    affinity_claim_time: str = ""
    unallocated: tuple[int, ...] = ()
    allocations: tuple[int | None, ...] = ()
    resting: bool = False

    @property
    def empty(self) -> bool:
        return len(self.unallocated) == len(self.allocations)


Orders = dict[Any, list[Cidr]]
"""(host, range, pools) -> blocks in the order in which that host looks at them."""


@dataclass(slots=True)
class Scan:
    """All blocks of one IP version as of a moment (of time.monotonic), and what searches have worked out from it.

    `lendable`: blocks with free addresses; `claimable`: empty ones of other hosts, and blocks of the host without
    affinity key.
    """

    at: float
    blocks: dict[Cidr, Summary] = field(default_factory=dict)
    lendable: Orders = field(default_factory=dict)
    claimable: Orders = field(default_factory=dict)

    def note(self, cidr: Cidr, summary: Summary | None) -> None:
        """A block as it is now; more room in it than before starts the searches anew."""
        before = self.blocks.pop(cidr, None)
        if summary is not None:
            self.blocks[cidr] = summary
        if len(summary.unallocated if summary else ()) > len(before.unallocated if before else ()):
            self.lendable.clear()


@dataclass(slots=True)
class HostBlocks:
    """The blocks for which a host holds an affinity key, in key order, as of a moment; `generation` counts its
    changes.
    """

    at: float
    cidrs: list[tuple[str, Cidr]] = field(default_factory=list)
    generation: int = 0

    def note(self, key: str, cidr: Cidr, exists: bool) -> None:
        if exists and (key, cidr) not in self.cidrs:
            insort(self.cidrs, (key, cidr), key=lambda pair: pair[0])
        elif not exists and (key, cidr) in self.cidrs:
            self.cidrs.remove((key, cidr))
        else:
            return
        self.generation += 1


class Ledger:
    """`clock` is monotonic; a reading of it says how fresh a listing is."""

    def __init__(self, kv: KV, clock: Callable[[], float] = time.monotonic) -> None:
        self._kv, self._clock = kv, clock
        self._entries: dict[str, Entry] = {}
        self.used: dict[int, set[int]] = {}
        self.scans: dict[int, Scan] = {}
        self.hosts: dict[tuple[str, int], HostBlocks] = {}
        # Pools in whose blocks nothing is unclaimed, until a block goes away: spares walking them for each address.
        self.full: dict[tuple[str, Cidr, Cidr | None], Any] = {}
        # For what state of the world a host's blocks were last checked against the pools' node selectors.
        self.selected: dict[tuple[str, int], Any] = {}

    # What is known of single keys

    def entry(self, key: str) -> Entry | None:
        return self._entries.get(key)

    def learn(self, key: str, item: KeyValue | None) -> None:
        """A key as etcd has just shown it."""
        if item is None:
            self._set(key, ABSENT)
            return
        try:
            value: Stored | CorruptValue = codec.decode(_kind_of(key), key, item.value)
        except CorruptValue as error:
            value = error
        self._set(key, Entry(value, item.revision, resting=b'"releasedAt"' in item.value))

    def store(self, key: str, value: Stored | None, revision: int) -> None:
        """A key as we have just written it."""
        resting = isinstance(value, Block) and any(one.released_at for one in value.attributes or ())
        self._set(key, ABSENT if value is None else Entry(value, revision, resting))

    def forget(self, forgotten: Iterable[str]) -> None:
        """After a commit with unknown outcome."""
        for key in forgotten:
            self._entries.pop(key, None)

    def rewind(self) -> None:
        """A plan came to nothing: what it was about to use up is still there for the next."""
        self.full.clear()
        for scan in self.scans.values():
            scan.lendable.clear()

    def fetch(self, wanted: Iterable[str], deadline: Deadline) -> None:
        """Read keys in one round trip."""
        for key, item in self._kv.get_many(list(wanted), deadline).items():
            self.learn(key, item)

    def _set(self, key: str, entry: Entry) -> None:
        before = self._entries.pop(key, None)
        self._entries[key] = entry
        if len(self._entries) > _KEPT:
            del self._entries[next(iter(self._entries))]
        if key.startswith(keys.BLOCKS):
            self._note_block(key, entry, changed=before is None or (before.revision == 0) != (entry.revision == 0))
        elif key.startswith(keys.AFFINITIES) and (before is None or (before.revision == 0) != (entry.revision == 0)):
            self._note_affinity(key, entry.revision > 0)

    def _note_block(self, key: str, entry: Entry, changed: bool) -> None:
        if not changed and not self.scans:
            return
        cidr = block_cidr(key)
        if cidr is None:
            return
        if changed:
            self._note_existence(cidr, entry.revision > 0)
        scan = self.scans.get(cidr.version)
        if scan is not None:
            scan.note(cidr, _summary(entry.value) if isinstance(entry.value, Block) else None)

    def _note_existence(self, cidr: Cidr, exists: bool) -> None:
        used = self.used.get(cidr.version)
        if used is None:
            return
        if exists:
            used.add(mark(cidr))
        elif mark(cidr) in used:
            used.discard(mark(cidr))
            self.full.clear()

    def _note_affinity(self, key: str, exists: bool) -> None:
        parsed = keys.parse_affinity(key)
        if parsed is None:
            return
        cidr = parse(parsed[1])
        known = self.hosts.get((parsed[0], cidr.version))
        if known is not None:
            known.note(key, cidr, exists)

    # Listings

    def host_blocks(self, host: str, version: int, deadline: Deadline, since: float | None = None) -> HostBlocks:
        """The host's affinities, listed again when what is known is older than `since`."""
        known = self.hosts.get((host, version))
        if known is not None and (since is None or known.at >= since):
            return known
        at = self._clock()
        listing = self._kv.list(keys.affinity_prefix(host, version), deadline)
        found = HostBlocks(at, generation=known.generation + 1 if known else 0)
        for item in listing.items:
            parsed = keys.parse_affinity(item.key)
            if parsed is not None:
                found.cidrs.append((item.key, parse(parsed[1])))
        self.hosts[host, version] = found
        for item in listing.items:
            self.learn(item.key, item)
        self._miss(keys.affinity_prefix(host, version), listing)
        # Full blocks of ours may have room again by now: the search looks at them once more before it claims another.
        self.fetch((block_key(cidr) for _, cidr in found.cidrs), deadline)
        return found

    def used_blocks(self, version: int, deadline: Deadline) -> set[int]:
        """Which blocks exist, as marks; listed once, by key, then kept by what commits show."""
        if version not in self.used:
            listing = self._kv.list(_family(version), deadline, keys_only=True)
            self.used[version] = {mark(cidr) for item in listing.items if (cidr := block_cidr(item.key))}
            self.full.clear()
            self._miss(_family(version), listing)
        return self.used[version]

    def scan(self, version: int, deadline: Deadline, not_before: float) -> Scan:
        """All blocks with what is free in them, read again when what is known is older than `not_before`."""
        known = self.scans.get(version)
        if known is not None and known.at >= not_before:
            return known
        scan = Scan(self._clock())
        used: set[int] = set()
        listing = self._kv.list(_family(version), deadline)
        for item in listing.items:
            cidr = block_cidr(item.key)
            if cidr is None:
                continue
            used.add(mark(cidr))
            try:
                scan.blocks[cidr] = _summary_of(item)
            except msgspec.MsgspecError:
                continue
        self.scans[version], self.used[version] = scan, used
        self.full.clear()
        for item in listing.items:
            entry = self._entries.get(item.key)
            if entry is not None and entry.revision != item.revision:
                self.learn(item.key, item)
        self._miss(_family(version), listing)
        return scan

    def _miss(self, prefix: str, listing: Listing) -> None:
        """Keys under a prefix that we remember and that a listing no longer has are gone."""
        listed = {item.key for item in listing.items}
        remembered = [key for key, entry in self._entries.items() if entry.revision and key.startswith(prefix)]
        for key in remembered:
            if key not in listed:
                self.learn(key, None)

    def now(self) -> float:
        return self._clock()


def _family(version: int) -> str:
    return f"{keys.BLOCKS}ipv{version}/block/"


def _kind_of(key: str) -> Type[Stored]:
    if key.startswith(keys.BLOCKS):
        return Block
    return Handle if key.startswith(keys.HANDLES) else Affinity


_SUMMARIES = msgspec.json.Decoder(Summary)


def _summary_of(item: KeyValue) -> Summary:
    summary = _SUMMARIES.decode(item.value)
    return msgspec.structs.replace(summary, resting=True) if b'"releasedAt"' in item.value else summary


def _summary(block: Block) -> Summary:
    claimed = block.affinity_claim_time
    return Summary(
        affinity=block.affinity,
        affinity_claim_time=claimed if isinstance(claimed, str) else "",
        unallocated=block.unallocated,
        allocations=block.allocations,
        resting=any(attribute.released_at for attribute in block.attributes or ()),
    )
