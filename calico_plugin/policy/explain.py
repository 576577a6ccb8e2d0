"""One packet through a compiled ruleset: the very rules that the kernel gets, walked in Python, each step recorded.

`walk` evaluates one chain; `egress` and `ingress` judge a packet at the two ends of a connection.
"""

from __future__ import annotations

from bisect import bisect
from collections import OrderedDict
from dataclasses import dataclass, replace
from functools import lru_cache
from ipaddress import ip_address
from typing import Callable, Iterator

from calico_plugin.model.desired import LOOKED_UP, AddressSet, Field, Match, Rule, Ruleset, SetType, Verdict, VerdictMap
from calico_plugin.policy.chains import FROM_WORKLOAD, TO_WORKLOAD
from calico_plugin.policy.members import read_network

MAX_DEPTH = 16
"""nftables' own limit of nested jumps."""


@dataclass(frozen=True, slots=True)
class Flow:
    """A packet. `state` is what connection tracking says of it, `translated` whether it has given it its destination;
    ports and ICMP fields are None where it has none.
    """

    source: str
    destination: str
    protocol: int
    source_port: int | None = None
    destination_port: int | None = None
    icmp_type: int | None = None
    icmp_code: int | None = None
    in_interface: str = ""
    out_interface: str = ""
    state: str = "new"
    spared: bool = False
    to_host: bool = False
    translated: bool = False

    @property
    def family(self) -> int:
        return ip_address(self.source).version


@dataclass(frozen=True, slots=True)
class Step:
    """A rule that matched: where it stands and what it did."""

    chain: str
    index: int
    rule: Rule


@dataclass(frozen=True, slots=True)
class Walk:
    """`verdict` is ACCEPT or DROP, or RETURN when the chain ended without one."""

    verdict: Verdict
    steps: tuple[Step, ...]

    @property
    def decided_by(self) -> tuple[str, ...]:
        """What people wrote that had a part in it: `action|tier|kind|name|rule N`, the last one final."""
        return tuple(
            f"{_ACTIONS[step.rule.verdict]}|{step.rule.origin}"
            for step in self.steps
            if step.rule.origin and step.rule.verdict in _ACTIONS
        )


_ACTIONS = {
    Verdict.ACCEPT: "allow", Verdict.UNTRACK: "allow", Verdict.SPARE: "allow", Verdict.DROP: "deny",
    Verdict.REJECT: "deny", Verdict.RETURN: "pass",
}


def walk(ruleset: Ruleset, chain: str, flow: Flow) -> Walk:
    """Evaluate one chain as nftables does."""
    steps: list[Step] = []
    return Walk(_walk(ruleset, chain, flow, steps, 0), tuple(steps))


def egress(ruleset: Ruleset, interface: str, flow: Flow) -> Walk | None:
    """What the endpoint behind an interface may send, or None when the interface has no endpoint here."""
    chain = ruleset.maps[FROM_WORKLOAD].elements.get(interface)
    return walk(ruleset, chain, replace(flow, in_interface=interface)) if chain else None


def ingress(ruleset: Ruleset, interface: str, flow: Flow) -> Walk | None:
    """What the endpoint behind an interface may receive."""
    chain = ruleset.maps[TO_WORKLOAD].elements.get(interface)
    return walk(ruleset, chain, replace(flow, out_interface=interface)) if chain else None


def to_host(ruleset: Ruleset, interface: str, flow: Flow) -> Walk | None:
    """What a host endpoint lets in to the host's own processes, or None when none governs the interface."""
    return _at_host(ruleset, "host-in", interface, replace(flow, in_interface=interface))


def from_host(ruleset: Ruleset, interface: str, flow: Flow) -> Walk | None:
    """What a host endpoint lets the host's own processes send."""
    return _at_host(ruleset, "host-out", interface, replace(flow, out_interface=interface))


def _at_host(ruleset: Ruleset, hook: str, interface: str, flow: Flow) -> Walk | None:
    if hook not in ruleset.maps:
        return None
    return walk(ruleset, ruleset.maps[hook].elements.get(interface, hook), flow)


def _walk(ruleset: Ruleset, name: str, flow: Flow, steps: list[Step], depth: int) -> Verdict:
    if depth > MAX_DEPTH:
        raise RecursionError(f"chain {name}: more than {MAX_DEPTH} jumps")
    for index, rule in enumerate(ruleset.chains[name].rules):
        if not all(_holds(match, ruleset, flow) for match in rule.matches):
            continue
        verdict, target = _effect(rule, ruleset, flow)
        if verdict is Verdict.CONTINUE and not rule.origin:
            continue
        steps.append(Step(name, index, rule))
        if verdict in (Verdict.JUMP, Verdict.GOTO):
            result = _walk(ruleset, target, flow, steps, depth + 1)
            if result is not Verdict.RETURN or verdict is Verdict.GOTO:
                return result
        elif verdict is not Verdict.CONTINUE:
            return verdict
    return Verdict.RETURN


def _effect(rule: Rule, ruleset: Ruleset, flow: Flow) -> tuple[Verdict, str]:
    """The verdict for this flow, with lookups done."""
    if rule.verdict in LOOKED_UP:
        value = _READ[LOOKED_UP[rule.verdict]](flow)
        target = found_in(ruleset.maps[rule.target], value) if value is not None else None
        return (Verdict.GOTO, target) if target else (Verdict.CONTINUE, "")
    return rule.verdict, rule.target


def found_in(looked_at: VerdictMap, value: str) -> str | None:
    """The chain that takes over."""
    if not looked_at.interval:
        return looked_at.elements.get(value)
    starts, ranges = _ranges(looked_at)
    number = _as_number(value)
    index = bisect(starts, number) - 1
    return ranges[index][1] if index >= 0 and number <= ranges[index][0] else None


