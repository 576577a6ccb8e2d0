"""The allocator: one object per process, safe for all its threads; gives and takes addresses as Calico does, one
commit each.

It promises that no two callers of the cluster get the same address, whoever else uses the datastore: every block is
changed only at the revision at which it was read. What a call does is stored whole or not at all, with two exceptions
that a caller can see: more addresses or blocks than fit into one etcd transaction go in several, and when an answer
of etcd is lost the outcome is not known (the address then carries attributes by which `ipam.audit` finds and frees
it).

Order of events it survives: two processes claiming the same block, borrowing the same address, releasing what another
has just given out anew (sequence numbers), a pool, reservation or node changed while a request is on its way, and
data that other tools left half-way (affinities pending, lost handles, blocks without affinity).
"""

from __future__ import annotations

import random
import time
from datetime import datetime, timezone
from ipaddress import IPv4Interface, IPv6Interface
from typing import Any, Callable, Iterable, Iterator, Mapping, Sequence, TypeVar

from calico_plugin.datastore.kv import KV
from calico_plugin.deadline import Deadline
from calico_plugin.errors import (
    CalicoError,
    Conflict,
    DatastoreError,
    DatastoreUnauthorized,
    DatastoreUnavailable,
    DeadlineExceeded,
    InvalidInput,
    NotFound,
    PoolExhausted,
)
from calico_plugin.ipam import assigning, pools, releasing
from calico_plugin.ipam.affinities import (
    CHUNK,
    ClaimAffinities,
    Claims,
    ReleaseAffinities,
    plan_claim_affinities,
    plan_release_affinities,
)
from calico_plugin.ipam.assigning import Assigned, AssignOne, AutoAssign, Interface
from calico_plugin.ipam.cidr import Address, Cidr, parse, parse_address, parse_cidr
from calico_plugin.ipam.combiner import Combiner, Job
from calico_plugin.ipam.ledger import Ledger
from calico_plugin.ipam.pools import Selects, StartIndex
from calico_plugin.ipam.queries import Allocation, Queries
from calico_plugin.ipam.releasing import Release, ReleaseAddresses, Released, ReleaseHandle
from calico_plugin.ipam.turn import Rules, Turn
from calico_plugin.ipam.usage import PoolUse
from calico_plugin.ipam.view import ClusterView, DirectView, HeldView
from calico_plugin.model import keys

T = TypeVar("T")

# The original tries 100 times without a pause (datamodel 4.1); on a busy machine that is too few for the slowest of
# eight processes. What ends it is the deadline.
_TRIES = 1000
# After this many lost races tries are spread out a little, so that one of several processes gets through.
_PATIENT_TRIES = 2
# Addresses that one commit releases: each may need its block, its handle and an affinity of etcd's 128 operations.
_RELEASES = 20
_LONGEST_PAUSE = 0.02

_PLANS: dict[type, Callable[[Turn, Any], Any]] = {
    AutoAssign: assigning.plan_auto,
    AssignOne: assigning.plan_one,
    ReleaseAddresses: releasing.plan_release,
    ReleaseHandle: releasing.plan_release_handle,
    ClaimAffinities: plan_claim_affinities,
    ReleaseAffinities: plan_release_affinities,
}


