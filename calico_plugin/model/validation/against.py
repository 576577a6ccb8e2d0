"""Rules that need other objects, which are passed in: overlaps, what may not change, what must exist."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Collection, Iterable

from calico_plugin.errors import InvalidInput
from calico_plugin.model.resources.bgp import BGPPeer
from calico_plugin.model.resources.ipam import IPPool
from calico_plugin.model.validation import text
from calico_plugin.model.validation.policy import BUILT_IN_TIERS


def new_pool(pool: IPPool, others: Iterable[IPPool], blocks: Iterable[str]) -> None:
    """A new pool overlaps no other one, disabled ones included, and no block of another size. Raises InvalidInput."""
    network = ip_network(pool.spec.cidr)
    for other in others:
        theirs = text.network_or_none(other.spec.cidr)
        if theirs and theirs.version == network.version and theirs.overlaps(network):
            raise InvalidInput(
                "spec.cidr",
                pool.spec.cidr,
                f"{pool} overlaps {other}, which has {other.spec.cidr}; choose a free range",
            )
    for cidr in blocks:
        block = ip_network(cidr)
        if (
            block.version == network.version
            and block.overlaps(network)
            and block.prefixlen != pool.spec.effective_block_size
        ):
            size = block.prefixlen
            hint = f"the block {cidr} of an earlier pool lies in {pool} and has another size; use blockSize {size}"
            raise InvalidInput("spec.blockSize", pool.spec.effective_block_size, hint)


def changed_pool(pool: IPPool, before: IPPool) -> None:
    """CIDR and block size are for ever; a pool of service addresses stays one. Raises InvalidInput."""
    if ip_network(pool.spec.cidr) != text.network_or_none(before.spec.cidr):
        raise InvalidInput(
            "spec.cidr",
            pool.spec.cidr,
            f"cannot be changed, it is {before.spec.cidr}; make a new pool and disable this one",
        )
    if pool.spec.effective_block_size != before.spec.effective_block_size:
        hint = f"cannot be changed, it is {before.spec.effective_block_size}; make a new pool and disable this one"
        raise InvalidInput("spec.blockSize", pool.spec.block_size, hint)
    if "LoadBalancer" in before.spec.allowed_uses and "LoadBalancer" not in pool.spec.allowed_uses:
        raise InvalidInput("spec.allowedUses", list(pool.spec.allowed_uses), "cannot be changed away from LoadBalancer")


def existing_tier(tier: str, exists: bool) -> None:
    """A policy's tier is there. Raises InvalidInput."""
    if not exists:
        raise InvalidInput("spec.tier", tier, f'tier "{tier}" not found; create it first, or take spec.tier out')


def existing_filters(peer: BGPPeer, known: Collection[str]) -> None:
    """The filters of a peer are there. Raises InvalidInput."""
    for index, name in enumerate(peer.spec.filters):
        if name not in known:
            raise InvalidInput(f"spec.filters[{index}]", name, f"BGPFilter({name}) does not exist; create it first")


def removable_tier(tier: str, policies: Collection[str]) -> None:
    """A tier may go when it is not built in and holds no policy. Raises InvalidInput."""
    if tier in BUILT_IN_TIERS:
        raise InvalidInput("metadata.name", tier, "is a built-in tier: it cannot be deleted")
    if policies:
        raise InvalidInput(
            "metadata.name", tier, f"the tier is in use; delete its policies first: {', '.join(sorted(policies)[:5])}"
        )
