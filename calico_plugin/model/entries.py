"""Entries of a map that changes a little at a time, as values: versions share what they have in common.

As `members` for sets: a version is a base, which many versions share, and what is different since.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Iterator

_LEAST, _SHARE = 32, 8
"""A version that differs from its base by more than this many keys, and by more than this part of it, is a base."""
_GONE = ""


class Entries(Mapping[str, str]):
    """Equal to any mapping with the same entries. No value is empty."""

    __slots__ = ("_base", "_changes", "_size")

    def __init__(self, base: Mapping[str, str], changes: Mapping[str, str] | None = None) -> None:
        """`changes`: what is different from the base, an empty value where a key is gone."""
        self._base, self._changes = base, changes or {}
        self._size = len(base) + sum(
            -(key in base) if value == _GONE else key not in base for key, value in self._changes.items())

    def changed(self, changes: Mapping[str, str]) -> Entries:
        """With these entries; without those whose value is empty."""
        every = {key: value for key, value in {**self._changes, **changes}.items()
                 if value != self._base.get(key, _GONE)}
        if len(every) <= max(_LEAST, len(self._base) // _SHARE):
            return Entries(self._base, every)
        return Entries({key: value for key, value in {**self._base, **every}.items() if value != _GONE})

    def __getitem__(self, key: str) -> str:
        value = self._changes.get(key)
        if value is None:
            return self._base[key]
        if value == _GONE:
            raise KeyError(key)
        return value

    def __iter__(self) -> Iterator[str]:
        kept = (key for key in self._base if self._changes.get(key, key) != _GONE)
        return chain(kept, (key for key, value in self._changes.items() if value != _GONE and key not in self._base))

    def __len__(self) -> int:
        return self._size

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Entries) and other._base is self._base:
            return self._changes == other._changes
        return isinstance(other, Mapping) and dict(self.items()) == dict(other.items())

    def __repr__(self) -> str:
        return f"Entries({dict(self.items())})"


def moved(old: Mapping[str, str], new: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """(entries that are gone or had another value, entries that are new or have another)."""
    if isinstance(old, Entries) and isinstance(new, Entries) and old._base is new._base:
        keys = old._changes.keys() | new._changes.keys()
        old, new = ({key: found[key] for key in keys if key in found} for found in (old, new))
    gone = {key: value for key, value in old.items() if value != new.get(key)}
    return gone, {key: value for key, value in new.items() if value != old.get(key)}
