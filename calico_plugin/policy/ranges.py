"""Ranges of numbers that may overlap -> ranges that do not, each with all that cover it."""

from __future__ import annotations

from bisect import bisect
from collections import defaultdict
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Iterable, Iterator

Range = tuple[int, int, int]
"""First, last, place of its owner."""
Places = tuple[int, ...]
Segment = tuple[int, int, Places]


@dataclass(frozen=True, slots=True)
class Segments:
    """In order: `firsts[i]` to `lasts[i]` is covered by exactly `places[i]`. What no range covers is not listed."""

    firsts: tuple[int, ...] = ()
    lasts: tuple[int, ...] = ()
    places: tuple[Places, ...] = ()

    def __iter__(self) -> Iterator[Segment]:
        return zip(self.firsts, self.lasts, self.places)

    def covering(self, value: int) -> Places:
        index = bisect(self.firsts, value) - 1
        return self.places[index] if index >= 0 and value <= self.lasts[index] else ()


def segments(ranges: Iterable[Range]) -> Segments:
    """Neighbours with the same owners are one."""
    starts, ends = defaultdict(list), defaultdict(list)
    for first, last, place in ranges:
        starts[first].append(place)
        ends[last + 1].append(place)
    points = sorted(starts.keys() | ends.keys())
    active: dict[int, int] = defaultdict(int)
    found: list[Segment] = []
    for point, following in zip(points, points[1:]):
        _move(active, starts.get(point, ()), 1)
        _move(active, ends.get(point, ()), -1)
        here = tuple(sorted(active))
        if here and found and found[-1][1] == point - 1 and found[-1][2] == here:
            found[-1] = (found[-1][0], following - 1, here)
        elif here:
            found.append((point, following - 1, here))
    return Segments(*(tuple(column) for column in zip(*found))) if found else Segments()


def differences(old: Segments, new: Segments) -> Segments:
    """Where two differ."""
    before, after = set(old), set(new)
    return segments((first, last, 0) for first, last, _ in before ^ after)


def _move(active: dict[int, int], places: Iterable[int], step: int) -> None:
    for place in places:
        active[place] += step
        if not active[place]:
            del active[place]


def address_range(family: int, first: int, last: int) -> str:
    """As a map's key."""
    kind = IPv4Address if family == 4 else IPv6Address
    return str(kind(first)) if first == last else f"{kind(first)}-{kind(last)}"


def port_range(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"
