"""What a node should have, as frozen values: `policy` writes it, `dataplane` reads it. Nothing here knows nft's syntax.

A `Ruleset` is the whole content of our one nftables table. Unchanged objects are the *same instance* from one ruleset
to the next, so that a consumer finds what changed by identity first. Names follow from content or identity, not from
history.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import AbstractSet, Mapping


class SetType(Enum):
    """Key of a set or map; members are text in the order named here, joined by ` . ` where there are several parts."""

    IPV4 = "ipv4"
    IPV6 = "ipv6"
    IPV4_PORT = "ipv4 . protocol . port"
    IPV6_PORT = "ipv6 . protocol . port"
    PORT = "protocol . port"
    INTERFACE = "interface"
    INTERFACE_IPV4 = "interface . ipv4"
    INTERFACE_IPV6 = "interface . ipv6"
    SERVICE = "port"
    PROTOCOL = "protocol"


@dataclass(frozen=True, slots=True)
class AddressSet:
    """Members are canonical text (`10.0.0.1`, `10.1.0.0/16`, `10.0.0.1 . 6 . 80`, `cali1 . fd00::1`).

    `interval` sets may hold prefixes, or ranges of ports (`80-90`), which never overlap; the others hold single values
    only.
    """

    name: str
    type: SetType
    members: AbstractSet[str] = frozenset()
    interval: bool = False


class Field(Enum):
    """What a criterion looks at. A 4 or 6 at the end means: in packets of that IP version only, others do not match."""

    FAMILY = "family"
    PROTOCOL = "protocol"
    SOURCE4 = "source4"
    SOURCE6 = "source6"
    DESTINATION4 = "destination4"
    DESTINATION6 = "destination6"
    SOURCE_PORT = "source port"
    DESTINATION_PORT = "destination port"
    SOURCE_NAMED4 = "source4 . protocol . port"
    SOURCE_NAMED6 = "source6 . protocol . port"
    DESTINATION_NAMED4 = "destination4 . protocol . port"
    DESTINATION_NAMED6 = "destination6 . protocol . port"
    ICMP4 = "icmp4 type, code"
    ICMP6 = "icmp6 type, code"
    IN_INTERFACE = "input interface"
    OUT_INTERFACE = "output interface"
    IN_INTERFACE_SOURCE4 = "input interface . source4"
    IN_INTERFACE_SOURCE6 = "input interface . source6"
    OUT_INTERFACE_SOURCE4 = "output interface . source4"
    OUT_INTERFACE_SOURCE6 = "output interface . source6"
    LOCAL = "destination is this host"
    CONNECTION_STATE = "connection state"
    CONNECTION_STATUS = "connection status"
    SPARED = "accepted before translation"


@dataclass(frozen=True, slots=True)
class Match:
    """One criterion: the field is (or with `negated` is not) one of `values`, or a member of the set `set_name`.

    Values: addresses and CIDRs as text; protocols, families and ports as decimal text, port ranges as `lo-hi`; ICMP as
    `type` or `type . code`; interfaces as names, a trailing `*` meaning a prefix. Values of a criterion never overlap.
    """

    field: Field
    values: tuple[str, ...] = ()
    set_name: str = ""
    negated: bool = False


class Verdict(Enum):
    """`ACCEPT` ends the base chain only (later ones of the hook still run), `DROP` is final, `RETURN` goes back.

    `REJECT` drops and tells the sender (ICMP: port unreachable); not before routing. `MASQUERADE` and `SNAT` give
    another source: that of the link, or the IPv4 address in `Rule.target`; both may limit ports, `:lo-hi`.
    `UNTRACK` accepts and keeps connection tracking off the packet, `SPARE` accepts and tells later chains of ours so
    (`Field.SPARED`). `JUMP`/`GOTO` name a chain in `Rule.target`; `MAP_…` look a field of the packet (`LOOKED_UP`) up
    in the verdict map `Rule.target` and carry on when it is not there. `PUBLISH4`/`PUBLISH6` look protocol and port
    up in the port map `Rule.target`, `PUBLISH_AT4`/`PUBLISH_AT6` destination, protocol and port: a connection found
    there gets the destination that stands there.
    """

    ACCEPT = "accept"
    DROP = "drop"
    REJECT = "reject"
    RETURN = "return"
    JUMP = "jump"
    GOTO = "goto"
    MAP_IN = "look up input interface"
    MAP_OUT = "look up output interface"
    MAP_SOURCE4 = "look up source4"
    MAP_SOURCE6 = "look up source6"
    MAP_DESTINATION4 = "look up destination4"
    MAP_DESTINATION6 = "look up destination6"
    MAP_PORT = "look up destination port"
    MAP_PROTOCOL = "look up protocol"
    MASQUERADE = "masquerade"
    PUBLISH4 = "ipv4 destination of protocol . port"
    PUBLISH6 = "ipv6 destination of protocol . port"
    PUBLISH_AT4 = "ipv4 destination of address . protocol . port"
    PUBLISH_AT6 = "ipv6 destination of address . protocol . port"
    SNAT = "source address"
    UNTRACK = "accept, do not track"
    SPARE = "accept, and remember"
    CONTINUE = "continue"


LOOKED_UP = {
    Verdict.MAP_IN: Field.IN_INTERFACE,
    Verdict.MAP_OUT: Field.OUT_INTERFACE,
    Verdict.MAP_SOURCE4: Field.SOURCE4,
    Verdict.MAP_SOURCE6: Field.SOURCE6,
    Verdict.MAP_DESTINATION4: Field.DESTINATION4,
    Verdict.MAP_DESTINATION6: Field.DESTINATION6,
    Verdict.MAP_PORT: Field.DESTINATION_PORT,
    Verdict.MAP_PROTOCOL: Field.PROTOCOL,
}


@dataclass(frozen=True, slots=True)
class Sample:
    """User space is told of a packet through an nflog group, with a prefix of at most 126 characters and the packet's
    first bytes: `per_second` of them at most. Only in rules whose verdict is CONTINUE.
    """

    group: int
    prefix: str
    per_second: int


DENIES = (Verdict.DROP, Verdict.REJECT)


@dataclass(frozen=True, slots=True)
class Rate:
    """So many in so many seconds, and `burst` at once."""

    count: int
    seconds: int
    burst: int


@dataclass(frozen=True, slots=True)
class Rule:
    """All `matches` hold -> log if `log` is a prefix (the kernel's log) or a Sample, then the verdict.

    `rate` bounds what a prefix writes; beyond it a rule that logs does not match, so its verdict must be CONTINUE.
    `origin` names what a person wrote (`tier|kind|namespace/name|rule N`); lines of one written rule share it.
    """

    verdict: Verdict
    matches: tuple[Match, ...] = ()
    target: str = ""
    log: str | Sample | None = None
    origin: str = ""
    rate: Rate | None = None


@dataclass(frozen=True, slots=True)
class Hook:
    """Where a base chain is attached; smaller priorities run first. What no rule decides goes on."""

    type: str
    hook: str
    priority: int


@dataclass(frozen=True, slots=True)
class Chain:
    """Rules in order; a chain without `hook` is only reached by jumps and maps.

    `sorts`: the chain (with those that it leads to besides) only finds out which of these chains may match a packet. It
    does with a packet what going through all of them in this order would do.
    """

    name: str
    rules: tuple[Rule, ...] = ()
    hook: Hook | None = None
    sorts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class VerdictMap:
    """Key -> name of the chain that takes over (goto).

    Keys are as members of a set of that type; in an `interval` map also ranges, `first-last`, which never overlap.
    """

    name: str
    elements: Mapping[str, str] = field(default_factory=dict)
    type: SetType = SetType.INTERFACE
    interval: bool = False


@dataclass(frozen=True, slots=True)
class PortMap:
    """Key -> `address . port` of IP version `version`."""

    name: str
    type: SetType
    version: int
    elements: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ruleset:
    """Everything in our table, by name."""

    sets: Mapping[str, AddressSet] = field(default_factory=dict)
    chains: Mapping[str, Chain] = field(default_factory=dict)
    maps: Mapping[str, VerdictMap] = field(default_factory=dict)
    ports: Mapping[str, PortMap] = field(default_factory=dict)
