"""Addresses of one IP version that a run of policies names, and which of the policies each concerns.

Members of sets are single addresses, and each is listed with all that concerns it, nets too: so that an endpoint that
comes or goes is one entry. Nets, those of network sets too, are cut into ranges that do not overlap. What is done at a
change follows the change: an address is judged again only when a set that holds it, or a net around it, changed.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from ipaddress import ip_address
from typing import AbstractSet, Callable, Iterable, Iterator, Sequence

from calico_plugin.model.desired import AddressSet, SetType
from calico_plugin.policy.keys import Keys
from calico_plugin.policy.members import read_network
from calico_plugin.policy.ranges import Places, Range, Segments, differences, segments
from calico_plugin.policy.rules import SetSpec

SetOf = Callable[[SetSpec, int], AddressSet]
Moved = dict[str, Places]
"""Address -> the policies that it concerns now; none: it is not listed any more."""
NO_SET = AddressSet("", SetType.IPV4)
"""Stands for one that would have no member."""
_NOBODY: frozenset[str] = frozenset()


def singles(item: AddressSet) -> AbstractSet[str]:
    """Single addresses of a set; of `address . protocol . port` the address."""
    if item.type in (SetType.IPV4_PORT, SetType.IPV6_PORT):
        return frozenset(member.partition(" . ")[0] for member in item.members)
    return frozenset(member for member in item.members if "/" not in member) if item.interval else item.members


def prefixes(item: AddressSet) -> list[tuple[int, int]]:
    """First and last address of each network of a set."""
    nets = (read_network(member) for member in item.members if "/" in member) if item.interval else ()
    return [(int(net.network_address), int(net.broadcast_address)) for net in nets]


@lru_cache(maxsize=1 << 16)
def number(address: str) -> int:
    return int(ip_address(address))


class FarEnds:
    """`places`: of each single address, `classes`: how many addresses have the same, `segments`: of all others."""

    def __init__(self, family: int) -> None:
        self._family = family
        self._specs: dict[str, SetSpec] = {}
        self._sets: dict[str, AddressSet] = {}
        self._members: dict[str, AbstractSet[str]] = {}
        self._named: dict[str, Places] = {}
        self._held: dict[str, frozenset[str]] = {}
        self._nets: tuple[Range, ...] = ()
        self._ranges: frozenset[Range] = frozenset()
        self.places: dict[str, Places] = {}
        self.classes: Counter[Places] = Counter()
        self.segments = Segments()

    def update(self, keys: Sequence[Keys], set_of: SetOf) -> Moved:
        """The policies' keys, in order, and their sets as they are now."""
        named = _places_of_sets(keys, self._family)
        self._specs = {spec.id: spec for spec in named}
        places = {spec.id: listed for spec, listed in named.items()}
        stale: set[str] = set()
        for spec in self._named.keys() - places.keys():
            stale |= self._take(spec, (), None)
        for spec, listed in places.items():
            stale |= self._take(spec, listed, set_of(self._specs[spec], self._family))
        self._nets = tuple(
            (int(net.network_address), int(net.broadcast_address), place)
            for place, one in enumerate(keys) for net in one.nets if net.version == self._family)
        return self._judge(stale | self._cut())

    def move(self, moved: Iterable[str], set_of: SetOf) -> Moved:
        """Some sets changed (by id of their spec)."""
        stale: set[str] = set()
        recut = False
        for spec in moved:
            if spec in self._named:
                before, now = self._sets[spec], set_of(self._specs[spec], self._family)
                stale |= self._take(spec, self._named[spec], now)
                recut = recut or before.interval or now.interval
        return self._judge(stale | self._cut() if recut else stale)

    def _take(self, spec: str, places: Places, item: AddressSet | None) -> set[str]:
        """Addresses whose place may be another, because of one set."""
        old, before = self._members.get(spec, _NOBODY), self._named.get(spec, ())
        same = item is self._sets.get(spec)
        new = old if same else singles(item) if item is not None else _NOBODY
        came, went = (_NOBODY, _NOBODY) if same else (new - old, old - new)
        self._hold(came, lambda held: held | {spec})
        self._hold(went, lambda held: held - {spec})
        if item is not None:
            self._sets[spec], self._members[spec], self._named[spec] = item, new, places
        else:
            del self._sets[spec], self._members[spec], self._named[spec]
        return {*came, *went} if before == places else {*old, *new}

    def _hold(self, addresses: Iterable[str], change: Callable[[frozenset[str]], frozenset[str]]) -> None:
        """Addresses in the same sets share one value."""
        known: dict[frozenset[str], frozenset[str]] = {}
        for address in addresses:
            held = self._held.get(address, _NOBODY)
            if held not in known:
                known[held] = change(held)
            self._held[address] = known[held]

    def _cut(self) -> set[str]:
        """Addresses around which there are other nets now."""
        ranges = frozenset((*self._nets, *self._of_sets()))
        if ranges == self._ranges:
            return set()
        before, self.segments, self._ranges = self.segments, segments(ranges), ranges
        changed = differences(before, self.segments)
        return {address for address in self._held if changed.covering(number(address))}

    def _of_sets(self) -> Iterator[Range]:
        for spec, listed in self._named.items():
            for first, last in prefixes(self._sets[spec]):
                for place in listed:
                    yield first, last, place

    def _judge(self, stale: Iterable[str]) -> Moved:
        known: dict[tuple[frozenset[str], Places], Places] = {}
        moved = {address: self._places_of(address, known) for address in stale}
        for address, places in moved.items():
            self._list(address, places)
        return moved

    def _places_of(self, address: str, known: dict[tuple[frozenset[str], Places], Places]) -> Places:
        held = self._held[address]
        if not held:
            return ()
        asked = held, self.segments.covering(number(address)) if self.segments.firsts else ()
        if asked not in known:
            named = {place for spec in held for place in self._named[spec]}
            known[asked] = tuple(sorted(named | set(asked[1])))
        return known[asked]

    def _list(self, address: str, places: Places) -> None:
        before = self.places.pop(address, None)
        if before is not None:
            self.classes[before] -= 1
            if not self.classes[before]:
                del self.classes[before]
        if places:
            self.places[address] = places
            self.classes[places] += 1
        else:
            del self._held[address]


def _places_of_sets(keys: Sequence[Keys], family: int) -> dict[SetSpec, Places]:
    found: dict[SetSpec, list[int]] = {}
    for place, one in enumerate(keys):
        for spec, of in one.sets:
            if of == family:
                found.setdefault(spec, []).append(place)
    return {spec: tuple(listed) for spec, listed in found.items()}
