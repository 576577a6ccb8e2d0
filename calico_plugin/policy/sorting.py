"""A run of policies behind maps: what a packet carries is looked up, and only policies that may match it are walked.

A packet's cost must not grow with the number of policies (policy 5.4), and their order, Log and counters must keep
their meaning. So the policies stay chains of their own, and a run of them gets maps from the far end's address, the
protocol or the destination port to a chain with those policies that the value concerns, in order (`Chain.sorts`)::

    run chain       single address? -> its class           address in a net? -> its class
                    protocol? -> its class                 destination port? -> its class      else back
    class chain     (may others match by protocol or port? -> those too, in order)
                    policy, policy, ... then back
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import Iterable, Iterator, Mapping, Sequence

from calico_plugin.model.desired import AddressSet, Chain, Field, Match, Rule, SetType, Verdict, VerdictMap
from calico_plugin.model.entries import Entries
from calico_plugin.policy.farends import FarEnds, Moved, SetOf
from calico_plugin.policy.keys import SIDE, Keys
from calico_plugin.policy.ranges import Places, Segments, address_range, port_range, segments
from calico_plugin.policy.rules import FAMILIES, merge_ports

_FEW = 32


@dataclass(frozen=True, slots=True)
class Sorted:
    """The objects of the table that a run consists of, by name."""

    chains: Mapping[str, Chain] = field(default_factory=dict)
    maps: Mapping[str, VerdictMap] = field(default_factory=dict)
    sets: Mapping[str, AddressSet] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Class:
    """Where packets go that concern the same policies, straight to the only one or to the first of `chains`."""

    target: str
    chains: tuple[Chain, ...] = ()


class Run:
    """Policies (by their chains) whose keys are known, in order. `name` begins the names of all that belongs to it."""

    def __init__(self, name: str, direction: str, policies: Sequence[str]) -> None:
        self.name, self._policies = name, tuple(policies)
        self._side = SIDE[direction].upper()
        self._ends = {family: FarEnds(family) for family in FAMILIES}
        self._keys: tuple[Keys, ...] | None = None
        self._ports, self._protocols = Segments(), dict[int, Places]()
        self._sets: dict[str, AddressSet] = {}
        self._guards: tuple[Match, ...] = ()
        self._by_port: frozenset[int] = frozenset()
        self._classes: dict[tuple[Places, bool], _Class] = {}
        self._singles = {family: VerdictMap(f"{name}-a{family}", Entries({}), SetType[f"IPV{family}"])
                         for family in FAMILIES}
        self._nets: dict[int, tuple[Segments, VerdictMap]] = {}
        self._all = self._chain(tuple(range(len(self._policies))))
        self._done = Sorted()

    def update(self, keys: Sequence[Keys], set_of: SetOf) -> Sorted:
        """`keys` of each policy. Sets are looked at only if keys changed: else see `move`."""
        guarded, known = bool(self._guards), tuple(keys)
        if known == self._keys:
            return self._done
        self._keys = known
        self._read_ports()
        moved = {family: ends.update(known, set_of) for family, ends in self._ends.items()}
        if guarded != bool(self._guards):
            moved = {family: {**moved[family], **ends.places} for family, ends in self._ends.items()}
        self._done = self._render(moved)
        return self._done

    def move(self, sets: Mapping[int, Iterable[str]], set_of: SetOf) -> Sorted:
        """Some sets changed: by IP version, their specs' ids."""
        moved = {family: ends.move(sets.get(family, ()), set_of) for family, ends in self._ends.items()}
        self._done = self._render(moved)
        return self._done

    def _read_ports(self) -> None:
        keys = self._keys or ()
        self._ports = segments((first, last, place) for place, one in enumerate(keys) for first, last in one.ports)
        protocols: dict[int, list[int]] = {}
        for place, one in enumerate(keys):
            for number in one.protocols:
                protocols.setdefault(number, []).append(place)
        self._protocols = {number: tuple(places) for number, places in protocols.items()}
        self._sets = {item.name: item for item in self._guarding()}
        self._guards = tuple(Match(_GUARDED[item.type], set_name=item.name) for item in self._sets.values())
        self._by_port = frozenset(place for place, one in enumerate(keys) if one.ports or one.protocols)
        self._classes, self._nets = {}, {}

    def _guarding(self) -> Iterator[AddressSet]:
        """All protocols and ports that concern a policy."""
        ports = merge_ports(list(zip(self._ports.firsts, self._ports.lasts)))
        if self._protocols:
            members = frozenset(map(str, self._protocols))
            yield AddressSet(f"{self.name}-protocol", SetType.PROTOCOL, members)
        if ports:
            yield AddressSet(f"{self.name}-port", SetType.SERVICE, frozenset(ports), interval=True)

    def _render(self, moved: Mapping[int, Moved]) -> Sorted:
        self._classes = {asked: self._classes.get(asked) or self._class(*asked) for asked in self._asked()}
        for family, addresses in moved.items():
            if addresses:
                self._singles[family] = self._moved(self._singles[family], addresses)
        lines = [(verdict, one) for verdict, one in self._maps() if one.elements]
        rules = tuple(Rule(verdict, target=one.name) for verdict, one in lines)
        chains = [Chain(self.name, rules, sorts=self._policies)]
        chains += [chain for one in self._classes.values() for chain in one.chains]
        return Sorted({chain.name: chain for chain in chains}, {one.name: one for _, one in lines}, self._sets)

    def _moved(self, old: VerdictMap, addresses: Moved) -> VerdictMap:
        assert isinstance(old.elements, Entries)
        found = {address: self._found(places) if places else "" for address, places in addresses.items()}
        return VerdictMap(old.name, old.elements.changed(found), old.type)

    def _found(self, places: Places) -> str:
        """Where a packet goes that was found by its address."""
        return self._classes[(places, bool(self._guards))].target

    def _asked(self) -> Iterator[tuple[Places, bool]]:
        """Classes that packets may have; found by address they are behind guards, if there are any."""
        guarded = bool(self._guards)
        for ends in self._ends.values():
            for places in (*ends.classes, *ends.segments.places):
                yield places, guarded
        for places in (*self._protocols.values(), *self._ports.places):
            yield places, False

    def _class(self, places: Places, guarded: bool) -> _Class:
        if not guarded and len(places) == 1:
            return _Class(self._policies[places[0]])
        chain = self._chain(places, "guarded" if guarded else "")
        if not guarded:
            return _Class(chain.name, (chain,))
        # A packet that was found by its address may concern other policies by its port: those that name any, if few.
        few = len(self._by_port) <= _FEW
        wide = self._chain(tuple(sorted({*places, *self._by_port}))) if few else self._all
        guards = (Rule(Verdict.GOTO, (match,), wide.name) for match in self._guards)
        return _Class(chain.name, (replace(chain, rules=(*guards, *chain.rules)), wide))

    def _chain(self, places: Places, kind: str = "") -> Chain:
        policies = tuple(self._policies[place] for place in places)
        digest = hashlib.blake2b("|".join((kind, *policies)).encode(), digest_size=6).hexdigest()
        jumps = (Rule(Verdict.JUMP, target=policy) for policy in policies[:-1])
        rules = (*jumps, Rule(Verdict.GOTO, target=policies[-1]))
        return Chain(f"{self.name}-{digest}", rules, sorts=policies)

    def _maps(self) -> Iterator[tuple[Verdict, VerdictMap]]:
        """In the order in which they are asked. Protocols that are listed have no ports: no packet has both."""
        for family in FAMILIES:
            verdict = Verdict[f"MAP_{self._side}{family}"]
            yield verdict, self._singles[family]
            yield verdict, self._by_net(family)
        yield Verdict.MAP_PROTOCOL, VerdictMap(f"{self.name}-p", {
            str(number): self._classes[(places, False)].target for number, places in self._protocols.items()
        }, SetType.PROTOCOL)
        yield Verdict.MAP_PORT, VerdictMap(f"{self.name}-d", {
            port_range(first, last): self._classes[(places, False)].target for first, last, places in self._ports
        }, SetType.SERVICE, interval=True)

    def _by_net(self, family: int) -> VerdictMap:
        found = self._ends[family].segments
        if self._nets.get(family, (None,))[0] is not found:
            elements = {address_range(family, first, last): self._found(places) for first, last, places in found}
            name, kind = f"{self.name}-n{family}", SetType[f"IPV{family}"]
            self._nets[family] = found, VerdictMap(name, elements, kind, interval=True)
        return self._nets[family][1]


_GUARDED = {SetType.PROTOCOL: Field.PROTOCOL, SetType.SERVICE: Field.DESTINATION_PORT}
