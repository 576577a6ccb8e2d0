"""Desired, actual and the difference between them as one data structure; pure.

Each side changes on its own: `want` and `unwant` when the cluster's state changes, `saw` and `lost` when the kernel
tells or when we wrote. Only keys whose two sides differ are remembered, so the work of a pass is proportional to the
change. The difference depends on the present state only, never on the order of events.
"""

from __future__ import annotations

from typing import Generic, Iterator, Mapping, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Delta(Generic[K, V]):
    """A map that should be (`desired`), the map that is (`actual`), and the keys where they differ."""

    def __init__(self) -> None:
        self._desired: dict[K, V] = {}
        self._actual: dict[K, V] = {}
        self._differing: set[K] = set()

    @property
    def desired(self) -> Mapping[K, V]:
        return self._desired

    @property
    def actual(self) -> Mapping[K, V]:
        return self._actual

    def want(self, key: K, value: V) -> None:
        self._desired[key] = value
        self._compare(key)

    def unwant(self, key: K) -> None:
        self._desired.pop(key, None)
        self._compare(key)

    def saw(self, key: K, value: V) -> None:
        self._actual[key] = value
        self._compare(key)

    def lost(self, key: K) -> None:
        self._actual.pop(key, None)
        self._compare(key)

    def replace_actual(self, actual: Mapping[K, V]) -> None:
        """A complete reading of the other side: what it does not hold is not there."""
        self._actual = dict(actual)
        keys = self._actual.keys() | self._desired.keys()
        self._differing = {key for key in keys if self._differs(key)}

    def updates(self) -> dict[K, V]:
        """What must be written: absent or different on the other side."""
        return {key: self._desired[key] for key in self._differing if key in self._desired}

    def removals(self) -> list[K]:
        """What must be taken away."""
        return [key for key in self._differing if key not in self._desired]

    def in_place(self, key: K) -> bool:
        """Whether the key is wanted and is there as wanted."""
        return key in self._desired and key not in self._differing

    def __bool__(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._differing)

    def __iter__(self) -> Iterator[K]:
        """The keys that differ."""
        return iter(tuple(self._differing))

    def _differs(self, key: K) -> bool:
        if key in self._desired and key in self._actual:
            return self._desired[key] != self._actual[key]
        return key in self._desired or key in self._actual

    def _compare(self, key: K) -> None:
        if self._differs(key):
            self._differing.add(key)
        else:
            self._differing.discard(key)
