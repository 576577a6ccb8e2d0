"""Members of a set as versions: equal to plain sets, whatever the way to them."""

from __future__ import annotations

import random

from calico_plugin.model.members import Members


def test_versions_equal_plain_sets() -> None:
    """A long row of random changes: each version, and its difference from an earlier one, is that of plain sets."""
    rng = random.Random(5)
    names = [f"10.0.0.{number}" for number in range(200)]
    for most in (3, 60):
        versions = [Members(names[:100])]
        plain = [frozenset(names[:100])]
        for _ in range(200):
            came, went = (set(rng.sample(names, rng.randrange(most))) for _ in range(2))
            versions.append(versions[-1].changed(came, went))
            plain.append((plain[-1] - went) | came)
            there, earlier = versions[-1], rng.randrange(len(plain))
            assert there == plain[-1] and plain[-1] == there and len(there) == len(plain[-1])
            assert sorted(there) == sorted(plain[-1]) and hash(there) == hash(plain[-1])
            assert all((name in there) == (name in plain[-1]) for name in names)
            assert there - versions[earlier] == plain[-1] - plain[earlier]
            assert versions[earlier] - there == plain[earlier] - plain[-1]
            assert there - plain[earlier] == plain[-1] - plain[earlier]
            assert plain[earlier] - there == plain[earlier] - plain[-1]
            assert (there == versions[earlier]) == (plain[-1] == plain[earlier])


def test_earlier_versions_stay() -> None:
    """A version is a value: later changes do not show in it."""
    first = Members(["a", "b"])
    second = first.changed({"c"}, {"a"})
    second.changed({"a"}, {"b", "c"})
    assert (first, second) == ({"a", "b"}, {"b", "c"})
    assert Members() == frozenset() != first


def test_both_came_and_went() -> None:
    """What comes and goes in one change is there."""
    assert Members(["a"]).changed({"a", "b"}, {"a", "b"}) == {"a", "b"}
