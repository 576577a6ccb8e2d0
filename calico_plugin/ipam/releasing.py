"""Plans that take addresses back: by address, with the sequence number and handle that were seen, or by handle
(datamodel 4.13).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterable

from msgspec.structs import replace

from calico_plugin.errors import Conflict, NotFound
from calico_plugin.ipam import affinities
from calico_plugin.ipam import block as arithmetic
from calico_plugin.ipam.cidr import Address, Cidr, parse
from calico_plugin.ipam.ledger import block_key
from calico_plugin.ipam.pools import selects_node
from calico_plugin.ipam.turn import Turn
from calico_plugin.model import keys
from calico_plugin.model.ipam import Block


@dataclass(frozen=True, slots=True)
class Release:
    """One address to take back. `sequence` and `handle`, when given, must be those stored: a later owner of it keeps
    it.
    """

    address: Address
    sequence: int | None = None
    handle: str | None = None


@dataclass(frozen=True, slots=True)
class ReleaseAddresses:
    """Addresses by the block that holds them."""

    blocks: tuple[tuple[Cidr, tuple[Release, ...]], ...]


@dataclass(frozen=True, slots=True)
class ReleaseHandle:
    """All addresses of a handle."""

    handle: str


@dataclass(frozen=True, slots=True)
class Released:
    """`addresses` were in use and are free now; `unallocated` were free, or resting, already. `more`: ask again for
    the rest.
    """

    addresses: tuple[Address, ...]
    unallocated: tuple[Address, ...]
    more: bool = False


def plan_release(turn: Turn, request: ReleaseAddresses) -> Released:
    """Raises Conflict, and releases nothing, when an address does not have the sequence number or the handle that was
    given.
    """
    turn.load(block_key(cidr) for cidr, _ in request.blocks)
    turn.load(keys.handle(handle) for handle in _handles(turn, request))
    turn.rely_on_config()
    freed: list[Address] = []
    idle: list[Address] = []
    for cidr, releases in request.blocks:
        block = turn.block(cidr)
        turn.rely_on_block(cidr)
        used = [release for release in releases if _is_used(block, cidr, release)]
        idle += [release.address for release in releases if release not in used]
        freed += [release.address for release in used]
        if block is not None and used:
            _free(turn, cidr, block, tuple(int(release.address) - cidr.base for release in used))
    return Released(tuple(freed), tuple(idle))


def _handles(turn: Turn, request: ReleaseAddresses) -> Iterable[str]:
    for cidr, releases in request.blocks:
        block = turn.block(cidr)
        for release in releases if block else ():
            assert block is not None
            attribute = arithmetic.attribute_of(block, int(release.address) - cidr.base)
            if attribute and attribute.handle_id:
                yield attribute.handle_id


def _is_used(block: Block | None, cidr: Cidr, release: Release) -> bool:
    """Is it in use, and by the one meant? Raises Conflict for another's."""
    ordinal = int(release.address) - cidr.base
    attribute = arithmetic.attribute_of(block, ordinal) if block else None
    if block is None or attribute is None or arithmetic.is_cooling(attribute):
        return False
    if release.handle is not None and release.handle != (attribute.handle_id or ""):
        raise Conflict(
            f"address {release.address} has handle {attribute.handle_id or 'none'}, not {release.handle or 'none'}",
            hint="it is in use by another; it was not released",
        )
    stored = arithmetic.sequence_of(block, ordinal)
    if release.sequence is not None and release.sequence != stored:
        raise Conflict(
            f"address {release.address} has sequence number {stored}, not {release.sequence}",
            hint="it was given out anew since it was looked at; it was not released",
        )
    return True


def _free(turn: Turn, cidr: Cidr, block: Block, ordinals: tuple[int, ...]) -> None:
    """Plan the release of allocated ordinals, with all that follows for handles, block and affinity."""
    counts: dict[str, int] = {}
    for ordinal in ordinals:
        attribute = arithmetic.attribute_of(block, ordinal)
        if attribute and attribute.handle_id:
            counts[attribute.handle_id] = counts.get(attribute.handle_id, 0) + 1
    _free_in_block(turn, cidr, block, ordinals)
    for handle, count in counts.items():
        turn.count(handle, cidr, -count)


def _free_in_block(turn: Turn, cidr: Cidr, block: Block, ordinals: tuple[int, ...]) -> None:
    cooldown = turn.inputs.config.ip_cooldown_seconds
    changed = arithmetic.release(block, ordinals, turn.now if cooldown else None)
    turn.put_block(cidr, changed)
    host = arithmetic.owner(changed)
    if not arithmetic.is_empty(changed):
        return
    if changed.affinity is None:
        turn.put_block(cidr, None)
    elif host is not None and _is_unselected(turn, host, cidr):
        affinities.let_go(turn, host, cidr, must_be_empty=True)


def _is_unselected(turn: Turn, host: str, cidr: Cidr) -> bool:
    """Does the block's pool no longer select its host? Then an empty block is not kept."""
    pool = turn.inputs.pool_of(cidr.version, cidr.base, enabled=True)
    if pool is None or pool.node_selector in ("", "all()"):
        return False
    node = turn.node(host)
    return node is not None and not selects_node(pool, node.labels, turn.rules.selects)


def plan_release_handle(turn: Turn, request: ReleaseHandle) -> Released:
    """Raises NotFound when there is no such handle."""
    handle = turn.handle(request.handle)
    turn.rely(keys.handle(request.handle))
    if handle is None:
        raise NotFound(f"IPAM handle {request.handle}")
    turn.rely_on_config()
    names = tuple(handle.block)
    cidrs = [cidr for name in names[:affinities.CHUNK] if (cidr := _readable(name))]
    turn.load(map(block_key, cidrs))
    freed: list[Address] = []
    for cidr in cidrs:
        block = turn.block(cidr)
        turn.rely_on_block(cidr)
        ordinals = arithmetic.ordinals_of_handle(block, request.handle) if block else ()
        if block is not None and ordinals:
            _free_in_block(turn, cidr, block, ordinals)
            freed += [cidr.at(ordinal) for ordinal in ordinals]
    # Whatever it counted, nothing of it is left in these blocks: the original keeps an over-counted handle for ever.
    rest = {name: handle.block[name] for name in names[affinities.CHUNK:]}
    turn.put_handle(request.handle, replace(handle, block=rest) if rest else None)
    return Released(tuple(freed), (), more=bool(rest))


def _readable(name: str) -> Cidr | None:
    try:
        return parse(name)
    except ValueError:
        return None
