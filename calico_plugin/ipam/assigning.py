"""Plans that give addresses: automatically from a host's blocks (datamodel 4.7, 4.9), or one that was asked for
(4.12).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Interface, IPv6Interface
from typing import Callable, Iterator, Mapping

from calico_plugin.errors import AlreadyExists, Conflict, CorruptValue, InvalidInput, NotFound, PoolExhausted
from calico_plugin.ipam import affinities
from calico_plugin.ipam import block as arithmetic
from calico_plugin.ipam.cidr import Address, Cidr
from calico_plugin.ipam.ledger import Orders, Scan, Summary, block_key
from calico_plugin.ipam.pools import Pool, Walk, Wish, choose, selects_node
from calico_plugin.ipam.turn import Turn
from calico_plugin.model.ipam import AllocationAttribute, Block

Interface = IPv4Interface | IPv6Interface

DEFAULT_BLOCK_LIMIT = 20

# New blocks that one commit takes at most: each costs two of etcd's 128 operations. What is missing then comes with
# the next commit.
_BLOCKS_PER_TURN = 20
# Empty blocks of unselected pools that go along with a request.
_LET_GO_PER_TURN = 5


@dataclass(slots=True)
class AutoAssign:
    """A request for `count` addresses; `got` fills up over several commits when many blocks are needed.

    `since` is the ledger's clock when it was made: it is never refused for what was seen before.
    """

    host: str
    version: int
    count: int
    use: str
    handle: str | None
    attributes: Mapping[str, str] | None
    pools: tuple[Cidr, ...] | None
    within: Cidr | None
    max_blocks: int
    partial: bool
    since: float
    got: list[Interface] = field(default_factory=list)

    @property
    def attribute(self) -> AllocationAttribute:
        return AllocationAttribute(handle_id=self.handle or None, secondary=dict(self.attributes or {}) or None)


@dataclass(frozen=True, slots=True)
class Assigned:
    """Addresses with the mask of their block. `shortfall` says why there are fewer than requested.

    `limited`: not for want of free addresses but by a rule (block limit, no automatic claim); the original calls that
    an error. `more`: the commit was full; ask again for the rest.
    """

    addresses: tuple[Interface, ...]
    requested: int
    shortfall: PoolExhausted | None = None
    limited: bool = False
    more: bool = False


@dataclass(frozen=True, slots=True)
class AssignOne:
    """A request for one given address."""

    host: str
    address: Address
    use: str
    handle: str | None
    attributes: Mapping[str, str] | None

    @property
    def attribute(self) -> AllocationAttribute:
        return AllocationAttribute(handle_id=self.handle or None, secondary=dict(self.attributes or {}) or None)


def plan_auto(turn: Turn, request: AutoAssign) -> Assigned:
    """Raises NotFound (node), InvalidInput (pool, use), PoolExhausted (no pool, or fewer addresses than asked for and
    not `partial`).
    """
    node = turn.node(request.host)
    if node is None:
        raise NotFound(f"Node({request.host})", "calico-node creates it when it starts on that host")
    wish = Wish(request.version, request.use, request.pools)
    pools = choose(turn.inputs.pools, wish, request.host, node.labels, turn.rules.selects)
    search = _Search(turn, request, pools)
    search.run()
    if search.missing and not search.crowded and not request.partial:
        raise search.shortfall()
    search.settle()
    short = search.missing and not search.crowded
    return Assigned(
        addresses=tuple(search.found),
        requested=request.count,
        shortfall=search.shortfall() if short else None,
        limited=bool(short and search.limit),
        more=bool(search.missing and search.crowded),
    )


class _Search:
    """One request on one turn: own blocks first, then unclaimed ones, then reclaimed ones, then other hosts' free
    addresses.
    """

    def __init__(self, turn: Turn, request: AutoAssign, pools: tuple[Pool, ...]) -> None:
        self.turn, self.request, self.pools = turn, request, pools
        self.host, self.version = request.host, request.version
        self.reserved = turn.inputs.reservations[request.version]
        self.found: list[Interface] = []
        self.taken: dict[Cidr, int] = {}
        self.limit = ""
        self.blocks_touched = 0
        self._seen: set[Cidr] = set()

    @property
    def missing(self) -> int:
        return self.request.count - len(self.request.got) - len(self.found)

    @property
    def crowded(self) -> bool:
        return self.blocks_touched >= _BLOCKS_PER_TURN

    def run(self) -> None:
        """First on what is remembered; what that cannot give is looked for once more on what is read after the
        request was made.
        """
        for fresh in (False, True):
            if fresh:
                self.turn.refresh(self.host, self.version, self.request.since)
            self.limit = ""
            self._release_unselected()
            self._from_own()
            if self._unfinished():
                self._from_new(fresh)
            if self._unfinished() and not self.limit and not self.turn.inputs.config.strict_affinity:
                self._borrow(fresh)
            if not self._unfinished():
                return

    def settle(self) -> None:
        """Count the addresses in the handle, and rely on what they were given by."""
        if not self.found:
            return
        if self.request.handle:
            for cidr, count in self.taken.items():
                self.turn.count(self.request.handle, cidr, count, guess=True)
        used = [pool for pool in self.pools if any(pool.cidr.covers(cidr) for cidr in self.taken)]
        self.turn.rely_on_inputs(used, self.host)

    def _unfinished(self) -> bool:
        return self.missing > 0 and not self.crowded

    # Own blocks

    def _own(self) -> list[Cidr]:
        """Blocks of the allowed pools for which the host holds an affinity, in key order."""
        return [
            cidr
            for cidr in self.turn.host_blocks(self.host, self.version)
            if any(pool.cidr.covers(cidr) for pool in self.pools)
        ]

    def _from_own(self) -> None:
        for cidr in self._own():
            if not self._unfinished():
                return
            if self._in_range(cidr) and not self.reserved.covers(cidr):
                self._from_own_block(cidr)

    def _from_own_block(self, cidr: Cidr) -> None:
        try:
            known = self.turn.block(cidr)
            if known is not None and not known.unallocated and arithmetic.owner(known) == self.host:
                return
            block = affinities.own_block(self.turn, self.host, cidr)
        except CorruptValue:
            return
        if block is not None:
            self._take(cidr, block)

    def _release_unselected(self) -> None:
        """Empty blocks of pools that no longer select the node go; looked at again only when something of it changed.
        """
        turn, node = self.turn, self.turn.node(self.host)
        known = turn.ledger.host_blocks(self.host, self.version, turn.deadline)
        state = (turn.inputs, node.revision if node else 0, known.generation)
        if turn.ledger.selected.get((self.host, self.version)) == state or node is None:
            return
        let_go = [cidr for _, cidr in known.cidrs if self._is_unselected(cidr, node.labels) and self._is_empty(cidr)]
        for cidr in let_go[:_LET_GO_PER_TURN]:
            affinities.let_go(turn, self.host, cidr, must_be_empty=True)
        if not let_go:
            turn.ledger.selected[self.host, self.version] = state

    def _is_unselected(self, cidr: Cidr, labels: Mapping[str, str]) -> bool:
        pool = self.turn.inputs.pool_of(cidr.version, cidr.base, enabled=True)
        return pool is not None and pool not in self.pools and not selects_node(pool, labels, self.turn.rules.selects)

    def _is_empty(self, cidr: Cidr) -> bool:
        block = self._readable(cidr)
        return block is not None and arithmetic.is_empty(block)

    # New blocks

    def _from_new(self, fresh: bool) -> None:
        config = self.turn.inputs.config
        limits = [limit for limit in (self.request.max_blocks, config.max_blocks_per_host) if limit > 0]
        cap = min(limits or [DEFAULT_BLOCK_LIMIT])
        while self._unfinished():
            if not config.auto_allocate_blocks:
                self.limit = "no block of its own has a free address, and auto_allocate_blocks is off"
                return
            if len(self._own()) >= cap:
                self.limit = f"the limit of {cap} blocks for one node is reached, and they have no free address"
                return
            if not self._claim_one(fresh):
                return

    def _claim_one(self, fresh: bool) -> bool:
        """Plan the next block and take from it; False when there is none."""
        for cidr in self._unclaimed():
            if self.turn.refresh(self.host, self.version, self.request.since):
                # Another process of this host may have claimed a block in the meantime: that one first.
                self._seen.discard(cidr)
                self._from_own()
                return True
            self.turn.take_unclaimed(cidr, self.host)
            if self.turn.block(cidr) is None:
                self._take(cidr, affinities.claim_new(self.turn, self.host, cidr))
                return True
        scan = self._scan(fresh)
        return any(True for _ in self._unclaimed_again()) or self._reclaim_one(scan)

    def _unclaimed_again(self) -> Iterator[Cidr]:
        """The scan may have shown that a block is gone: then there is one to claim in the next round."""
        for cidr in self._unclaimed():
            self._seen.discard(cidr)
            yield cidr
            return

    def _unclaimed(self) -> Iterator[Cidr]:
        """Blocks that the index does not know, in the host's order."""
        ledger = self.turn.ledger
        used = ledger.used_blocks(self.version, self.turn.deadline)
        for pool in self.pools:
            place = (pool.key, pool.cidr, self.request.within)
            if ledger.full.get(place) is self.reserved:
                continue
            for cidr in self._walk(pool).unused(used):
                if cidr not in self._seen and self._has_usable(cidr):
                    self._seen.add(cidr)
                    yield cidr
            ledger.full[place] = self.reserved

    def _reclaim_one(self, scan: Scan) -> bool:
        own = set(self._own())
        for cidr in self._ranked(scan, scan.claimable, self._is_claimable):
            summary = scan.blocks.get(cidr)
            if summary is None or cidr in own or cidr in self._seen or not self._has_usable(cidr):
                continue
            if summary.affinity == arithmetic.HOST_PREFIX + self.host:
                # Ours, yet without an affinity key: a process of this host claims it right now, or has died doing so.
                block = affinities.own_block(self.turn, self.host, cidr)
            elif affinities.reclaimable(summary, self.host, self.turn):
                block = affinities.reclaim(self.turn, self.host, cidr)
            else:
                continue
            self._seen.add(cidr)
            if block is not None and self._take(cidr, block):
                return True
        return False

    def _is_claimable(self, summary: Summary) -> bool:
        if summary.affinity == arithmetic.HOST_PREFIX + self.host:
            return bool(summary.unallocated)
        return summary.empty and bool(summary.affinity)

    # Other hosts' blocks

    def _borrow(self, fresh: bool) -> None:
        scan = self._scan(fresh)
        order = self._ranked(scan, scan.lendable, lambda summary: bool(summary.unallocated or summary.resting))
        # Those in front that have nothing left are not looked at again: the next search starts where this one ends.
        while order and self._unfinished():
            cidr = order[0]
            block = None if self.reserved.covers(cidr) else self._readable(cidr)
            if block is not None:
                self._take(cidr, block)
            if self._unfinished():
                order.pop(0)

    def _readable(self, cidr: Cidr) -> Block | None:
        try:
            return self.turn.block(cidr)
        except CorruptValue:
            return None

    def _scan(self, fresh: bool) -> Scan:
        """All blocks as seen at most `scan_seconds` ago; with `fresh`, after the request was made."""
        trusted = min(self.request.since, self.turn.ledger.now() - self.turn.rules.scan_seconds)
        return self.turn.scan(self.version, self.request.since if fresh else trusted)

    def _ranked(self, scan: Scan, memory: Orders, wanted: Callable[[Summary], bool]) -> list[Cidr]:
        """Wanted blocks of the allowed pools, in the order of the pools and, in each, in the host's order; worked out
        once for a scan.
        """
        place = (self.host, self.request.within, self.pools)
        if place not in memory:
            memory[place] = []
            for pool in self.pools:
                walk = self._walk(pool)
                ranked = ((walk.rank(cidr), cidr) for cidr, summary in scan.blocks.items() if wanted(summary))
                ordered = sorted((rank, cidr.base, cidr) for rank, cidr in ranked if rank is not None)
                memory[place] += [cidr for _, _, cidr in ordered]
        return memory[place]

    # Taking

    def _walk(self, pool: Pool) -> Walk:
        return Walk.of(pool, self.host, self.request.within, self.turn.rules.start)

    def _in_range(self, cidr: Cidr) -> bool:
        return self.request.within is None or self.request.within.overlaps(cidr)

    def _has_usable(self, cidr: Cidr) -> bool:
        """Would the block, all free, have an address for this request? What has none is not worth claiming."""
        if self.reserved.covers(cidr):
            return False
        usable = self._usable(cidr)
        return usable is None or any(map(usable, range(cidr.size)))

    def _take(self, cidr: Cidr, block: Block) -> int:
        """Take what is missing from a block; how many it gave."""
        changed, ordinals = arithmetic.assign(block, self.missing, self.request.attribute, self._usable(cidr))
        if not ordinals:
            return 0
        self.turn.put_block(cidr, changed)
        self.blocks_touched += 1
        self.taken[cidr] = self.taken.get(cidr, 0) + len(ordinals)
        self.found += [interface(cidr, ordinal) for ordinal in ordinals]
        return len(ordinals)

    def _usable(self, cidr: Cidr) -> arithmetic.Usable | None:
        within, reserved = self.request.within, self.reserved
        if not reserved.touches(cidr) and (within is None or within.covers(cidr)):
            return None
        return lambda ordinal: (
            cidr.base + ordinal not in reserved and (within is None or cidr.base + ordinal in within)
        )

    def shortfall(self) -> PoolExhausted:
        """Why there is no more, pool by pool."""
        where = f" within {self.request.within}" if self.request.within else ""
        got = len(self.request.got) + len(self.found)
        head = f"node {self.host} gets {got} of {self.request.count} IPv{self.version} addresses{where}"
        names = ", ".join(map(str, self.pools))
        if self.limit:
            return PoolExhausted(f"{head} from {names}: {self.limit}")
        if self.turn.inputs.config.strict_affinity:
            why = "all blocks are claimed, and strict affinity forbids addresses of other nodes' blocks"
        else:
            why = "; ".join(map(self._why_full, self.pools))
        return PoolExhausted(f"{head} from {names}: {why}")

    def _why_full(self, pool: Pool) -> str:
        reserved = self.reserved.count(pool.cidr)
        text = f"{pool.name} has no free address in its {pool.number_of_blocks} blocks"
        return f"{text} ({reserved} of {pool.cidr.size} are reserved)" if reserved else text


