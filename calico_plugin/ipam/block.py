"""Arithmetic of one block: give ordinals out, take them back, keep the invariants. Pure: values in, values out
(datamodel 4.3).

An ordinal is an address's offset in its block; all of them are assignable. Every function returns a new Block whose
sequence number is still the old one: whoever stores a block calls `bumped` once, however many changes went into that
write. Free ordinals are a queue: taken from the head, given back at the tail, so that a released address rests as
long as possible.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Callable, Iterable, Mapping

from msgspec import UNSET
from msgspec.structs import replace

from calico_plugin.model.ipam import AllocationAttribute, Block

# Calico on Windows keeps a few addresses of each block under this handle; a block with nothing else counts as empty.
WINDOWS_RESERVED = "windows-reserved-ipam-handle"
HOST_PREFIX = "host:"

Usable = Callable[[int], bool]


def rfc3339(moment: datetime) -> str:
    """Whole seconds in UTC, as Calico writes its times (datamodel 2.1)."""
    return moment.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_rfc3339(text: str) -> datetime | None:
    """A moment, or None when the text is none: a broken time must not stop an allocation."""
    try:
        return datetime.fromisoformat(text).astimezone(timezone.utc)
    except ValueError:
        return None


def fresh(cidr: str, size: int, host: str, now: datetime, sequence: int) -> Block:
    """A new empty block of `size` addresses that `host` claims now; `sequence` is the Unix time in nanoseconds."""
    return Block(
        cidr=cidr,
        affinity=HOST_PREFIX + host,
        affinity_claim_time=rfc3339(now),
        allocations=(None,) * size,
        unallocated=tuple(range(size)),
        sequence_number=sequence,
    )


def bumped(block: Block, by: int = 1) -> Block:
    """The block with its sequence number moved on, as every update of a stored block does."""
    return replace(block, sequence_number=block.sequence_number + by)


def owner(block: Block) -> str | None:
    """The host that the block is affine to; None when it has no owner or a virtual one (service load balancers)."""
    affinity = block.affinity or ""
    return affinity[len(HOST_PREFIX):] if affinity.startswith(HOST_PREFIX) else None


def is_empty(block: Block) -> bool:
    """No allocation but Windows' own. A cooling ordinal still counts: its rest must not end with its block."""
    attributes = block.attributes or ()
    return all(index is None or attributes[index].handle_id == WINDOWS_RESERVED for index in block.allocations)


def attribute_of(block: Block, ordinal: int) -> AllocationAttribute | None:
    """What is recorded for an ordinal; None when it is free."""
    index = block.allocations[ordinal]
    return None if index is None else (block.attributes or ())[index]


def sequence_of(block: Block, ordinal: int) -> int:
    """The number that tells this allocation of the ordinal from any other; 0 in data older than Calico 3.23."""
    return block.sequence_number_for_allocation.get(str(ordinal), 0)


def ordinals_of_handle(block: Block, handle: str) -> tuple[int, ...]:
    attributes = block.attributes or ()
    wanted = {index for index, attribute in enumerate(attributes) if attribute.handle_id == handle}
    return tuple(ordinal for ordinal, index in enumerate(block.allocations) if index in wanted) if wanted else ()


def free_ordinals(block: Block, usable: Usable | None = None) -> tuple[int, ...]:
    """Free ordinals in queue order; `usable` leaves out reserved ones and those outside a wanted range."""
    return block.unallocated if usable is None else tuple(filter(usable, block.unallocated))


def assign(
    block: Block, count: int, attribute: AllocationAttribute, usable: Usable | None = None
) -> tuple[Block, tuple[int, ...]]:
    """Take up to `count` ordinals from the head of the queue; unusable ones keep their place in it."""
    chosen = free_ordinals(block, usable)[:count]
    return (_occupy(block, chosen, attribute), chosen) if chosen else (block, ())


def assign_ordinal(block: Block, ordinal: int, attribute: AllocationAttribute) -> Block | None:
    """Take one given ordinal from wherever it stands in the queue; None when it is not free."""
    return _occupy(block, (ordinal,), attribute) if ordinal in block.unallocated else None


def _occupy(block: Block, ordinals: tuple[int, ...], attribute: AllocationAttribute) -> Block:
    attributes = block.attributes or ()
    index = attributes.index(attribute) if attribute in attributes else len(attributes)
    allocations = list(block.allocations)
    for ordinal in ordinals:
        allocations[ordinal] = index
    taken = set(ordinals)
    return replace(
        block,
        allocations=tuple(allocations),
        unallocated=tuple(ordinal for ordinal in block.unallocated if ordinal not in taken),
        attributes=attributes if index < len(attributes) else (*attributes, attribute),
        sequence_number_for_allocation=_stamped(block, ordinals),
    )


