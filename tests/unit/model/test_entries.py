"""Versions of a map: equal to plain dictionaries, whatever way they came about."""

from __future__ import annotations

import random

import pytest

from calico_plugin.model.entries import Entries, moved


@pytest.mark.parametrize("seed", range(20))
def test_versions_are_what_a_dictionary_would_be(seed: int) -> None:
    """Random changes, small and large: entries, size, order of nothing, and the difference to every earlier version."""
    rng = random.Random(seed)
    plain = {f"k{number}": "a" for number in range(rng.choice([0, 5, 400]))}
    version = Entries(dict(plain))
    history = [(dict(plain), version)]
    for _ in range(12):
        keys = [f"k{rng.randrange(500)}" for _ in range(rng.choice([1, 3, 80]))]
        changes = {key: rng.choice(["", "a", "b", "c"]) for key in keys}
        for key, value in changes.items():
            plain.pop(key, None)
            if value:
                plain[key] = value
        version = version.changed(changes)
        history.append((dict(plain), version))
        assert version == plain and dict(version) == plain and len(version) == len(plain) == len(list(version))
        assert all((key in version) == (key in plain) and version.get(key) == plain.get(key) for key in keys)
    for old, one in history:
        gone, new = moved(one, version)
        assert gone == {key: value for key, value in old.items() if plain.get(key) != value}
        assert new == {key: value for key, value in plain.items() if old.get(key) != value}
        assert (one == version) == (old == plain)


def test_small_change_of_a_large_map_shares_it() -> None:
    """And says what it was without a look at the rest."""
    large = Entries({f"k{number}": "a" for number in range(10_000)})
    other = large.changed({"k1": "b", "k2": "", "new": "c"})
    assert other._base is large._base
    assert moved(large, other) == ({"k1": "a", "k2": "a"}, {"k1": "b", "new": "c"})
