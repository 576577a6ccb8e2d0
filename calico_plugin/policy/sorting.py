"""A run of policies behind maps: what a packet carries is looked up, and only policies that may match it are walked.

A packet's cost must not grow with the number of policies (policy 5.4), and their order, Log and counters must keep
their meaning. So the policies stay chains of their own, and a run of them gets maps from the far end's address, the
protocol or the destination port to a chain with those policies that the value concerns, in order (`Chain.sorts`)::

    run chain       address of a member? -> its class      address in a net? -> its class
                    protocol? -> its class                 destination port? -> its class      else back
    class chain     (may others match by protocol or port? -> all policies of the run)
                    policy, policy, ... then back

Members of selectors are single addresses, and each is listed with all that concerns it, nets too: so that an endpoint
that comes or goes is one element. Nets, those of network sets too, are cut into ranges that do not overlap.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import AbstractSet, Callable, Iterable, Iterator, Mapping, Sequence

from calico_plugin.model.desired import AddressSet, Chain, Field, Match, Rule, SetType, Verdict, VerdictMap
from calico_plugin.policy.keys import SIDE, Keys
from calico_plugin.policy.members import read_network
from calico_plugin.policy.ranges import Places, Range, Segments, address_range, port_range, segments
from calico_plugin.policy.rules import FAMILIES, SetSpec, merge_ports

SetOf = Callable[[SetSpec, int], AddressSet]
NO_SET = AddressSet("", SetType.IPV4)
"""Stands for one that would have no member."""
_NOBODY: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Sorted:
    """The objects of the table that a run consists of, by name."""

    chains: Mapping[str, Chain] = field(default_factory=dict)
    maps: Mapping[str, VerdictMap] = field(default_factory=dict)
    sets: Mapping[str, AddressSet] = field(default_factory=dict)


def singles(item: AddressSet) -> AbstractSet[str]:
    """Single addresses of a set; of `address . protocol . port` the address."""
    if item.type in (SetType.IPV4_PORT, SetType.IPV6_PORT):
        return frozenset(member.partition(" . ")[0] for member in item.members)
    return frozenset(member for member in item.members if "/" not in member) if item.interval else item.members


def prefixes(item: AddressSet) -> list[tuple[int, int]]:
    """First and last address of each network of a set."""
    nets = (read_network(member) for member in item.members if "/" in member) if item.interval else ()
    return [(int(net.network_address), int(net.broadcast_address)) for net in nets]


class _Addresses:
    """Far ends of one IP version: place of each policy that an address concerns. Work follows the change."""

    def __init__(self, family: int) -> None:
        self._kind = IPv4Address if family == 4 else IPv6Address
        self._sets: dict[str, AddressSet] = {}
        self._members: dict[str, AbstractSet[str]] = {}
        self._places: dict[str, Places] = {}
        self._held: dict[str, frozenset[str]] = {}
        self._ranges: frozenset[Range] = frozenset()
        self.segments = Segments()
        self.places: dict[str, Places] = {}

    def update(self, places: Mapping[str, Places], sets: Mapping[str, AddressSet], ranges: Iterable[Range]) -> None:
        """`places`: of each set (by spec id) the policies that name it; `ranges`: of the policies' own nets."""
        stale: set[str] = set()
        for spec in self._places.keys() | places.keys():
            stale |= self._moved(spec, places.get(spec, ()), sets.get(spec))
        wanted = frozenset((*ranges, *self._of_sets(places)))
        if wanted != self._ranges:
            before, self.segments, self._ranges = self.segments, segments(wanted), wanted
            stale |= {address for address in self._held if before.covering(self._number(address))
                      != self.segments.covering(self._number(address))}
        known: dict[tuple[frozenset[str], Places], Places] = {}
        for address in stale:
            self._judge(address, known)

    def _moved(self, spec: str, places: Places, item: AddressSet | None) -> set[str]:
        """Addresses whose place may be another, because of one set."""
        old, before = self._members.get(spec, _NOBODY), self._places.get(spec, ())
        same = item is self._sets.get(spec)
        new = old if same else singles(item) if item is not None else _NOBODY
        came, went = (_NOBODY, _NOBODY) if same else (new - old, old - new)
        self._hold(came, lambda held: held | {spec})
        self._hold(went, lambda held: held - {spec})
        if item is not None:
            self._sets[spec], self._members[spec], self._places[spec] = item, new, places
        else:
            del self._sets[spec], self._members[spec], self._places[spec]
        return {*came, *went} if before == places else {*old, *new}

    def _hold(self, addresses: Iterable[str], change: Callable[[frozenset[str]], frozenset[str]]) -> None:
        """Addresses in the same sets share one value."""
        known: dict[frozenset[str], frozenset[str]] = {}
        for address in addresses:
            held = self._held.get(address, _NOBODY)
            if held not in known:
                known[held] = change(held)
            self._held[address] = known[held]

    def _of_sets(self, places: Mapping[str, Places]) -> Iterator[Range]:
        for spec, listed in places.items():
            for first, last in prefixes(self._sets[spec]):
                for place in listed:
                    yield first, last, place

    def _judge(self, address: str, known: dict[tuple[frozenset[str], Places], Places]) -> None:
        held = self._held[address]
        if not held:
            del self._held[address]
            self.places.pop(address, None)
            return
        asked = held, self.segments.covering(self._number(address)) if self.segments.firsts else ()
        if asked not in known:
            named = {place for spec in held for place in self._places[spec]}
            known[asked] = tuple(sorted(named | set(asked[1])))
        self.places[address] = known[asked]

    def _number(self, address: str) -> int:
        return int(self._kind(address))