def _stamped(block: Block, ordinals: Iterable[int]) -> dict[str, int]:
    return {**block.sequence_number_for_allocation, **{str(o): block.sequence_number for o in ordinals}}


def release(block: Block, ordinals: Iterable[int], cooling_since: datetime | None = None) -> Block:
    """Free allocated ordinals: to the tail of the queue in ascending order, or, with a cooldown, marked as resting."""
    freed = sorted(set(ordinals))
    if cooling_since is not None:
        return _cooled(block, freed, AllocationAttribute(released_at=rfc3339(cooling_since)))
    allocations = list(block.allocations)
    for ordinal in freed:
        allocations[ordinal] = None
    gone = set(map(str, freed))
    sequences = {key: value for key, value in block.sequence_number_for_allocation.items() if key not in gone}
    return _compacted(replace(
        block,
        allocations=tuple(allocations),
        unallocated=(*block.unallocated, *freed),
        sequence_number_for_allocation=sequences,
    ))


def _cooled(block: Block, ordinals: list[int], mark: AllocationAttribute) -> Block:
    """Each release makes its own entry, as the original does, also when another one carries the same second."""
    attributes = (*(block.attributes or ()), mark)
    allocations = list(block.allocations)
    for ordinal in ordinals:
        allocations[ordinal] = len(attributes) - 1
    sequences = _stamped(block, ordinals)
    return _compacted(replace(
        block, allocations=tuple(allocations), attributes=attributes, sequence_number_for_allocation=sequences
    ))


def _compacted(block: Block) -> Block:
    """Drop attribute entries that nothing refers to; the others keep their order."""
    attributes = block.attributes or ()
    used = sorted({index for index in block.allocations if index is not None})
    if len(used) == len(attributes):
        return block
    moved: Mapping[int | None, int] = {old: new for new, old in enumerate(used)}
    return replace(
        block,
        attributes=tuple(attributes[index] for index in used),
        allocations=tuple(moved.get(index) for index in block.allocations),
    )


def collect(block: Block, now: datetime, cooldown: int) -> Block:
    """Put ordinals that have rested for `cooldown` seconds back into the queue; done on every load of a block."""
    resting = {i: a.released_at for i, a in enumerate(block.attributes or ()) if a.released_at}
    if not resting:
        return block
    over = {index for index, since in resting.items() if _rested(since, now, cooldown)}
    done = [ordinal for ordinal, index in enumerate(block.allocations) if index in over]
    return release(block, done) if done else block


def _rested(since: str, now: datetime, cooldown: int) -> bool:
    moment = parse_rfc3339(since)
    return moment is None or now - moment >= timedelta(seconds=cooldown)


def is_cooling(attribute: AllocationAttribute) -> bool:
    return bool(attribute.released_at)


def disowned(block: Block) -> Block:
    """The block without owner: what remains of a used block when its host lets go of it."""
    return replace(block, affinity=None, affinity_claim_time=UNSET)


def problems(block: Block, size: int) -> list[str]:
    """Broken invariants of a stored block of `size` addresses, in words; empty when it is sound (datamodel 8.3)."""
    found = []
    if len(block.allocations) != size:
        found.append(f"holds {len(block.allocations)} allocations, its size is {size}")
    if len(set(block.unallocated)) != len(block.unallocated):
        found.append("lists a free ordinal twice")
    found += _queue_problems(block, size) + _attribute_problems(block)
    return found


def _queue_problems(block: Block, size: int) -> list[str]:
    allocated = {ordinal for ordinal, index in enumerate(block.allocations) if index is not None}
    free = set(block.unallocated)
    found = []
    if both := sorted(allocated & free):
        found.append(f"ordinals {both} are allocated and free")
    if neither := sorted(set(range(size)) - allocated - free):
        found.append(f"ordinals {neither} are neither allocated nor free")
    if outside := sorted(free - set(range(size))):
        found.append(f"free ordinals {outside} are outside the block")
    return found


def _attribute_problems(block: Block) -> list[str]:
    count = len(block.attributes or ())
    used = {index for index in block.allocations if index is not None}
    found = []
    if wild := sorted(index for index in used if not 0 <= index < count):
        found.append(f"attribute indexes {wild} do not exist")
    if idle := sorted(set(range(count)) - used):
        found.append(f"attributes {idle} belong to no address")
    return found
