"""What IPAM stores: blocks, affinities, handles and its configuration (datamodel 4.2 - 4.5).

The arithmetic on a block is in `ipam/block.py`; these are only the stored shapes.
"""

from __future__ import annotations

import msgspec


class AllocationAttribute(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Shared by all ordinals with the same handle and attributes. `released_at` (RFC 3339) marks a cooling ordinal."""

    handle_id: str | None = None
    secondary: dict[str, str] | None = None
    alternate_owner_attrs: dict[str, str] | None = msgspec.field(name="alternateOwnerAttrs", default=None)
    released_at: str | None = msgspec.field(name="releasedAt", default=None)


class Block(msgspec.Struct, frozen=True, kw_only=True):
    """`allocations[ordinal]` is None or an index into `attributes`; `unallocated` is the queue of free ordinals.

    `sequence_number` starts at the Unix time in nanoseconds and grows by one with every update of the block.
    """

    cidr: str
    affinity: str | None = None
    affinity_claim_time: str | msgspec.UnsetType = msgspec.UNSET
    allocations: tuple[int | None, ...] = ()
    unallocated: tuple[int, ...] = ()
    attributes: tuple[AllocationAttribute, ...] | None = None
    sequence_number: int = msgspec.field(name="sequenceNumber", default=0)
    sequence_number_for_allocation: dict[str, int] = msgspec.field(name="sequenceNumberForAllocation", default={})
    deleted: bool = False


class Affinity(msgspec.Struct, frozen=True, kw_only=True):
    """`state` is pending, confirmed or pendingDeletion; empty (old data) counts as confirmed."""

    state: str = ""
    deleted: bool = False


class Handle(msgspec.Struct, frozen=True, kw_only=True):
    """Count of addresses per block CIDR; a handle with no block is deleted, never stored."""

    block: dict[str, int] = {}
    deleted: bool = False


class IPAMConfig(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Value of `/calico/ipam/v2/config`. Stored without `auto_allocate_blocks` means false; no key, the DEFAULT."""

    strict_affinity: bool = False
    auto_allocate_blocks: bool = False
    max_blocks_per_host: int = msgspec.field(name="maxBlocksPerHost", default=0)
    kube_virt_vm_address_persistence: str = msgspec.field(name="kubeVirtVMAddressPersistence", default="")
    ip_cooldown_seconds: int = msgspec.field(name="ipCooldownSeconds", default=0)


DEFAULT_IPAM_CONFIG = IPAMConfig(auto_allocate_blocks=True)
