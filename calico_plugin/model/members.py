"""Members of a set that changes a little at a time, as values: versions share what they have in common.

A version is a base, which many versions share, and what came and went since. So the next version, and the difference of
two, cost what changed and not what is there.
"""

from __future__ import annotations

from collections.abc import Set
from itertools import chain, filterfalse
from typing import Any, Iterable, Iterator

_NOTHING: frozenset[str] = frozenset()
_LEAST, _SHARE = 32, 8
"""A version that differs from its base by more than this many members, and by more than this part of it, is a base."""


class Members(Set[str]):
    """Equal to any set of the same members."""

    __slots__ = ("_base", "_came", "_went")

    def __init__(
        self, base: Iterable[str] = (), came: frozenset[str] = _NOTHING, went: frozenset[str] = _NOTHING
    ) -> None:
        """`came` are not in the base, `went` are."""
        self._base, self._came, self._went = frozenset(base), came, went

    def changed(self, came: Set[str], went: Set[str]) -> Members:
        """Without `went`, then with `came`."""
        new = (self._came - went) | (came - self._base)
        old = (self._went | (went & self._base)) - came
        if len(new) + len(old) > max(_LEAST, len(self._base) // _SHARE):
            return Members((self._base - old) | new)
        return Members(self._base, frozenset(new), frozenset(old))

    def __contains__(self, member: object) -> bool:
        return member in self._came or member in self._base and member not in self._went

    def __iter__(self) -> Iterator[str]:
        return chain(filterfalse(self._went.__contains__, self._base), self._came)

    def __len__(self) -> int:
        return len(self._base) - len(self._went) + len(self._came)

    def __sub__(self, other: Set[Any]) -> frozenset[str]:
        if isinstance(other, Members) and other._base is self._base:
            return (self._came - other._came) | (other._went - self._went)
        return frozenset(filterfalse(other.__contains__, self))

    def __rsub__(self, other: Set[Any]) -> frozenset[str]:
        return frozenset(filterfalse(self.__contains__, other))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Members) and other._base is self._base:
            return self._came == other._came and self._went == other._went
        if not isinstance(other, Set):
            return NotImplemented
        return len(self) == len(other) and all(map(other.__contains__, self))

    def __hash__(self) -> int:
        return hash(frozenset(self))

    def __repr__(self) -> str:
        return f"Members({sorted(self)})"
