"""A rule as a person wrote it (policy 2.6) -> criteria that a packet filter can test, one line for each alternative.

`understand` parses once; `lines` turns the result into rules of `model.desired`. A rule that cannot be understood never
opens anything: Allow and Log are left out, Deny, Pass and unknown actions deny everything from there on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_network
from itertools import product
from typing import Callable, Iterable, Mapping

from calico_plugin.errors import InvalidInput
from calico_plugin.model import names
from calico_plugin.model.desired import Field, Match
from calico_plugin.model.desired import Rule as Line
from calico_plugin.model.desired import Verdict
from calico_plugin.model.keys import ResourceKey
from calico_plugin.model.resources.policy import EntityRule, ICMPFields, Rule
from calico_plugin.policy import selector
from calico_plugin.policy.selector import Node, SelectorError

PROTOCOLS = {"TCP": 6, "UDP": 17, "ICMP": 1, "ICMPv6": 58, "SCTP": 132, "UDPLite": 136}
WITH_PORTS = frozenset((6, 17, 132))
_ICMP_FAMILY = {"ICMP": 4, "ICMPv6": 6}
_FEW_PORTS = 3
_PORT_NAME = re.compile(r"(?=.*[a-z])[a-z0-9]+(-[a-z0-9]+)*")

Port = int | str
Protocol = int | str
Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Block:
    """A run of policies of one tier, in order; see `blocks`. Its hash is asked for often, and is that of hundreds."""

    policies: tuple[ResourceKey, ...]
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", hash(self.policies))

    def __hash__(self) -> int:
        return self._hash


Subject = ResourceKey | str | Block
User = tuple[str, Subject]
"""Whatever has rules of its own, and therefore sets: (direction, policy key, profile name or block)."""
FAMILIES = (4, 6)


@dataclass(frozen=True, slots=True)
class SetSpec:
    """What an address set holds: the addresses of all objects that `selector` matches, or, with `port_name`, the
    (address, protocol, port) of the endpoints among them that declare that port. `protocol` None = any. Equal by `id`.
    """

    id: str
    selector: Node = field(compare=False)
    port_name: str = field(default="", compare=False)
    protocol: int | None = field(default=None, compare=False)

    @classmethod
    def addresses(cls, node: Node) -> SetSpec:
        return cls(node.id, node)

    @classmethod
    def named_port(cls, node: Node, protocol: int | None, port_name: str) -> SetSpec:
        word = {6: "tcp", 17: "udp", 132: "sctp", None: "any"}[protocol]
        return cls(selector.unique_id("n", f"{node.id},{word},{port_name}"), node, port_name, protocol)


NameOf = Callable[[SetSpec, int], str]
"""Name of the set of one IP version; empty when there is none, since it would have no member."""


@dataclass(frozen=True, slots=True)
class SetUse:
    """A criterion whose set depends on the packet's family. `side` is `source` or `destination`."""

    side: str
    spec: SetSpec
    negated: bool = False

    def match(self, family: int, name_of: NameOf) -> Match | None:
        """None when no such address exists."""
        name = name_of(self.spec, family)
        if not name:
            return None
        kind = "NAMED" if self.spec.port_name else ""
        what = Field[f"{self.side.upper()}{'_' if kind else ''}{kind}{family}"]
        return Match(what, set_name=name, negated=self.negated)


@dataclass(frozen=True, slots=True)
class Parsed:
    """One understood rule. `families` empty: it never matches. `alternatives`: OR of ANDs of port criteria."""

    action: str
    families: tuple[int, ...] = FAMILIES
    plain: tuple[Match, ...] = ()
    nets: Mapping[int, tuple[Match, ...]] = field(default_factory=dict)
    alternatives: tuple[tuple[Match | SetUse, ...], ...] = ((),)
    uses: tuple[SetUse, ...] = ()
    origin: str = ""
    wanted: Mapping[str, tuple[Network, ...]] = field(default_factory=dict)

    def wanted_nets(self, side: str) -> tuple[Network, ...]:
        """The rule's `nets` of one end, of both families."""
        return self.wanted.get(side, ())

    def specs(self) -> Iterable[SetSpec]:
        """Every set that the rule's lines name."""
        if not self.families:
            return
        for use in (*self.uses, *(part for parts in self.alternatives for part in parts)):
            if isinstance(use, SetUse):
                yield use.spec


