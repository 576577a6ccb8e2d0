"""Which pairs of endpoints change their verdict from one world to another.

Endpoints that no rule can tell apart (the same chains, their addresses in the same sets and networks) are one class, so
the work depends on the number of different roles, not on that of containers squared.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from ipaddress import ip_address, ip_network
from typing import Iterable, Iterator

from calico_plugin.cli.policy import flows, judge
from calico_plugin.cli.policy.places import addresses_of
from calico_plugin.cli.policy.world import SIMULATED, World
from calico_plugin.model.desired import DENIES, Chain, Field, Ruleset, Verdict
from calico_plugin.model.keys import ResourceKey
from calico_plugin.policy import explain
from calico_plugin.policy.chains import CONTROL_ORIGIN, FROM_WORKLOAD, TO_WORKLOAD
from calico_plugin.policy.explain import Flow

DEFAULT_PROBES = ("tcp 80", "udp 53", "icmp 8")
_PORTS = (Field.SOURCE_PORT, Field.DESTINATION_PORT)
_ICMP = {Field.ICMP4: 1, Field.ICMP6: 58}


@dataclass(frozen=True, slots=True)
class Probe:
    """A kind of packet that is tried between each pair."""

    protocol: int
    port: int | None = None
    icmp_type: int | None = None

    def flow(self, source: str, destination: str) -> Flow:
        if self.icmp_type is not None:
            return Flow(source, destination, self.protocol, icmp_type=self.icmp_type, icmp_code=0)
        return Flow(source, destination, self.protocol, flows.EPHEMERAL if self.port is not None else None, self.port)

    def fits(self, family: int) -> bool:
        return {1: 4, 58: 6}.get(self.protocol, family) == family

    def __str__(self) -> str:
        return flows.words(self.flow("192.0.2.1", "192.0.2.2"))


@dataclass(frozen=True, slots=True)
class Verdicts:
    """Of one direction of travel: allowed or not, and who decided that it is not (or the last that allowed it)."""

    allowed: bool
    decision: judge.Decision


@dataclass(frozen=True, slots=True)
class Change:
    """All pairs of two classes change alike. An endpoint that is in both classes is no pair with itself."""

    sources: tuple[ResourceKey, ...]
    destinations: tuple[ResourceKey, ...]
    family: int
    probe: Probe
    before: Verdicts
    after: Verdicts

    @property
    def pairs(self) -> int:
        return len(self.sources) * len(self.destinations) - len(set(self.sources) & set(self.destinations))


class Side:
    """One world, compiled as if all endpoints were on one node."""

    def __init__(self, world: World) -> None:
        moved, interfaces = world.on_one_node()
        self.interfaces = {key: interface for interface, key in interfaces.items()}
        self.rules: Ruleset = moved.engine(SIMULATED).compile()
        self._verdicts: dict[tuple[object, ...], Verdicts] = {}

    def chain(self, map_name: str, key: ResourceKey) -> str:
        """The endpoint's list in one direction; empty when it counts as absent."""
        return self.rules.maps[map_name].elements.get(self.interfaces.get(key, ""), "")

    @cached_property
    def _listed(self) -> dict[str, list[str]]:
        """Address -> what else its class depends on: sets that hold it."""
        found: dict[str, list[str]] = defaultdict(list)
        for item in self.rules.sets.values():
            if item.name.startswith(("own-", "sibling-", "known-")):
                continue
            for member in item.members:
                address, dot, rest = member.partition(" . ")
                if "/" not in address:
                    found[address].append(f"{item.name}{dot}{rest}")
        return found

    @cached_property
    def _networks(self) -> list[tuple[str, int, int, int]]:
        """(name, IP version, first, last) of every network that a set or a rule names."""
        found = set()
        for item in self.rules.sets.values():
            found |= {(item.name, member) for member in item.members if "/" in member and " . " not in member}
        for chain in self.rules.chains.values():
            for rule in chain.rules:
                for match in rule.matches:
                    if match.field.name.startswith(("SOURCE", "DESTINATION")) and match.field not in _PORTS:
                        found |= {(value, value) for value in match.values}
        return [(name, *_range(text)) for name, text in found]

    def signature(self, address: str) -> tuple[str, ...]:
        """What rules can know of an address."""
        value, version = int(ip_address(address)), ip_address(address).version
        covering = [
            name for name, family, first, last in self._networks if family == version and first <= value <= last]
        return tuple(sorted({*self._listed.get(address, ()), *covering}))

    def verdict(self, source: str, destination: str, flow: Flow, about: tuple[object, ...]) -> Verdicts:
        """Of chains `source` (leaving) and `destination` (entering). `about`: what tells the packets apart."""
        leaving = self._one(source, "egress", flow, about)
        return leaving if not leaving.allowed else self._one(destination, "ingress", flow, about)

    def _one(self, chain: str, direction: str, flow: Flow, about: tuple[object, ...]) -> Verdicts:
        place = (chain, direction, *about)
        if place not in self._verdicts:
            self._verdicts[place] = self._walked(chain, flow)
        return self._verdicts[place]

    def _walked(self, chain: str, flow: Flow) -> Verdicts:
        if not chain:
            return Verdicts(False, judge.Decision(judge.DENY, rule="the endpoint counts as absent"))
        found = explain.walk(self.rules, chain, flow)
        written = [step for step in found.steps if step.rule.origin]
        allowed = found.verdict not in DENIES
        told = judge.read_origin(written[-1].rule.origin) if written else judge.Decision("")
        verdict = judge.ALLOW if allowed else judge.DENY
        return Verdicts(allowed, judge.Decision(verdict, told.tier, told.kind, told.name, told.rule))