class Run:
    """Policies whose keys are known, in order, and their chains. `name` begins the names of all that belongs to it."""

    def __init__(self, name: str, direction: str, policies: Sequence[str]) -> None:
        self.name, self._policies = name, tuple(policies)
        self._side = SIDE[direction].upper()
        self._addresses = {family: _Addresses(family) for family in FAMILIES}

    def update(self, keys: Sequence[Keys], set_of: SetOf) -> Sorted:
        """`keys` of each policy; sets as they are now."""
        for family, addresses in self._addresses.items():
            places = _places_of_sets(keys, family)
            sets = {spec.id: set_of(spec, family) for spec in places}
            ranges = ((int(net.network_address), int(net.broadcast_address), place)
                      for place, one in enumerate(keys) for net in one.nets if net.version == family)
            addresses.update({spec.id: listed for spec, listed in places.items()}, sets, ranges)
        return _Writing(self, keys).done()

    def far_ends(self, family: int) -> _Addresses:
        return self._addresses[family]

    @property
    def policies(self) -> tuple[str, ...]:
        return self._policies

    def look_up(self, family: int) -> Verdict:
        return Verdict[f"MAP_{self._side}{family}"]


def _places_of_sets(keys: Sequence[Keys], family: int) -> dict[SetSpec, Places]:
    found: dict[SetSpec, list[int]] = {}
    for place, one in enumerate(keys):
        for spec, of in one.sets:
            if of == family:
                found.setdefault(spec, []).append(place)
    return {spec: tuple(listed) for spec, listed in found.items()}


def _places_of_protocols(keys: Sequence[Keys]) -> dict[int, Places]:
    found: dict[int, list[int]] = {}
    for place, one in enumerate(keys):
        for number in one.protocols:
            found.setdefault(number, []).append(place)
    return {number: tuple(places) for number, places in found.items()}