@dataclass(frozen=True, slots=True)
class Context:
    """Where a rule stands: `field` (`spec.ingress[3]`), the policy's namespace (empty: global), its `origin` text."""

    field: str
    namespace: str = ""
    origin: str = ""


def understand(rule: Rule, context: Context) -> tuple[Parsed | None, str]:
    """(what to enforce or None for nothing, why not as written or empty)."""
    try:
        return _parse(rule, context), _unsupported(rule, context)
    except InvalidInput as error:
        harmless = rule.action in ("Allow", "Log")
        return (None if harmless else Parsed("Deny", origin=context.origin)), str(error)


def _unsupported(rule: Rule, context: Context) -> str:
    return f"{context.field}.http: not enforced in the kernel, so the rule never matches" if rule.http else ""


def _parse(rule: Rule, context: Context) -> Parsed:
    if rule.action not in ("Allow", "Deny", "Pass", "Log"):
        raise InvalidInput(f"{context.field}.action", rule.action, "use Allow, Deny, Pass or Log")
    protocol = _protocol(rule.protocol, f"{context.field}.protocol")
    source = _Side("source", rule.source, protocol, context)
    destination = _Side("destination", rule.destination, protocol, context)
    families = _families(rule, context, source, destination)
    if rule.http or rule.source.services or rule.destination.services:
        families = ()
    return Parsed(
        action=rule.action,
        families=families,
        plain=_protocol_matches(rule, protocol, context),
        nets={family: (*source.nets(family), *destination.nets(family)) for family in families},
        alternatives=_alternatives(source, destination, apart=rule.action == "Log"),
        uses=(*source.uses(), *destination.uses()),
        origin=context.origin,
        wanted={side.side: side.wanted for side in (source, destination) if side.wanted},
    )


def _families(rule: Rule, context: Context, *sides: _Side) -> tuple[int, ...]:
    """The IP versions that the rule can match at all (policy 2.6, IPv4/IPv6 split)."""
    if rule.ip_version not in (None, 4, 6):
        raise InvalidInput(f"{context.field}.ipVersion", rule.ip_version, "use 4 or 6")
    wanted = {rule.ip_version} if rule.ip_version else set(FAMILIES)
    if isinstance(rule.protocol, str) and rule.protocol in _ICMP_FAMILY:
        wanted &= {_ICMP_FAMILY[rule.protocol]}
    return tuple(family for family in FAMILIES if family in wanted and all(side.has(family) for side in sides))


def _protocol(value: Protocol | None, where: str) -> int | None:
    """IP protocol number; a numeric string counts as a number."""
    if value is None:
        return None
    number = PROTOCOLS.get(value) if isinstance(value, str) else value
    if number is None and isinstance(value, str) and value.isascii() and value.isdigit():
        number = int(value)
    if number is None or not 1 <= number <= 255:
        raise InvalidInput(where, value, "use TCP, UDP, ICMP, ICMPv6, SCTP, UDPLite or 1-255")
    return number


def _protocol_matches(rule: Rule, protocol: int | None, context: Context) -> tuple[Match, ...]:
    matches = [Match(Field.PROTOCOL, (str(protocol),))] if protocol is not None else []
    unwanted = _protocol(rule.not_protocol, f"{context.field}.notProtocol")
    if unwanted is not None:
        matches.append(Match(Field.PROTOCOL, (str(unwanted),), negated=True))
    for icmp, name, negated in ((rule.icmp, "icmp", False), (rule.not_icmp, "notICMP", True)):
        if icmp is not None and icmp.type is not None:
            matches.append(_icmp(icmp, protocol, f"{context.field}.{name}", negated))
        elif icmp is not None and icmp.code is not None:
            raise InvalidInput(f"{context.field}.{name}.code", icmp.code, "a code needs a type")
    return tuple(matches)