class Allocator:
    """`selects(selector, labels)` is the policy engine's matcher; `view` answers for pools, reservations,
    configuration and nodes.

    `scan_seconds`: how long a look at all blocks of a full pool is believed before it is repeated. No request is
    refused for what was seen before it was made. `start`, `now`, `now_ns`, `sleep` are parameters for tests.
    """

    def __init__(
        self,
        kv: KV,
        selects: Selects,
        view: ClusterView | None = None,
        *,
        scan_seconds: float = 5.0,
        start: StartIndex = pools.start_index,
        now: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
        now_ns: Callable[[], int] = time.time_ns,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._kv = kv
        self._direct = DirectView(kv)
        self._view: ClusterView = view or self._direct
        self._rules = Rules(selects, start, now, now_ns, scan_seconds)
        self._ledger = Ledger(kv)
        self._combiner = Combiner(self._serve, _undo)
        self._sleep = sleep
        self._queries = Queries(kv, self._view)

    # Giving

    def auto_assign(
        self,
        host: str,
        count: int = 1,
        version: int = 4,
        *,
        deadline: Deadline,
        use: str = "Workload",
        handle: str | None = None,
        attributes: Mapping[str, str] | None = None,
        pools: Sequence[str] | None = None,
        within: str | None = None,
        max_blocks: int = 0,
        partial: bool = False,
    ) -> Assigned:
        """`count` addresses of one family for a host.

        `pools`: CIDRs of pools to use, in this order, whatever they select; None: those that select the node.
        `within`: only addresses of this network. `max_blocks`: more blocks than that the host shall not own (0: the
        configuration decides, else 20). Fewer than `count` is PoolExhausted, and then nothing stays assigned; with
        `partial` they are given, with the reason. Raises also InvalidInput (pool or use that does not exist),
        NotFound (no such node), DatastoreError, DeadlineExceeded.
        """
        if count < 1:
            raise InvalidInput("count", count, "at least 1")
        if version not in (4, 6):
            raise InvalidInput("version", version, "4 or 6")
        request = AutoAssign(
            host=host,
            version=version,
            count=count,
            use=use,
            handle=_handle(handle),
            attributes=attributes,
            pools=tuple(parse_cidr(cidr, "pool") for cidr in pools) if pools is not None else None,
            within=parse_cidr(within, "ip range") if within else None,
            max_blocks=max_blocks,
            partial=partial,
            since=self._ledger.now(),
        )
        try:
            while True:
                assigned: Assigned = self._combiner.submit(request, deadline)
                request.got += assigned.addresses
                if not assigned.more:
                    return Assigned(tuple(request.got), count, assigned.shortfall, assigned.limited)
        except CalicoError:
            if request.got:
                self._release_quietly([address.ip for address in request.got])
            raise

    def assign(
        self,
        ip: str | Address,
        host: str,
        *,
        deadline: Deadline,
        use: str = "Workload",
        handle: str | None = None,
        attributes: Mapping[str, str] | None = None,
    ) -> Interface:
        """One given address, with the mask of its block.

        Raises AlreadyExists that names the address, InvalidInput when no enabled pool holds it, Conflict when strict
        affinity forbids it.
        """
        request = AssignOne(host, parse_address(ip), use, _handle(handle), attributes)
        assigned: Interface = self._combiner.submit(request, deadline)
        return assigned

    # Taking back

    def release(self, addresses: Iterable[str | Address | Release], deadline: Deadline) -> Released:
        """Take addresses back. What is not in use is no error. Raises Conflict for a sequence number or handle that
        is not the stored one.

        Up to 20 addresses are one commit.
        """
        wanted = [one if isinstance(one, Release) else Release(parse_address(one)) for one in addresses]
        found, nowhere = self._by_block(wanted, deadline)
        freed: list[Address] = []
        idle: list[Address] = list(nowhere)
        for part in _chunks(found, _RELEASES):
            blocks: dict[Cidr, list[Release]] = {}
            for cidr, release in part:
                blocks.setdefault(cidr, []).append(release)
            request = ReleaseAddresses(tuple((cidr, tuple(releases)) for cidr, releases in blocks.items()))
            released: Released = self._combiner.submit(request, deadline)
            freed += released.addresses
            idle += released.unallocated
        return Released(tuple(freed), tuple(idle))

    def release_by_handle(self, handle: str, deadline: Deadline) -> Released:
        """Take back all addresses of a handle. Raises NotFound when there is none."""
        freed: list[Address] = []
        while True:
            released: Released = self._combiner.submit(ReleaseHandle(_handle(handle) or ""), deadline)
            freed += released.addresses
            if not released.more:
                return Released(tuple(freed), ())

    # Blocks of hosts

    def claim_affinity(self, host: str, cidr: str, deadline: Deadline) -> Claims:
        """Claim all blocks of a network for a host. Raises InvalidInput when it is in no pool or smaller than a
        block.
        """
        network, size = self._pool_around(cidr, deadline)
        if network.blocks(size) > _MOST_BLOCKS:
            raise InvalidInput("cidr", cidr, f"holds {network.blocks(size)} blocks, more than {_MOST_BLOCKS}")
        blocks = [network.block(index, size) for index in range(network.blocks(size))]
        claimed: list[Cidr] = []
        failed: list[Cidr] = []
        for part in _chunks(blocks, CHUNK):
            claims: Claims = self._combiner.submit(ClaimAffinities(host, tuple(part)), deadline)
            claimed += claims.claimed
            failed += claims.failed
        return Claims(tuple(claimed), tuple(failed))

    def release_affinity(self, host: str, cidr: str, deadline: Deadline, *, must_be_empty: bool = False) -> None:
        """Let a host go of all its blocks in a network: empty ones vanish, used ones stay without owner.

        With `must_be_empty` raises Conflict for the first that is not, and leaves the others as they are.
        """
        network, _ = self._pool_around(cidr, deadline)
        pairs = self._affinities(keys.affinity_prefix(host), deadline)
        self._release_blocks([pair for pair in pairs if network.covers(pair[1])], deadline, must_be_empty)

    def release_host_affinities(self, host: str, deadline: Deadline, *, must_be_empty: bool = False) -> None:
        """Let a host go of all its blocks, of both families."""
        self._release_blocks(self._affinities(keys.affinity_prefix(host), deadline), deadline, must_be_empty)

    def remove_host(self, host: str, deadline: Deadline) -> None:
        """What IPAM keeps of a host goes: its claims, and a marker that old releases wrote. Addresses in use stay."""
        self.release_host_affinities(host, deadline)
        try:
            self._kv.delete(keys.AFFINITIES + host, deadline)
        except NotFound:
            pass

    def release_pool_affinities(self, cidr: str, deadline: Deadline) -> None:
        """Let all hosts go of their blocks in a pool, before the pool is deleted."""
        pool = parse_cidr(cidr, "pool")
        pairs = self._affinities(keys.AFFINITIES, deadline)
        self._release_blocks([pair for pair in pairs if pool.covers(pair[1])], deadline, False)

    # Questions (they read etcd, not what is remembered)

    def ips_by_handle(self, handle: str, deadline: Deadline) -> tuple[Address, ...]:
        """Raises NotFound when there is no such handle."""
        return self._queries.ips_by_handle(_handle(handle) or "", deadline)

    def attributes_of(self, ip: str | Address, deadline: Deadline) -> Allocation:
        """Handle, attributes and sequence number of an address in use. Raises NotFound."""
        return self._queries.attributes_of(parse_address(ip), deadline)

    def utilisation(self, deadline: Deadline, wanted: Sequence[str] = ()) -> tuple[PoolUse, ...]:
        """How full the pools are; `wanted` are names or CIDRs of pools. Without it the last entry is for blocks in no
        pool.
        """
        return self._queries.utilisation(wanted, deadline)

    # The engine

    def _serve(self, jobs: list[Job], deadline: Deadline) -> None:
        """Plan the jobs together, commit, settle. Those that did not fit stay open."""
        view = HeldView(self._view)
        for attempt in range(_TRIES):
            deadline.check("etcd to give or take an address")
            turn = Turn(self._kv, self._ledger, view, self._rules, deadline, self._rules.now())
            outcomes = [(job, outcome) for job in jobs if (outcome := _plan(turn, job)) is not None]
            if turn.commit():
                doubted = _settle(outcomes, believe=view.view is self._direct)
                if not doubted:
                    return
                # A view that lags must not be the reason of a refusal.
                jobs, view = doubted, HeldView(self._direct)
            elif turn.stale_inputs:
                view = HeldView(self._direct)
            if attempt >= _PATIENT_TRIES and turn.contended:
                self._step_aside(turn, attempt, deadline)
        raise Conflict(
            "addresses could not be given or taken", hint=f"others changed the same blocks {_TRIES} times; try again"
        )

    def _step_aside(self, turn: Turn, attempt: int, deadline: Deadline) -> None:
        """Let others through. What the lost commit has shown is old after that: read it again right before the next."""
        self._sleep(min(deadline.left(), random.uniform(0, min(_LONGEST_PAUSE, 0.001 * 2 ** min(attempt, 8)))))
        self._ledger.fetch(turn.contended, deadline)

    def _by_block(
        self, wanted: Sequence[Release], deadline: Deadline
    ) -> tuple[list[tuple[Cidr, Release]], list[Address]]:
        """Each address with the block that would hold it, and those for which there is none."""
        found: list[tuple[Cidr, Release]] = []
        nowhere: list[Address] = []
        # The direct view is asked only for what the other does not know.
        views = (HeldView(self._view), HeldView(self._direct))[: 1 + (self._view is not self._direct)]
        for release in wanted:
            cidr = self._home(release.address, views, deadline)
            if cidr is None:
                nowhere.append(release.address)
            else:
                found.append((cidr, release))
        return found, nowhere

    def _home(self, address: Address, views: Sequence[ClusterView], deadline: Deadline) -> Cidr | None:
        """The block that would hold an address: by its pool, also a disabled one, else among the stored blocks."""
        for view in views:
            pool = view.inputs(deadline).pool_of(address.version, int(address))
            if pool is not None:
                return pool.cidr.block_of(int(address), pool.block_size)
        return self._queries.block_holding(address, deadline)

    def _pool_around(self, text: str, deadline: Deadline) -> tuple[Cidr, int]:
        """The network and the block size of its pool. Raises InvalidInput."""
        cidr = parse_cidr(text)
        pool = next((pool for pool in self._view.inputs(deadline).pools if pool.cidr.covers(cidr)), None)
        if pool is None:
            raise InvalidInput("cidr", text, "lies in no IP pool")
        if cidr.prefix > pool.block_size:
            raise InvalidInput("cidr", text, f"is smaller than a block of pool {pool}, which is a /{pool.block_size}")
        return cidr, pool.block_size

    def _affinities(self, prefix: str, deadline: Deadline) -> list[tuple[str, Cidr]]:
        """(host, block) of the affinity keys under a prefix, in key order."""
        listing = self._kv.list(prefix, deadline, keys_only=True)
        return [(pair[0], parse(pair[1])) for item in listing.items if (pair := keys.parse_affinity(item.key))]

    def _release_blocks(self, pairs: Sequence[tuple[str, Cidr]], deadline: Deadline, must_be_empty: bool) -> None:
        for part in _chunks(pairs, CHUNK):
            self._combiner.submit(ReleaseAffinities(tuple(part), must_be_empty), deadline)

    def _release_quietly(self, addresses: Sequence[Address]) -> None:
        """Best effort after a failure: what stays is found by the audit."""
        try:
            self.release(addresses, Deadline(2.0))
        except (DatastoreError, DeadlineExceeded, Conflict):
            pass


# Claiming by hand a whole /8 of /26 blocks would be a mistake.
_MOST_BLOCKS = 65536

# Refusals that rest on what the view says.
_DOUBTFUL = (InvalidInput, NotFound, PoolExhausted)


# What ends the whole batch: no other job of it would fare better.
_STOPPERS = (DatastoreUnavailable, DatastoreUnauthorized, DeadlineExceeded)


def _plan(turn: Turn, job: Job) -> tuple[Any, CalicoError | None] | None:
    """(result, refusal) of a job on this turn; None when the turn is full and the job has to wait for the next."""
    if turn.crowded:
        return None
    mark = turn.mark()
    try:
        return _PLANS[type(job.request)](turn, job.request), None
    except _STOPPERS:
        raise
    except CalicoError as refusal:
        turn.back_to(mark, keep_compares=True)
        return None, refusal


def _settle(outcomes: Sequence[tuple[Job, tuple[Any, CalicoError | None]]], believe: bool) -> list[Job]:
    """Tell the jobs; those whose refusal needs a second look come back."""
    doubted = []
    for job, (result, refusal) in outcomes:
        if refusal is None:
            job.succeed(result)
        elif isinstance(refusal, _DOUBTFUL) and not believe:
            doubted.append(job)
        else:
            job.fail(refusal)
    return doubted


def _undo(job: Job) -> ReleaseAddresses | None:
    """What gives back the addresses of a job whose caller has left."""
    if isinstance(job.result, Assigned):
        given: Sequence[Interface] = job.result.addresses
    elif isinstance(job.result, (IPv4Interface, IPv6Interface)):
        given = (job.result,)
    else:
        return None
    blocks: dict[Cidr, list[Release]] = {}
    for interface in given:
        blocks.setdefault(parse(str(interface.network)), []).append(Release(interface.ip))
    return ReleaseAddresses(tuple((cidr, tuple(releases)) for cidr, releases in blocks.items())) if blocks else None


def _handle(handle: str | None) -> str | None:
    """A handle id as it is stored: what follows a carriage return is not part of it. Raises InvalidInput."""
    if handle is None:
        return None
    known = handle.split("\r", 1)[0]
    if "/" in known:
        raise InvalidInput("handle", handle, "a handle id has no slash")
    return known


def _chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))
