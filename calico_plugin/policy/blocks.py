"""Runs of policies behind a guard: a new connection that none of them can match passes the whole run in one test.

A tier with many policies is cut into blocks (policy 5.4: a packet's cost must not grow with the number of policies).
A block's chain starts with guards: conditions that every rule of the block needs in common, such as the union of all
their source addresses. A guard only skips what cannot match, so order, Log and counters keep their meaning. Where a cut
falls is decided by the policy's own name, so that a new policy changes one block and moves no other.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Callable, Iterable, Iterator

from calico_plugin.model.desired import Field, Match
from calico_plugin.model.desired import Rule as Line
from calico_plugin.model.desired import Verdict
from calico_plugin.model.keys import ResourceKey
from calico_plugin.policy import selector
from calico_plugin.policy.rules import (
    FAMILIES,
    Block,
    Network,
    Parsed,
    SetSpec,
    SetUse,
    disjoint,
    member,
    merge_ports,
    read_ports,
)

NameOf = Callable[[SetSpec, int], str]
_SIDES = ("source", "destination")


def cut(policies: tuple[ResourceKey, ...], size: int) -> list[Block]:
    """The policies in runs of about `size`. A tier with fewer is not cut and has blocks of one."""
    if len(policies) < size:
        return [Block((key,)) for key in policies]
    runs: list[list[ResourceKey]] = []
    for key in policies:
        if not runs or _starts(key, size):
            runs.append([])
        runs[-1].append(key)
    return [Block(tuple(run)) for run in runs]


def _starts(key: ResourceKey, size: int) -> bool:
    digest = hashlib.blake2b(str(key).encode("utf-8", "surrogatepass"), digest_size=4).digest()
    return int.from_bytes(digest, "big") % size == 0


@dataclass(frozen=True, slots=True)
class Side:
    """Addresses that one end of a matching packet must be among: some net, or a member of some selector."""

    nets: tuple[Network, ...] = ()
    selectors: tuple[selector.Node, ...] = ()

    def spec(self) -> SetSpec | None:
        """One set for all selectors."""
        if not self.selectors:
            return None
        distinct = {node.id: node for node in self.selectors}
        ordered = tuple(distinct[key] for key in sorted(distinct))
        return SetSpec.addresses(ordered[0] if len(ordered) == 1 else selector.Or(ordered))


@dataclass(frozen=True, slots=True)
class Guard:
    """Conditions that all rules of a block have in common; None where one rule has no such condition."""

    families: tuple[int, ...]
    ports: tuple[tuple[Field, tuple[str, ...]], ...]
    sides: tuple[tuple[str, Side], ...]

    def specs(self) -> Iterator[SetSpec]:
        for _, side in self.sides:
            spec = side.spec()
            if spec is not None:
                yield spec

    def lines(self, name_of: NameOf) -> Iterator[Line]:
        """Each leaves the block when its condition cannot hold."""
        if not self.families:
            yield Line(Verdict.RETURN)
            return
        for family in FAMILIES:
            if family not in self.families:
                yield Line(Verdict.RETURN, (Match(Field.FAMILY, (str(family),)),))
        for field, values in self.ports:
            yield Line(Verdict.RETURN, (Match(field, values, negated=True),))
        for name, side in self.sides:
            for family in self.families:
                yield Line(Verdict.RETURN, tuple(_outside(name, side, family, name_of)))


def _outside(name: str, side: Side, family: int, name_of: NameOf) -> Iterator[Match]:
    """In none of the nets, and no member of the set; at least one criterion, which also ties the line to its family."""
    field = Field[f"{name.upper()}{family}"]
    nets = disjoint(net for net in side.nets if net.version == family)
    if nets:
        yield Match(field, tuple(map(member, nets)), negated=True)
    spec = side.spec()
    if spec is not None:
        yield Match(field, set_name=name_of(spec, family), negated=True)
    if not nets and spec is None:
        yield Match(Field.FAMILY, (str(family),))


def guard(rules: Iterable[Parsed]) -> Guard:
    """What all rules that can match at all have in common."""
    live = [rule for rule in rules if rule.families]
    families = tuple(family for family in FAMILIES if any(family in rule.families for rule in live))
    ports = []
    for field in (Field.SOURCE_PORT, Field.DESTINATION_PORT):
        wanted = [_ports(rule, field) for rule in live]
        if live and all(wanted):
            ports.append((field, merge_ports([pair for values in wanted for pair in map(read_ports, values)])))
    sides = []
    for name in _SIDES:
        found = [_side(rule, name) for rule in live]
        if live and all(found):
            nets = tuple(net for side in found if side for net in side.nets)
            nodes = tuple(node for side in found if side for node in side.selectors)
            sides.append((name, Side(nets, nodes)))
    return Guard(families, tuple(ports), tuple(sides))


def _ports(rule: Parsed, field: Field) -> tuple[str, ...]:
    """Numbers that one of the rule's ports must be among, or nothing."""
    found: list[str] = []
    for parts in rule.alternatives:
        values = [part.values for part in parts if isinstance(part, Match) and part.field is field and not part.negated]
        if not values:
            return ()
        found.extend(values[0])
    return tuple(found)


def _side(rule: Parsed, name: str) -> Side | None:
    """The nets of the rule's one end if it has any, else its selector, else None."""
    nets = rule.wanted_nets(name)
    if nets:
        return None if any(net.prefixlen == 0 for net in nets) else Side(nets=nets)
    uses = (use for use in rule.uses if use.side == name and not use.negated and not use.spec.port_name)
    node = next((use.spec.selector for use in uses), None)
    if node is None and all(_use_of(parts, name) for parts in rule.alternatives):
        found = [_use_of(parts, name) for parts in rule.alternatives]
        return Side(selectors=tuple(use.spec.selector for use in found if use))
    return Side(selectors=(node,)) if node is not None else None


def _use_of(parts: Iterable[Match | SetUse], name: str) -> SetUse | None:
    """A named port's set holds addresses of its selector only, so that it is a condition on the address too."""
    return next((part for part in parts if isinstance(part, SetUse) and part.side == name and not part.negated), None)