def _icmp(icmp: ICMPFields, protocol: int | None, where: str, negated: bool) -> Match:
    fields = {1: Field.ICMP4, 58: Field.ICMP6}
    if protocol not in fields:
        raise InvalidInput(where, None, "needs protocol ICMP or ICMPv6")
    for name, number, most in (("type", icmp.type, 254), ("code", icmp.code, 255)):
        if number is not None and not 0 <= number <= most:
            raise InvalidInput(f"{where}.{name}", number, f"use 0 to {most}")
    value = f"{icmp.type}" if icmp.code is None else f"{icmp.type} . {icmp.code}"
    return Match(fields[protocol], (value,), negated=negated)


class _Side:
    """One end of a rule, read once."""

    def __init__(self, side: str, entity: EntityRule, protocol: int | None, context: Context) -> None:
        self.side, self.protocol = side, protocol
        where = f"{context.field}.{side}"
        self.wanted = networks(entity.nets, f"{where}.nets")
        self.unwanted = networks(entity.not_nets, f"{where}.notNets")
        self.positive, self.negative = side_selectors(entity, context.namespace, where)
        self.ports = _Ports.read(entity.ports, protocol, f"{where}.ports")
        self.not_ports = _Ports.read(entity.not_ports, protocol, f"{where}.notPorts")
        self.any_port = not entity.ports

    def has(self, family: int) -> bool:
        """Whether the net lists leave anything of this family: also a *negated* list without it excludes the family."""
        for listed in (self.wanted, self.unwanted):
            if listed and not any(net.version == family for net in listed):
                return False
        return not any(net.version == family and net.prefixlen == 0 for net in self.unwanted)

    def nets(self, family: int) -> Iterable[Match]:
        what = Field[f"{self.side.upper()}{family}"]
        for listed, negated in ((self.wanted, False), (self.unwanted, True)):
            members = disjoint(net for net in listed if net.version == family)
            if members and not any(net.prefixlen == 0 for net in members):
                yield Match(what, tuple(map(member, members)), negated=negated)
            elif members:
                yield Match(Field.FAMILY, (str(family),))

    def uses(self) -> Iterable[SetUse]:
        """Criteria by selector that hold whatever the port; the positive one goes along with numeric ports."""
        if self.negative is not None:
            yield SetUse(self.side, SetSpec.addresses(self.negative), negated=True)
        if self.positive is not None and self.any_port:
            yield SetUse(self.side, SetSpec.addresses(self.positive))
        for name in self.not_ports.names:
            yield SetUse(self.side, self._named(name), negated=True)

    def alternatives(self, apart: bool) -> list[tuple[Match | SetUse, ...]]:
        """Ways in which the ports may match. `apart`: at most one of them matches any packet."""
        what = Field.SOURCE_PORT if self.side == "source" else Field.DESTINATION_PORT
        base: tuple[Match, ...] = ()
        if self.not_ports.numbers:
            base = (Match(what, self.not_ports.numbers, negated=True),)
        if self.any_port:
            return [base]
        found: list[tuple[Match | SetUse, ...]] = []
        others = base
        if self.ports.numbers:
            by_selector = (SetUse(self.side, SetSpec.addresses(self.positive)),) if self.positive is not None else ()
            found += [(*base, Match(what, numbers), *by_selector) for numbers in self.ports.lists()]
            others = (*base, Match(what, self.ports.numbers, negated=True)) if apart else base
        named: list[SetUse] = []
        for name in self.ports.names:
            before = tuple(SetUse(self.side, use.spec, negated=True) for use in named) if apart else ()
            named.append(SetUse(self.side, self._named(name)))
            found.append((*others, *before, named[-1]))
        return found

    def _named(self, name: str) -> SetSpec:
        return SetSpec.named_port(self.positive or selector.ALL, self.protocol, name)


def _alternatives(source: _Side, destination: _Side, apart: bool) -> tuple[tuple[Match | SetUse, ...], ...]:
    pairs = product(source.alternatives(apart), destination.alternatives(apart))
    return tuple((*one, *other) for one, other in pairs)