def _range(text: str) -> tuple[int, int, int]:
    net = ip_network(text, strict=False)
    return net.version, int(net.network_address), int(net.broadcast_address)


def probes_of(*sides: Side) -> list[Probe]:
    """Every protocol and port that a rule names (of a range its first), and the default ones."""
    found: dict[Probe, None] = {}
    for text in DEFAULT_PROBES:
        protocol, number = text.split()
        value = int(number)
        if protocol == "icmp":
            found[Probe(1, icmp_type=value)] = found[Probe(58, icmp_type=128)] = None
        else:
            found[Probe(flows.PROTOCOLS[protocol], value)] = None
    for side in sides:
        for chain in side.rules.chains.values():
            if chain.hook is None:
                found.update(dict.fromkeys(_probes_of_chain(chain)))
        for item in side.rules.sets.values():
            if " . protocol" in item.type.value:
                found.update(dict.fromkeys(_named_probe(member) for member in item.members))
    return list(found)


def _named_probe(member: str) -> Probe:
    _, protocol, port = member.split(" . ")
    return Probe(int(protocol), int(port))


def _probes_of_chain(chain: Chain) -> Iterator[Probe]:
    for rule in chain.rules:
        if not rule.origin or rule.origin.startswith(("encapsulation", CONTROL_ORIGIN)):
            continue
        of_field = {match.field: match.values for match in rule.matches if not match.set_name}
        protocols = [int(value) for value in of_field.get(Field.PROTOCOL, ())]
        for field, number in _ICMP.items():
            for value in of_field.get(field, ()):
                yield Probe(number, icmp_type=int(value.split(" . ")[0]))
        ports = [int(value.partition("-")[0]) for value in of_field.get(Field.DESTINATION_PORT, ())]
        for port in ports:
            yield from (Probe(protocol, port) for protocol in (protocols or [6, 17]) if protocol in flows.WITH_PORTS)
        for protocol in protocols if not ports else ():
            if protocol not in (1, 58):
                yield Probe(protocol, 80 if protocol in flows.WITH_PORTS else None)


@dataclass(frozen=True, slots=True)
class Class:
    """Endpoints that no rule can tell apart, before and after. `key` is compared, `members` are all."""

    key: tuple[object, ...]
    members: tuple[ResourceKey, ...]
    address: str
    leaving: tuple[str, str]
    entering: tuple[str, str]
    signature: tuple[object, object]


def classes(world: World, before: Side, after: Side, family: int) -> list[Class]:
    """Endpoints of one IP version by class."""
    groups: dict[tuple[object, ...], list[ResourceKey]] = defaultdict(list)
    addresses = {}
    for key, endpoint in world.endpoints.items():
        address = next((one for one in addresses_of(endpoint) if ip_address(one).version == family), None)
        if address is None:
            continue
        addresses[key] = address
        leaving = before.chain(FROM_WORKLOAD, key), after.chain(FROM_WORKLOAD, key)
        entering = before.chain(TO_WORKLOAD, key), after.chain(TO_WORKLOAD, key)
        signature = before.signature(address), after.signature(address)
        groups[(leaving, entering, signature)].append(key)
    return [
        Class(place, tuple(members), addresses[members[0]], place[0], place[1], place[2])  # type: ignore[arg-type]
        for place, members in groups.items()
    ]


class Sameness:
    """Which chains are the same in both worlds, with all below them. What their sets hold is in classes' signatures."""

    def __init__(self, before: Side, after: Side) -> None:
        self._before, self._after = before.rules.chains, after.rules.chains
        self._known: dict[str, bool] = {}

    def of_pair(self, source: Class, destination: Class) -> bool:
        """Whether nothing between the two can have changed."""
        chains = (source.leaving, destination.entering)
        signatures = (source.signature, destination.signature)
        return all(old == new for old, new in (*chains, *signatures)) and all(self._same(old) for old, _ in chains)

    def _same(self, name: str) -> bool:
        if name not in self._known:
            old, new = self._before.get(name), self._after.get(name)
            self._known[name] = old is not None and new is not None and self._alike(old, new)
        return self._known[name]

    def _alike(self, old: Chain, new: Chain) -> bool:
        """How a chain sorts packets says nothing that the chains behind it do not say."""
        if old.sorts:
            return old.sorts == new.sorts and all(map(self._same, old.sorts))
        return old == new and all(self._same(rule.target) for rule in old.rules if rule.verdict in _JUMPS)


_JUMPS = (Verdict.JUMP, Verdict.GOTO)


def changes(
    groups: Iterable[tuple[Class, Class]], before: Side, after: Side, probes: Iterable[Probe], family: int
) -> Iterator[Change | None]:
    """One item for each (pair of classes, probe) that may change: the change, or None. Others are passed over."""
    sameness = Sameness(before, after)
    for source, destination in groups:
        if sameness.of_pair(source, destination):
            continue
        for probe in probes:
            if not probe.fits(family):
                continue
            flow = probe.flow(source.address, destination.address)
            about = [(probe, source.signature[side], destination.signature[side]) for side in (0, 1)]
            old = before.verdict(source.leaving[0], destination.entering[0], flow, about[0])
            new = after.verdict(source.leaving[1], destination.entering[1], flow, about[1])
            if old.allowed == new.allowed:
                yield None
                continue
            change = Change(source.members, destination.members, family, probe, old, new)
            yield change if change.pairs else None
