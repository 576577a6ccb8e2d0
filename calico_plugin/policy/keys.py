"""What a packet must carry for a policy's rules to match it at all: the far end's address, a port, or a protocol.

Only a necessary condition of each rule is taken, the one by which packets are told apart best; the rule itself still
tests all of its criteria. A rule without any such condition may match every packet, and then the policy may.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterable, Iterator, Sequence

from calico_plugin.model.desired import Field, Match
from calico_plugin.policy.rules import WITH_PORTS, Network, Parsed, SetSpec, SetUse, read_ports

SIDE = {"ingress": "source", "egress": "destination"}
"""Which end is the far one."""

Ports = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Condition:
    """Of one rule: its far end is in one of `nets`, or else a member of one of `sets`; its destination port in one of
    `ports`; its protocol, if it is one without ports. What is empty (0) is no condition.
    """

    nets: tuple[Network, ...] = ()
    sets: tuple[SetSpec, ...] = ()
    families: tuple[int, ...] = ()
    ports: Ports = ()
    protocol: int = 0

    @property
    def by_address(self) -> bool:
        return bool(self.nets or self.sets)


@dataclass(frozen=True, slots=True)
class Keys:
    """Of a policy: a packet that it may match has one of these."""

    nets: tuple[Network, ...] = ()
    sets: tuple[tuple[SetSpec, int], ...] = ()
    ports: Ports = ()
    protocols: tuple[int, ...] = ()


def conditions(rules: Iterable[Parsed], direction: str) -> tuple[Condition, ...]:
    """Of each rule that can match anything."""
    return tuple(_condition(rule, SIDE[direction]) for rule in rules if rule.families)


def _condition(rule: Parsed, side: str) -> Condition:
    nets = rule.wanted_nets(side)
    if any(net.prefixlen == 0 for net in nets):
        nets = ()
    sets = () if nets else _sets(rule, side)
    protocol = next((int(match.values[0]) for match in rule.plain
                     if match.field is Field.PROTOCOL and not match.negated), 0)
    return Condition(nets, sets, rule.families, _ports(rule), 0 if protocol in WITH_PORTS else protocol)


def _sets(rule: Parsed, side: str) -> tuple[SetSpec, ...]:
    """One that holds for every alternative, else one of each. The sets of named ports hold addresses, too."""
    for use in rule.uses:
        if use.side == side and not use.negated:
            return (use.spec,)
    found = [_use_of(parts, side) for parts in rule.alternatives]
    return tuple(use.spec for use in found if use) if all(found) else ()


def _use_of(parts: Iterable[Match | SetUse], side: str) -> SetUse | None:
    return next((part for part in parts if isinstance(part, SetUse) and part.side == side and not part.negated), None)


def _ports(rule: Parsed) -> Ports:
    found: list[tuple[int, int]] = []
    for parts in rule.alternatives:
        values = [part.values for part in parts
                  if isinstance(part, Match) and part.field is Field.DESTINATION_PORT and not part.negated]
        if not values:
            return ()
        found.extend(map(read_ports, values[0]))
    return tuple(found)


def keys(found: Sequence[Condition], by_port: bool) -> Keys | None:
    """None: the policy may match any packet. `by_port`: of a policy whose rules all have addresses and ports, ports."""
    ports, addresses = all(one.ports for one in found), all(one.by_address for one in found)
    if ports and (by_port or not addresses):
        return Keys(ports=tuple(dict.fromkeys(pair for one in found for pair in one.ports)))
    if not all(one.by_address or one.ports or one.protocol for one in found):
        return None
    located = [one for one in found if one.by_address]
    others = [one for one in found if not one.by_address]
    return Keys(
        tuple(dict.fromkeys(net for one in located for net in one.nets)),
        tuple(dict.fromkeys(_by_family(located))),
        tuple(dict.fromkeys(pair for one in others for pair in one.ports)),
        tuple(dict.fromkeys(one.protocol for one in others if not one.ports)),
    )


def _by_family(located: Iterable[Condition]) -> Iterator[tuple[SetSpec, int]]:
    for one in located:
        for spec in one.sets:
            for family in one.families:
                yield spec, family


def ports_tell_more(policies: Iterable[Sequence[Condition]]) -> bool:
    """Of those that could be told apart both ways: whether they name more different ports than far ends."""
    both = [one for found in policies for one in found if all(other.ports and other.by_address for other in found)]
    return len({one.ports for one in both}) > len({(one.nets, one.sets) for one in both})