class _Writing:
    """One rendering of a run."""

    def __init__(self, run: Run, keys: Sequence[Keys]) -> None:
        self._run = run
        self._ports = segments((first, last, place) for place, one in enumerate(keys) for first, last in one.ports)
        self._protocols = _places_of_protocols(keys)
        self._targets: dict[tuple[Places, bool], str] = {}
        self._chains: dict[str, Chain] = {}
        self._maps: dict[str, VerdictMap] = {}
        self._sets: dict[str, AddressSet] = {}
        self._guards = tuple(self._write_guards())

    def done(self) -> Sorted:
        lines = (*self._by_address(), *self._by_protocol(), *self._by_port())
        self._put(Chain(self._run.name, lines, sorts=self._run.policies))
        return Sorted(self._chains, self._maps, self._sets)

    def _put(self, chain: Chain) -> str:
        self._chains[chain.name] = chain
        return chain.name

    def _write_guards(self) -> Iterator[Rule]:
        """A packet that is found by its address may concern other policies by port: rare, so they are all walked."""
        ports = merge_ports(list(zip(self._ports.firsts, self._ports.lasts)))
        protocols = [str(number) for number in self._protocols]
        for kind, what, members in (
            (SetType.PROTOCOL, Field.PROTOCOL, protocols), (SetType.SERVICE, Field.DESTINATION_PORT, ports),
        ):
            if members:
                name = f"{self._run.name}-{kind.value}"
                self._sets[name] = AddressSet(name, kind, frozenset(members), kind is SetType.SERVICE)
                yield Rule(Verdict.GOTO, (Match(what, set_name=name),), f"{self._run.name}-all")

    def _by_address(self) -> Iterator[Rule]:
        for family in FAMILIES:
            ends = self._run.far_ends(family)
            kind = SetType[f"IPV{family}"]
            listed = {places: self._target(places, guarded=True) for places in set(ends.places.values())}
            yield from self._map(f"{self._run.name}-a{family}", kind, False, self._run.look_up(family), {
                address: listed[places] for address, places in ends.places.items()})
            yield from self._map(f"{self._run.name}-n{family}", kind, True, self._run.look_up(family), {
                address_range(family, first, last): self._target(places, guarded=True)
                for first, last, places in zip(ends.segments.firsts, ends.segments.lasts, ends.segments.places)})
        if self._guards and any(ends.places or ends.segments.firsts for ends in map(self._run.far_ends, FAMILIES)):
            name = f"{self._run.name}-all"
            self._put(Chain(name, _walk(self._run.policies), sorts=self._run.policies))

    def _by_protocol(self) -> Iterator[Rule]:
        """Those without ports, so that no port can concern the packet besides."""
        found = {str(number): self._target(places) for number, places in self._protocols.items()}
        yield from self._map(f"{self._run.name}-p", SetType.PROTOCOL, False, Verdict.MAP_PROTOCOL, found)

    def _by_port(self) -> Iterator[Rule]:
        found = {port_range(first, last): self._target(places) for first, last, places in
                 zip(self._ports.firsts, self._ports.lasts, self._ports.places)}
        yield from self._map(f"{self._run.name}-d", SetType.SERVICE, True, Verdict.MAP_PORT, found)

    def _map(
        self, name: str, kind: SetType, interval: bool, verdict: Verdict, elements: Mapping[str, str]
    ) -> Iterator[Rule]:
        if elements:
            self._maps[name] = VerdictMap(name, elements, kind, interval)
            yield Rule(verdict, target=name)

    def _target(self, places: Places, guarded: bool = False) -> str:
        """The chain for packets that concern these policies of the run."""
        guards = self._guards if guarded else ()
        asked = places, bool(guards)
        if asked not in self._targets:
            policies = tuple(self._run.policies[place] for place in places)
            if len(policies) == 1 and not guards:
                self._targets[asked] = policies[0]
            else:
                digest = hashlib.blake2b("|".join((*policies, str(bool(guards)))).encode(), digest_size=6).hexdigest()
                chain = Chain(f"{self._run.name}-{digest}", (*guards, *_walk(policies)), sorts=policies)
                self._targets[asked] = self._put(chain)
        return self._targets[asked]


def _walk(policies: Sequence[str]) -> tuple[Rule, ...]:
    jumps = (Rule(Verdict.JUMP, target=policy) for policy in policies[:-1])
    return (*jumps, Rule(Verdict.GOTO, target=policies[-1]))