_Ranges = tuple[list[int], list[tuple[int, str]]]
_sorted: OrderedDict[int, tuple[VerdictMap, _Ranges]] = OrderedDict()
_SORTED = 64


def _ranges(looked_at: VerdictMap) -> _Ranges:
    """First keys in order, and of each the last key and the chain. Remembered for the maps that were asked last."""
    known = _sorted.get(id(looked_at))
    if known is None or known[0] is not looked_at:
        parts = ((*text.partition("-"), chain) for text, chain in looked_at.elements.items())
        ordered = sorted((_as_number(first), _as_number(last or first), chain) for first, _, last, chain in parts)
        known = looked_at, ([first for first, _, _ in ordered], [(last, chain) for _, last, chain in ordered])
        _sorted[id(looked_at)] = known
        while len(_sorted) > _SORTED:
            _sorted.popitem(last=False)
    return known[1]


def _as_number(text: str) -> int:
    return int(text) if text.isdigit() else int(ip_address(text))


def _holds(match: Match, ruleset: Ruleset, flow: Flow) -> bool:
    """A criterion on something that the packet does not have never holds, negated or not."""
    if match.field is Field.SPARED:
        return flow.spared != match.negated
    if match.field is Field.LOCAL:
        return flow.to_host != match.negated
    value = _READ[match.field](flow)
    if value is None:
        return False
    if match.set_name:
        return contains(ruleset.sets[match.set_name], value) != match.negated
    return any(_listed(match.field, listed, value) for listed in match.values) != match.negated


def contains(addresses: AddressSet, value: str) -> bool:
    """Membership, by covering prefix in an interval set."""
    if value in addresses.members:
        return True
    if addresses.type is SetType.SERVICE:
        return any(_listed(Field.DESTINATION_PORT, listed, value) for listed in addresses.members)
    return addresses.interval and any(prefix in addresses.members for prefix in _prefixes(value))


@lru_cache(maxsize=1024)
def _prefixes(address: str) -> tuple[str, ...]:
    """Every network that holds an address, as a set's member names it: so looks do not depend on the set's size."""
    single = ip_address(address)
    whole, number = single.max_prefixlen, int(single)
    lowest = (whole - length for length in range(1, whole))
    return tuple(f"{type(single)(number >> bits << bits)}/{whole - bits}" for bits in lowest)


def _covers(cidr: str, address: str) -> bool:
    net, single = read_network(cidr), read_network(address)
    if net.version != single.version:
        return False
    return int(net.network_address) <= int(single.network_address) <= int(net.broadcast_address)


def _listed(field: Field, listed: str, value: str) -> bool:
    if field in _ADDRESSES:
        return _covers(listed, value)
    if field in (Field.SOURCE_PORT, Field.DESTINATION_PORT):
        lowest, _, highest = listed.partition("-")
        return int(lowest) <= int(value) <= int(highest or lowest)
    if field in (Field.ICMP4, Field.ICMP6):
        return value == listed or value.startswith(f"{listed} . ")
    if field in (Field.IN_INTERFACE, Field.OUT_INTERFACE) and listed.endswith("*"):
        return value.startswith(listed[:-1])
    return listed == value


_ADDRESSES = frozenset((Field.SOURCE4, Field.SOURCE6, Field.DESTINATION4, Field.DESTINATION6))


def _of_family(family: int, read: Callable[[Flow], str | None]) -> Callable[[Flow], str | None]:
    return lambda flow: read(flow) if flow.family == family else None


def _named(address: Callable[[Flow], str], port: Callable[[Flow], int | None]) -> Callable[[Flow], str]:
    """The kernel reads whatever stands where ports would: no port never equals a named one."""
    return lambda flow: f"{address(flow)} . {flow.protocol} . {port(flow)}"


def _text(port: int | None) -> str | None:
    return None if port is None else str(port)


def _icmp(protocol: int) -> Callable[[Flow], str | None]:
    return lambda flow: f"{flow.icmp_type} . {flow.icmp_code or 0}" if flow.protocol == protocol and (
        flow.icmp_type is not None) else None


def _readers() -> Iterator[tuple[Field, Callable[[Flow], str | None]]]:
    yield Field.FAMILY, lambda flow: str(flow.family)
    yield Field.PROTOCOL, lambda flow: str(flow.protocol)
    yield Field.SOURCE_PORT, lambda flow: _text(flow.source_port)
    yield Field.DESTINATION_PORT, lambda flow: _text(flow.destination_port)
    yield Field.ICMP4, _icmp(1)
    yield Field.ICMP6, _icmp(58)
    yield Field.IN_INTERFACE, lambda flow: flow.in_interface
    yield Field.OUT_INTERFACE, lambda flow: flow.out_interface
    yield Field.CONNECTION_STATE, lambda flow: flow.state
    yield Field.CONNECTION_STATUS, lambda flow: "dnat" if flow.translated else None
    for family in (4, 6):
        yield Field[f"SOURCE{family}"], _of_family(family, lambda flow: flow.source)
        yield Field[f"DESTINATION{family}"], _of_family(family, lambda flow: flow.destination)
        source = _named(lambda flow: flow.source, lambda flow: flow.source_port)
        destination = _named(lambda flow: flow.destination, lambda flow: flow.destination_port)
        yield Field[f"SOURCE_NAMED{family}"], _of_family(family, source)
        yield Field[f"DESTINATION_NAMED{family}"], _of_family(family, destination)
        own = _of_family(family, lambda flow: f"{flow.in_interface} . {flow.source}")
        yield Field[f"IN_INTERFACE_SOURCE{family}"], own


_READ = dict(_readers())