def interface(cidr: Cidr, ordinal: int) -> Interface:
    number = cidr.base + ordinal
    return IPv4Interface((number, cidr.prefix)) if cidr.version == 4 else IPv6Interface((number, cidr.prefix))


def plan_one(turn: Turn, request: AssignOne) -> Interface:
    """Raises AlreadyExists (names the address), InvalidInput (no pool), Conflict (strict affinity)."""
    version, number = request.address.version, int(request.address)
    pool = turn.inputs.pool_of(version, number, enabled=True)
    if pool is None:
        known = ", ".join(str(pool) for pool in turn.inputs.pools if pool.cidr.version == version and pool.enabled)
        raise InvalidInput("address", str(request.address), f"no enabled IP pool holds it; pools: {known or 'none'}")
    if request.use and request.use not in pool.uses:
        raise InvalidInput("address", str(request.address), f"IP pool {pool} is not for {request.use}")
    cidr = pool.cidr.block_of(number, pool.block_size)
    turn.load((block_key(cidr),))
    block = turn.block(cidr)
    if block is None:
        block = affinities.claim_new(turn, request.host, cidr)
    turn.rely_on_block(cidr)
    _refuse_foreign(turn, request, cidr, block)
    changed = arithmetic.assign_ordinal(block, number - cidr.base, request.attribute)
    if changed is None:
        raise AlreadyExists(f"address {request.address}", hint=_holder(block, number - cidr.base))
    turn.put_block(cidr, changed)
    if request.handle:
        turn.count(request.handle, cidr, 1, guess=True)
    turn.rely_on_inputs((pool,))
    return interface(cidr, number - cidr.base)


def _refuse_foreign(turn: Turn, request: AssignOne, cidr: Cidr, block: Block) -> None:
    if turn.inputs.config.strict_affinity and arithmetic.owner(block) != request.host:
        turn.rely_on_inputs(())
        raise Conflict(
            f"address {request.address} is in block {cidr} of {arithmetic.owner(block) or 'no node'}",
            hint=f"strict affinity keeps node {request.host} to its own blocks",
        )


def _holder(block: Block, ordinal: int) -> str:
    """Who has the address, for the user who wanted it."""
    attribute = arithmetic.attribute_of(block, ordinal)
    if attribute is None:
        return "the block does not list it as free"
    if attribute.released_at:
        return f"it was released at {attribute.released_at} and rests for the cooldown"
    parts = [f"handle {attribute.handle_id}"] if attribute.handle_id else []
    parts += [f"{key} {value}" for key, value in sorted((attribute.secondary or {}).items())]
    return f"in use by {', '.join(parts)}" if parts else "in use"
