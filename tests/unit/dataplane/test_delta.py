"""Desired, actual, difference."""

from __future__ import annotations

import itertools
import random

from calico_plugin.dataplane.delta import Delta


def test_difference_depends_on_the_present_only() -> None:
    """Whatever the order of events, the difference is that of the two maps as they are."""
    chance = random.Random(7)
    for _ in range(200):
        delta: Delta[str, int] = Delta()
        for _ in range(30):
            key, value = chance.choice("abc"), chance.randrange(3)
            chance.choice(
                (
                    lambda key=key, value=value: delta.want(key, value),
                    lambda key=key, value=value: delta.unwant(key),
                    lambda key=key, value=value: delta.saw(key, value),
                    lambda key=key, value=value: delta.lost(key),
                    lambda value=value: delta.replace_actual({"a": value}),
                )
            )()
        desired, actual = dict(delta.desired), dict(delta.actual)
        assert delta.updates() == {key: value for key, value in desired.items() if actual.get(key) != value}
        assert set(delta.removals()) == actual.keys() - desired.keys()
        assert bool(delta) == bool(delta.updates() or delta.removals())
        for key in "abc":
            assert delta.in_place(key) == (key in desired and desired[key] == actual.get(key))


def test_writing_the_difference_ends_it() -> None:
    """After each update is seen and each removal lost, there is nothing to do."""
    delta: Delta[str, int] = Delta()
    for key, value in itertools.product("ab", (1, 2)):
        delta.want(key, value)
    delta.replace_actual({"b": 1, "c": 3})
    for key, value in delta.updates().items():
        delta.saw(key, value)
    for key in delta.removals():
        delta.lost(key)
    assert not delta and dict(delta.actual) == {"a": 2, "b": 2}