@dataclass(frozen=True, slots=True)
class _Ports:
    """`numbers` are disjoint and sorted, as `80` or `80-90`."""

    numbers: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    def lists(self) -> tuple[tuple[str, ...], ...]:
        """The numbers for one line each: a few have lines of their own, which is faster and needs no set."""
        few = len(self.numbers) <= _FEW_PORTS
        return tuple((number,) for number in self.numbers) if few else (self.numbers,)

    @classmethod
    def read(cls, ports: tuple[Port, ...], protocol: int | None, where: str) -> _Ports:
        if ports and protocol is not None and protocol not in WITH_PORTS:
            raise InvalidInput(where, list(ports), "a rule with ports needs protocol TCP, UDP or SCTP")
        ranges: list[tuple[int, int]] = []
        found: list[str] = []
        for port in ports:
            read = port_range(port, where)
            if isinstance(read, str):
                found.append(read)
            else:
                ranges.append(read)
        if ranges and protocol is None:
            raise InvalidInput(where, list(ports), "a rule with numeric ports needs protocol TCP, UDP or SCTP")
        return cls(merge_ports(ranges), tuple(dict.fromkeys(found)))


def port_range(port: Port, where: str) -> tuple[int, int] | str:
    """(lowest, highest) of a number or `lo:hi`, or the name. Raises InvalidInput."""
    text = str(port)
    parts = text.split(":")
    if len(parts) <= 2 and all(part.isascii() and part.isdigit() for part in parts):
        lowest, highest = int(parts[0]), int(parts[-1])
        if not 1 <= lowest <= 65535 or not 1 <= highest <= 65535:
            raise InvalidInput(where, port, "a port is 1 to 65535")
        if lowest > highest:
            raise InvalidInput(where, port, "the port range is reversed")
        return lowest, highest
    if not isinstance(port, str) or len(text) > 15 or not _PORT_NAME.fullmatch(text):
        raise InvalidInput(where, port, "use a number, lo:hi, or a name of 1-15 characters a-z 0-9 -")
    return text


def read_ports(text: str) -> tuple[int, int]:
    """(lowest, highest) of `80` or `80-90`."""
    lowest, _, highest = text.partition("-")
    return int(lowest), int(highest or lowest)


def merge_ports(ranges: list[tuple[int, int]]) -> tuple[str, ...]:
    """Disjoint and sorted, as `80` or `80-90`."""
    merged: list[tuple[int, int]] = []
    for lowest, highest in sorted(ranges):
        if merged and lowest <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(highest, merged[-1][1]))
        else:
            merged.append((lowest, highest))
    return tuple(str(low) if low == high else f"{low}-{high}" for low, high in merged)


def networks(cidrs: Iterable[str], where: str) -> tuple[Network, ...]:
    """Host bits are masked off: what is meant is clear. Raises InvalidInput."""
    try:
        return tuple(ip_network(cidr, strict=False) for cidr in cidrs)
    except ValueError as error:
        raise InvalidInput(where, None, f"{error}; write 10.0.0.0/8 or fd00::/64") from error


def disjoint(nets: Iterable[Network]) -> list[Network]:
    """The same addresses without members that others cover, sorted. All of one family."""
    kept: list[Network] = []
    end = -1
    for net in sorted(nets, key=lambda item: (int(item.network_address), item.prefixlen)):
        if int(net.network_address) > end:
            kept.append(net)
            end = int(net.broadcast_address)
    return kept


def member(net: Network) -> str:
    """Text of a network as a set's member: single addresses without a length."""
    return str(net.network_address) if net.prefixlen == net.max_prefixlen else str(net)


def side_selectors(entity: EntityRule, namespace: str, where: str) -> tuple[Node | None, Node | None]:
    """(addresses must be among, addresses must not be among) as effective expressions (policy 1.6)."""
    wanted = parse(entity.selector, f"{where}.selector")
    unwanted = parse(entity.not_selector, f"{where}.notSelector")
    scope = _namespace_scope(entity, namespace, f"{where}.namespaceSelector")
    accounts = _service_accounts(entity, f"{where}.serviceAccounts")
    parts = [part for part in (scope, *accounts, wanted) if part is not None]
    if not parts:
        return None, unwanted
    if unwanted is not None:
        parts.append(selector.Not(unwanted))
    return selector.conjunction(*parts), None


