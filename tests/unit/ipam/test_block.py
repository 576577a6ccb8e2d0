"""Arithmetic of one block."""

from __future__ import annotations

import random
from datetime import datetime, timedelta, timezone

import msgspec
import pytest
from msgspec.structs import replace

from calico_plugin.ipam import block as arithmetic
from calico_plugin.ipam.turn import encoded
from calico_plugin.model import codec
from calico_plugin.model.ipam import AllocationAttribute, Block

NOW = datetime(2026, 8, 20, 9, 0, 0, tzinfo=timezone.utc)


def fresh(size: int = 8, sequence: int = 100) -> Block:
    return arithmetic.fresh("10.50.0.0/29", size, "dock-a", NOW, sequence)


def owned_by(handle: str | None, **secondary: str) -> AllocationAttribute:
    return AllocationAttribute(handle_id=handle, secondary=secondary or None)


def test_a_fresh_block_is_what_calico_creates() -> None:
    """All ordinals free in ascending order, attributes null, no sequence numbers of allocations."""
    assert msgspec.json.decode(codec.encode(fresh())) == {
        "cidr": "10.50.0.0/29", "affinity": "host:dock-a", "affinity_claim_time": "2026-08-20T09:00:00Z",
        "allocations": [None] * 8, "unallocated": list(range(8)), "attributes": None, "sequenceNumber": 100,
        "sequenceNumberForAllocation": {}, "deleted": False,
    }


def test_the_fast_encoder_writes_the_same_bytes() -> None:
    """The hot path's bytes are those of the common codec: struct order, sorted maps, escaped like Go's."""
    empty = arithmetic.fresh("10.50.0.0/28", 16, "a", NOW, 7)
    block, _ = arithmetic.assign(empty, 12, owned_by("a&b<c>", z="1", a="2"))
    assert encoded(block) == codec.encode(block)


def test_addresses_are_taken_from_the_head_and_given_back_at_the_tail() -> None:
    """FIFO: allocate, release, allocate again gives 0 then 1, not 0 twice."""
    block, first = arithmetic.assign(fresh(), 1, owned_by("h"))
    block, second = arithmetic.assign(arithmetic.release(block, first), 1, owned_by("h"))
    assert (first, second) == ((0,), (1,))
    assert block.unallocated == (2, 3, 4, 5, 6, 7, 0)


def test_an_allocation_carries_the_number_from_before_the_update() -> None:
    """Right after the write the block's number is one more than the allocation's."""
    block, _ = arithmetic.assign(fresh(sequence=41), 1, owned_by(None))
    stored = arithmetic.bumped(block)
    assert (arithmetic.sequence_of(stored, 0), stored.sequence_number) == (41, 42)


def test_unusable_ordinals_keep_their_place() -> None:
    """Reserved ordinals stay at the head of the queue."""
    block, ordinals = arithmetic.assign(fresh(), 3, owned_by("h"), lambda ordinal: ordinal not in (0, 2))
    assert ordinals == (1, 3, 4)
    assert block.unallocated == (0, 2, 5, 6, 7)


def test_a_block_gives_what_it_has() -> None:
    """More than there is gives all of it; nothing gives the block unchanged."""
    block, ordinals = arithmetic.assign(fresh(), 20, owned_by("h"))
    assert ordinals == tuple(range(8))
    assert arithmetic.assign(block, 1, owned_by("h")) == (block, ())


def test_a_given_ordinal() -> None:
    """It is taken from the middle of the queue, once."""
    block = arithmetic.assign_ordinal(fresh(), 5, owned_by("h"))
    assert block is not None and block.unallocated == (0, 1, 2, 3, 4, 6, 7)
    assert arithmetic.assign_ordinal(block, 5, owned_by("h")) is None


def test_equal_attributes_are_shared_and_unused_ones_dropped() -> None:
    """Equality is by handle and map; after a release indexes are rewritten, the order of the others stays."""
    block = fresh()
    for owner in (owned_by("a", node="x"), owned_by("b", node="x"), owned_by("a", node="x"), owned_by("c")):
        block, _ = arithmetic.assign(block, 1, owner)
    assert block.allocations[:4] == (0, 1, 0, 2)
    block = arithmetic.release(block, (1,))
    assert block.allocations[:4] == (0, None, 0, 1)
    assert [one.handle_id for one in block.attributes or ()] == ["a", "c"]
    assert arithmetic.ordinals_of_handle(block, "a") == (0, 2)
    assert arithmetic.ordinals_of_handle(block, "b") == ()


