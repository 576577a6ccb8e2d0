"""Plans that give a host a block, or take it away: one commit each, leaving what Calico's two-phase claim leaves
(datamodel 4.8, 4.10).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from msgspec.structs import replace

from calico_plugin.errors import Conflict
from calico_plugin.ipam import block as arithmetic
from calico_plugin.ipam.cidr import Cidr
from calico_plugin.ipam.ledger import Summary, affinity_key, block_key
from calico_plugin.ipam.turn import CONFIRMED, Turn
from calico_plugin.model.ipam import Affinity, Block

# How long after its claim an empty block stays with its host at least (datamodel 4.1).
RECLAIM_AFTER = timedelta(seconds=60)

# Blocks that one commit claims or releases at most: two keys each, and etcd takes 128 of all requests of a batch.
CHUNK = 24


@dataclass(frozen=True, slots=True)
class ReleaseAffinities:
    """Let go of blocks, given as (host, block)."""

    blocks: tuple[tuple[str, Cidr], ...]
    must_be_empty: bool


@dataclass(frozen=True, slots=True)
class ClaimAffinities:
    """Claim blocks of a pool for a host."""

    host: str
    blocks: tuple[Cidr, ...]


@dataclass(frozen=True, slots=True)
class Claims:
    """`failed` belong to another host, or to none although addresses of them are in use."""

    claimed: tuple[Cidr, ...]
    failed: tuple[Cidr, ...]


def is_confirmed(affinity: Affinity | None) -> bool:
    """An empty state is confirmed: data older than 2018."""
    return affinity is not None and affinity.state in ("", "confirmed")


def claim_new(turn: Turn, host: str, cidr: Cidr, sequence_above: int = 0) -> Block:
    """Plan a fresh block for a host where there is none, with its confirmed affinity.

    `sequence_above`: the sequence number of a block that this one replaces; numbers of one block key only grow.
    """
    sequence = max(turn.rules.now_ns(), sequence_above + 1)
    block = arithmetic.fresh(str(cidr), cidr.size, host, turn.now, sequence)
    turn.put_block(cidr, block)
    turn.put_affinity(host, cidr, CONFIRMED)
    return block


def own_block(turn: Turn, host: str, cidr: Cidr) -> Block | None:
    """The block behind an affinity key of the host, made whole where a crash or another tool left half a claim; None
    when it is not ours.

    Relies on the affinity, so that a release of it that goes on elsewhere is noticed.
    """
    block, affinity = turn.block(cidr), turn.affinity(host, cidr)
    if block is None:
        return claim_new(turn, host, cidr)
    if arithmetic.owner(block) != host:
        # The key is stale: the block decides who owns it.
        turn.rely_on_block(cidr)
        turn.put_affinity(host, cidr, None)
        return None
    if is_confirmed(affinity):
        turn.rely_on_affinity(host, cidr)
        return block
    # As the original: one more step of the sequence number, for any who still act on the unfinished claim or release.
    turn.put_affinity(host, cidr, CONFIRMED)
    block = arithmetic.bumped(block)
    turn.put_block(cidr, block)
    return block


def reclaimable(summary: Summary, host: str, turn: Turn) -> bool:
    """Is it an empty block of another host, claimed long enough ago?"""
    if not summary.empty or not summary.affinity or not summary.affinity.startswith(arithmetic.HOST_PREFIX):
        return False
    if summary.affinity == arithmetic.HOST_PREFIX + host:
        return False
    claimed = arithmetic.parse_rfc3339(summary.affinity_claim_time)
    return claimed is None or turn.now - claimed > RECLAIM_AFTER


def reclaim(turn: Turn, host: str, cidr: Cidr) -> Block | None:
    """Take an empty block over from its host, in one step; None when it is no longer as the scan saw it."""
    block = turn.block(cidr)
    loser = arithmetic.owner(block) if block else None
    if block is None or loser is None or loser == host or not arithmetic.is_empty(block):
        return None
    turn.load((affinity_key(loser, cidr), affinity_key(host, cidr)))
    turn.rely_on_affinity(loser, cidr)
    if turn.affinity(loser, cidr) is not None:
        turn.put_affinity(loser, cidr, None)
    return claim_new(turn, host, cidr, block.sequence_number)


def let_go(turn: Turn, host: str, cidr: Cidr, *, must_be_empty: bool) -> bool:
    """Plan the end of a host's claim: an empty block goes, a used one stays without owner. False: it must be empty
    and is not.
    """
    block, affinity = turn.block(cidr), turn.affinity(host, cidr)
    turn.rely_on_block(cidr)
    turn.rely_on_affinity(host, cidr)
    if affinity is None:
        return True
    if block is not None and arithmetic.owner(block) == host:
        if arithmetic.is_empty(block):
            turn.put_block(cidr, None)
        elif must_be_empty:
            return False
        else:
            turn.put_block(cidr, arithmetic.disowned(block))
    turn.put_affinity(host, cidr, None)
    return True


def plan_release_affinities(turn: Turn, request: ReleaseAffinities) -> None:
    """Raises Conflict for the first block that must be empty and is not; then none of them is released."""
    turn.load(key for host, cidr in request.blocks for key in (block_key(cidr), affinity_key(host, cidr)))
    for host, cidr in request.blocks:
        if not let_go(turn, host, cidr, must_be_empty=request.must_be_empty):
            raise Conflict(f"block {cidr} of node {host} still has addresses in use", hint="release them first")


def plan_claim_affinities(turn: Turn, request: ClaimAffinities) -> Claims:
    host = request.host
    turn.load(key for cidr in request.blocks for key in (block_key(cidr), affinity_key(host, cidr)))
    claimed: list[Cidr] = []
    failed: list[Cidr] = []
    for cidr in request.blocks:
        (claimed if _claim(turn, host, cidr) else failed).append(cidr)
    return Claims(tuple(claimed), tuple(failed))


def _claim(turn: Turn, host: str, cidr: Cidr) -> bool:
    block = turn.block(cidr)
    if block is None:
        claim_new(turn, host, cidr)
        return True
    turn.rely_on_block(cidr)
    if arithmetic.owner(block) != host:
        return False
    turn.rely_on_affinity(host, cidr)
    if not is_confirmed(turn.affinity(host, cidr)):
        turn.put_affinity(host, cidr, CONFIRMED)
        turn.put_block(cidr, replace(block))
    return True