def _namespace_scope(entity: EntityRule, namespace: str, where: str) -> Node | None:
    if entity.namespace_selector.strip():
        return namespace_selector(parse(entity.namespace_selector, where, global_allowed=True))
    if namespace and (entity.selector or entity.not_selector or entity.service_accounts):
        return selector.Compare(names.LABEL_NAMESPACE, "==", namespace)
    return None


def namespace_selector(node: Node | None) -> Node | None:
    """A namespace's labels are `pcns.` labels of its endpoints; all() and global() test for the namespace label."""
    if node is None:
        return None
    in_namespace = selector.Has(names.LABEL_NAMESPACE)

    def everything(part: Node) -> Node:
        return selector.Not(in_namespace) if isinstance(part, selector.Global) else in_namespace

    return node.rewrite(lambda label: f"pcns.{label}", everything)


def service_account_selector(node: Node | None) -> Node | None:
    return node and node.rewrite(lambda label: f"pcsa.{label}", lambda part: part)


def _service_accounts(entity: EntityRule, where: str) -> tuple[Node | None, ...]:
    accounts = entity.service_accounts
    if accounts is None:
        return ()
    listed = None
    if accounts.names:
        listed = selector.In("projectcalico.org/serviceaccount", frozenset(accounts.names), False)
    return listed, service_account_selector(parse(accounts.selector, f"{where}.selector"))


def parse(text: str, where: str, global_allowed: bool = False) -> Node | None:
    """None for empty text. Raises InvalidInput that names the field and the position."""
    if not text.strip(" \t"):
        return None
    try:
        node = selector.parse(text)
    except SelectorError as error:
        raise InvalidInput(where, text, error.hint) from error
    allowed = global_allowed and isinstance(node, selector.Global)
    if "global()" in node.canonical and _holds_global(node) and not allowed:
        raise InvalidInput(where, text, "global() may only stand alone in a rule's namespaceSelector")
    return node


def _holds_global(node: Node) -> bool:
    if isinstance(node, selector.Not):
        return _holds_global(node.operand)
    if isinstance(node, (selector.And, selector.Or)):
        return any(_holds_global(operand) for operand in node.operands)
    return isinstance(node, selector.Global)


def lines(rule: Parsed, name_of: NameOf, log_prefix: str = "") -> tuple[Line, ...]:
    """The packet filter's lines for one rule. Pass is RETURN: lines stand where a return ends the tier or profile.

    A line that would need a member of a set that has none is left out.
    """
    verdict = _VERDICTS[rule.action]
    log = log_prefix if rule.action == "Log" else None
    found: dict[Line, None] = {}
    for family, parts in product(rule.families, rule.alternatives):
        matches = _line_matches(rule, family, parts, name_of)
        if matches is not None:
            found[Line(verdict, matches, log=log, origin=rule.origin)] = None
    return tuple(found)


def _line_matches(
    rule: Parsed, family: int, parts: tuple[Match | SetUse, ...], name_of: NameOf
) -> tuple[Match, ...] | None:
    """Cheap criteria first; None when nothing can match. A line that nothing ties to its family gets a test of it,
    unless the rule takes both alike.
    """
    ports = tuple(part for part in parts if isinstance(part, Match))
    uses = tuple(part for part in parts if isinstance(part, SetUse)) + rule.uses
    nets = rule.nets.get(family, ())
    found = [(use, use.match(family, name_of)) for use in uses]
    if any(match is None and not use.negated for use, match in found):
        return None
    sets = tuple(match for _, match in found if match is not None)
    alike = len(rule.families) == 2 and not uses
    guard = () if nets or sets or alike else (Match(Field.FAMILY, (str(family),)),)
    return (*guard, *rule.plain, *ports, *nets, *sets)


_VERDICTS = {"Allow": Verdict.ACCEPT, "Deny": Verdict.DROP, "Pass": Verdict.RETURN, "Log": Verdict.CONTINUE}