def test_several_released_ordinals_queue_in_ascending_order() -> None:
    """Whatever the order of the request."""
    block, _ = arithmetic.assign(fresh(), 8, owned_by("h"))
    assert arithmetic.release(block, (6, 0, 3)).unallocated == (0, 3, 6)


def test_cooldown_keeps_an_ordinal_until_its_rest_is_over() -> None:
    """A resting ordinal is neither free nor empty, has no handle, and comes back at the tail on a later load."""
    block, _ = arithmetic.assign(fresh(), 2, owned_by("h"))
    resting = arithmetic.release(block, (0,), cooling_since=NOW)
    attribute = arithmetic.attribute_of(resting, 0)
    assert attribute is not None and arithmetic.is_cooling(attribute)
    assert 0 not in resting.unallocated and not arithmetic.is_empty(arithmetic.release(resting, (1,)))
    assert arithmetic.collect(resting, NOW + timedelta(seconds=59), 60) == resting
    later = arithmetic.collect(resting, NOW + timedelta(seconds=60), 60)
    assert later.unallocated[-1] == 0 and arithmetic.attribute_of(later, 0) is None
    assert arithmetic.problems(later, 8) == []


def test_each_release_with_cooldown_has_its_own_mark() -> None:
    """Two releases in the same second are two entries, as in the original."""
    block, _ = arithmetic.assign(fresh(), 2, owned_by("h"))
    block = arithmetic.release(arithmetic.release(block, (0,), NOW), (1,), NOW)
    assert len(block.attributes or ()) == 2


def test_a_broken_time_does_not_hold_an_address_for_ever() -> None:
    """An unreadable releasedAt counts as long ago."""
    broken = replace(
        fresh(), allocations=(0, *[None] * 7), unallocated=tuple(range(1, 8)),
        attributes=(AllocationAttribute(released_at="yesterday"),),
    )
    assert arithmetic.collect(broken, NOW, 600).unallocated[-1] == 0


def test_emptiness_and_owner() -> None:
    """Windows' own addresses do not count; a virtual owner is no host."""
    windows, _ = arithmetic.assign(fresh(), 3, owned_by(arithmetic.WINDOWS_RESERVED))
    used, _ = arithmetic.assign(fresh(), 1, owned_by(None))
    assert arithmetic.is_empty(fresh()) and arithmetic.is_empty(windows) and not arithmetic.is_empty(used)
    assert arithmetic.owner(fresh()) == "dock-a"
    assert arithmetic.owner(replace(fresh(), affinity="virtual:load-balancer")) is None
    assert arithmetic.owner(arithmetic.disowned(fresh())) is None
    assert b"affinity_claim_time" not in codec.encode(arithmetic.disowned(fresh()))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"allocations": (None,) * 7}, "holds 7 allocations"),
        ({"unallocated": (0, 0, 1, 2, 3, 4, 5, 6, 7)}, "twice"),
        ({"unallocated": (1, 2, 3, 4, 5, 6, 7)}, "ordinals [0] are neither"),
        ({"unallocated": tuple(range(9))}, "outside"),
        ({"allocations": (0, *[None] * 7), "attributes": (AllocationAttribute(),)}, "allocated and free"),
        ({"attributes": (AllocationAttribute(),)}, "belong to no address"),
        ({"allocations": (3, *[None] * 7), "unallocated": tuple(range(1, 8))}, "do not exist"),
    ],
)
def test_broken_invariants_are_named(change: dict[str, object], words: str) -> None:
    """Each kind of damage is told in words."""
    assert any(words in problem for problem in arithmetic.problems(replace(fresh(), **change), 8))


def test_random_work_keeps_all_invariants() -> None:
    """Whatever is given and taken back in whatever order, the block stays sound and holds exactly what was given."""
    chance = random.Random(4)
    block, held = fresh(), dict[int, AllocationAttribute]()
    for step in range(2000):
        if held and chance.random() < 0.5:
            gone = chance.sample(sorted(held), chance.randint(1, len(held)))
            block = arithmetic.release(block, gone)
            held = {ordinal: owner for ordinal, owner in held.items() if ordinal not in gone}
        else:
            owner = owned_by(chance.choice((None, "a", "b")), node=str(step % 3))
            block, ordinals = arithmetic.assign(block, chance.randint(1, 3), owner)
            held.update(dict.fromkeys(ordinals, owner))
        block = arithmetic.bumped(block)
        assert arithmetic.problems(block, 8) == []
        assert {ordinal: arithmetic.attribute_of(block, ordinal) for ordinal in held} == held
        assert len(block.unallocated) == 8 - len(held)
    assert block.sequence_number == 2100
