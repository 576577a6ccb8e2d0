"""A rule -> nf_tables expressions, the machine that the kernel runs on each packet. Pure.

Registers are numbered as nft does: 1 for the first 16 bytes, 8 + n for the n-th 32 bits. All other numbers are those of
linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import struct
import sys
from ipaddress import IPv4Address, ip_network
from typing import Callable, Iterator

from calico_plugin.dataplane import nftypes as types
from calico_plugin.dataplane.nfwire import attribute, nested, number, string
from calico_plugin.errors import DataplaneError
from calico_plugin.model.desired import LOOKED_UP, Field, Match, Rate, Rule, Sample, Verdict

# Felix's accept bit, the lowest of its mask 0xffff0000 (policy 4.9); only preDNAT policy sets it.
SPARED_MARK = 0x10000
# Of a Sample: how many at once, and how much of a packet (both headers).
SAMPLE_BURST, SAMPLE_BYTES = 20, 128

Expression = tuple[str, bytes]
Anonymous = Callable[[tuple[int, ...], int, list[tuple[bytes, bytes]], bool], tuple[str, int]]
"""Makes a set without a name: data types of the key's parts, the key's length, (first, behind the last) keys, are they
intervals -> name, number.
"""

_FIRST = 1
_EQUAL, _UNEQUAL, _AT_MOST, _AT_LEAST = 0, 1, 3, 5
_INVERT = 1
_MARK, _IIFNAME, _OIFNAME, _NFPROTO, _L4PROTO = 3, 6, 7, 15, 16
_NETWORK, _TRANSPORT = 1, 2
_NFPROTO_OF = {"4": 2, "6": 10}
_ICMP_PROTOCOL = {Field.ICMP4: "1", Field.ICMP6: "58"}
_CT_STATE, _CT_STATUS = 0, 2
_STATES = {"invalid": 1, "established": 2, "related": 4, "new": 8, "untracked": 64}
_STATUSES = {"snat": 16, "dnat": 32}
_RANDOM_FULLY, _WITH_PORTS = 16, 2
_NAT_SOURCE, _NAT_DESTINATION = 0, 1
_FIB_ADDRESS_TYPE, _FIB_DESTINATION, _LOCAL = 3, 2, 2
_REJECT_ICMPX, _PORT_UNREACHABLE = 2, 1
_CODES = {Verdict.ACCEPT: 1, Verdict.DROP: 0, Verdict.JUMP: -3, Verdict.GOTO: -4, Verdict.RETURN: -5}

# Field -> (base, offset, length) of addresses and ports.
_ADDRESSES = {
    Field.SOURCE4: (_NETWORK, 12, 4), Field.DESTINATION4: (_NETWORK, 16, 4),
    Field.SOURCE6: (_NETWORK, 8, 16), Field.DESTINATION6: (_NETWORK, 24, 16),
}
_PORTS = {Field.SOURCE_PORT: (_TRANSPORT, 0, 2), Field.DESTINATION_PORT: (_TRANSPORT, 2, 2)}
_NAMED = {
    Field.SOURCE_NAMED4: (Field.SOURCE4, Field.SOURCE_PORT), Field.SOURCE_NAMED6: (Field.SOURCE6, Field.SOURCE_PORT),
    Field.DESTINATION_NAMED4: (Field.DESTINATION4, Field.DESTINATION_PORT),
    Field.DESTINATION_NAMED6: (Field.DESTINATION6, Field.DESTINATION_PORT),
}
_OWN = {
    Field.IN_INTERFACE_SOURCE4: (_IIFNAME, Field.SOURCE4), Field.IN_INTERFACE_SOURCE6: (_IIFNAME, Field.SOURCE6),
    Field.OUT_INTERFACE_SOURCE4: (_OIFNAME, Field.SOURCE4), Field.OUT_INTERFACE_SOURCE6: (_OIFNAME, Field.SOURCE6),
}
# Verdict -> IP version, what is looked up besides protocol and port.
_PUBLISH = {
    Verdict.PUBLISH4: ("4", None), Verdict.PUBLISH6: ("6", None),
    Verdict.PUBLISH_AT4: ("4", Field.DESTINATION4), Verdict.PUBLISH_AT6: ("6", Field.DESTINATION6),
}
_FAMILY_OF = {
    field: field.name[-1] for field in Field if field.name[-1] in "46" and field not in _ICMP_PROTOCOL
}
_INTERFACES = {Field.IN_INTERFACE: _IIFNAME, Field.OUT_INTERFACE: _OIFNAME}


def expressions(rule: Rule, anonymous: Anonymous) -> Iterator[Expression]:
    """In the order in which they run."""
    # What earlier criteria have made sure of need not be tested again.
    family = protocol = ""
    for match in rule.matches:
        if match.field in _ICMP_PROTOCOL and protocol != _ICMP_PROTOCOL[match.field]:
            yield from _test_meta(_L4PROTO, bytes([int(_ICMP_PROTOCOL[match.field])]), False)
        needed = _FAMILY_OF.get(match.field, family)
        if needed != family:
            family = needed
            yield from _test_meta(_NFPROTO, bytes([_NFPROTO_OF[family]]), False)
        if match.field is Field.FAMILY and not match.negated:
            family = _single(match)
        if match.field is Field.PROTOCOL and match.values and not match.negated:
            protocol = _single(match)
        yield from _match(match, anonymous)
    looked_up = _FAMILY_OF.get(LOOKED_UP.get(rule.verdict, Field.FAMILY), family)
    if looked_up != family:
        yield from _test_meta(_NFPROTO, bytes([_NFPROTO_OF[looked_up]]), False)
    if rule.origin:
        yield "counter", attribute(1, bytes(8)) + attribute(2, bytes(8))
    if isinstance(rule.log, Sample):
        yield from _sample(rule.log)
    elif rule.log is not None:
        if rule.rate is not None:
            yield _limit(rule.rate)
        yield "log", string(2, rule.log)
    yield from _verdict(rule)


def _sample(sample: Sample) -> Iterator[Expression]:
    """At most so many per second, to an nflog group."""
    yield _limit(Rate(sample.per_second, 1, SAMPLE_BURST))
    group, threshold = (attribute(kind, struct.pack("!H", value)) for kind, value in ((1, sample.group), (4, 0)))
    yield "log", group + string(2, sample.prefix) + number(3, SAMPLE_BYTES) + threshold


def _limit(rate: Rate) -> Expression:
    pace = attribute(1, struct.pack("!Q", rate.count)) + attribute(2, struct.pack("!Q", rate.seconds))
    return "limit", pace + number(3, rate.burst) + number(4, 0) + number(5, 0)


def _match(match: Match, anonymous: Anonymous) -> Iterator[Expression]:
    field = match.field
    if field in _ADDRESSES:
        yield from _address(match, anonymous)
    elif field in _PORTS:
        yield from _port(match, anonymous)
    elif field in _INTERFACES:
        yield from _interface(match)
    elif field in _ICMP_PROTOCOL:
        yield from _icmp(match, anonymous)
    elif field in _NAMED or field in _OWN:
        yield from _concatenation(match)
    elif field is Field.LOCAL:
        yield "fib", number(1, _FIRST) + number(2, _FIB_ADDRESS_TYPE) + number(3, _FIB_DESTINATION)
        yield _compare(_LOCAL.to_bytes(4, sys.byteorder), match.negated)
    elif field is Field.FAMILY:
        yield from _test_meta(_NFPROTO, bytes([_NFPROTO_OF[_single(match)]]), match.negated)
    elif field is Field.PROTOCOL and match.set_name:
        yield _load_meta(_L4PROTO)
        yield _lookup(match.set_name, match.negated)
    elif field is Field.PROTOCOL:
        yield from _test_meta(_L4PROTO, bytes([int(_single(match))]), match.negated)
    else:
        yield from _bits(match)


def _single(match: Match) -> str:
    if len(match.values) != 1:
        raise DataplaneError(f"{match.field.value}: one value expected, not {len(match.values)}")
    return match.values[0]


def _load_meta(what: int, register: int = _FIRST) -> Expression:
    return "meta", number(2, what) + number(1, register)


def _load_payload(place: tuple[int, int, int], register: int = _FIRST) -> Expression:
    base, offset, length = place
    return "payload", number(1, register) + number(2, base) + number(3, offset) + number(4, length)


def _load(field: Field) -> Expression:
    """A field of one part."""
    if field in _ADDRESSES or field in _PORTS:
        return _load_payload(_ADDRESSES.get(field) or _PORTS[field])
    return _load_meta(_L4PROTO if field is Field.PROTOCOL else _INTERFACES[field])


def _compare(value: bytes, negated: bool) -> Expression:
    return "cmp", number(1, _FIRST) + number(2, _UNEQUAL if negated else _EQUAL) + nested(3, attribute(1, value))


def _mask(mask: bytes, xor: bytes) -> Expression:
    """register = register & mask ^ xor"""
    registers = number(1, _FIRST) + number(2, _FIRST) + number(3, len(mask))
    return "bitwise", registers + nested(4, attribute(1, mask)) + nested(5, attribute(1, xor))


def _lookup(name: str, negated: bool, identity: int = 0) -> Expression:
    body = string(1, name) + number(2, _FIRST)
    if identity:
        body += number(4, identity)
    return "lookup", body + (number(5, _INVERT) if negated else b"")


def _test_meta(what: int, value: bytes, negated: bool) -> Iterator[Expression]:
    yield _load_meta(what)
    yield _compare(value, negated)


def _address(match: Match, anonymous: Anonymous) -> Iterator[Expression]:
    place = _ADDRESSES[match.field]
    yield _load_payload(place)
    if match.set_name:
        yield _lookup(match.set_name, match.negated)
        return
    nets = [ip_network(value) for value in match.values]
    if len(nets) == 1:
        if nets[0].prefixlen < nets[0].max_prefixlen:
            yield _mask(nets[0].netmask.packed, bytes(place[2]))
        yield _compare(nets[0].network_address.packed, match.negated)
        return
    size = place[2]
    keys = [(net.network_address.packed, _behind(int(net.broadcast_address), size)) for net in nets]
    intervals = any(net.prefixlen < net.max_prefixlen for net in nets)
    name, identity = anonymous((types.IPV4 if size == 4 else types.IPV6,), size, keys, intervals)
    yield _lookup(name, match.negated, identity)


def _behind(last: int, size: int) -> bytes:
    return b"" if (last + 1) >> (8 * size) else (last + 1).to_bytes(size, "big")


def _port(match: Match, anonymous: Anonymous) -> Iterator[Expression]:
    yield _load_payload(_PORTS[match.field])
    if match.set_name:
        yield _lookup(match.set_name, match.negated)
        return
    pairs = [(int(low), int(high or low)) for low, _, high in (value.partition("-") for value in match.values)]
    if len(pairs) == 1 and pairs[0][0] == pairs[0][1]:
        yield _compare(pairs[0][0].to_bytes(2, "big"), match.negated)
        return
    if len(pairs) == 1:
        low, high = pairs[0]
        yield from _range(low.to_bytes(2, "big"), high.to_bytes(2, "big"), match.negated)
        return
    keys = [(low.to_bytes(2, "big"), _behind(high, 2)) for low, high in pairs]
    name, identity = anonymous((types.PORT,), 2, keys, any(low != high for low, high in pairs))
    yield _lookup(name, match.negated, identity)


def _range(low: bytes, high: bytes, negated: bool) -> Iterator[Expression]:
    if negated:
        ends = nested(3, attribute(1, low)) + nested(4, attribute(1, high))
        yield "range", number(1, _FIRST) + number(2, _UNEQUAL) + ends
        return
    for operator, value in ((_AT_LEAST, low), (_AT_MOST, high)):
        yield "cmp", number(1, _FIRST) + number(2, operator) + nested(3, attribute(1, value))


def _interface(match: Match) -> Iterator[Expression]:
    yield _load_meta(_INTERFACES[match.field])
    if match.set_name:
        yield _lookup(match.set_name, match.negated)
        return
    name = _single(match)
    value = name[:-1].encode() if name.endswith("*") else name.encode().ljust(16, b"\0")
    yield _compare(value, match.negated)


def _icmp(match: Match, anonymous: Anonymous) -> Iterator[Expression]:
    """Type, or type and code; "not this pair" is a set of pairs, as two tests would say "neither" (policy 5.3)."""
    values = [[bytes([int(part)]) for part in value.split(" . ")] for value in match.values]
    if len(values) == 1 and not (match.negated and len(values[0]) > 1):
        for offset, byte in enumerate(values[0]):
            yield _load_payload((_TRANSPORT, offset, 1))
            yield _compare(byte, match.negated)
        return
    four = match.field is Field.ICMP4
    kinds = (types.ICMP_TYPE, types.ICMP_CODE) if four else (types.ICMPV6_TYPE, types.ICMPV6_CODE)
    parts = len(values[0])
    for offset in range(parts):
        yield _load_payload((_TRANSPORT, offset, 1), _register(offset))
    keys = [(value[0] if parts == 1 else b"".join(byte.ljust(4, b"\0") for byte in value), b"") for value in values]
    name, identity = anonymous(kinds[:parts], 1 if parts == 1 else 4 * parts, keys, False)
    yield _lookup(name, match.negated, identity)


def _concatenation(match: Match) -> Iterator[Expression]:
    """Parts in consecutive registers, each padded to 32 bits."""
    if match.field in _OWN:
        which, address = _OWN[match.field]
        yield _load_meta(which, _register(0))
        yield _load_payload(_ADDRESSES[address], _register(4))
    else:
        address, port = _NAMED[match.field]
        words = _ADDRESSES[address][2] // 4
        yield _load_payload(_ADDRESSES[address], _register(0))
        yield _load_meta(_L4PROTO, _register(words))
        yield _load_payload(_PORTS[port], _register(words + 1))
    yield _lookup(match.set_name, match.negated)


def _register(word: int) -> int:
    return 1 + word // 4 if word % 4 == 0 else 8 + word


def _bits(match: Match) -> Iterator[Expression]:
    """State and status of the connection, and our mark: words of bits in the machine's own byte order."""
    if match.field is Field.SPARED:
        yield _load_meta(_MARK)
        wanted = SPARED_MARK
    elif match.field is Field.CONNECTION_STATE:
        yield "ct", number(1, _FIRST) + number(2, _CT_STATE)
        wanted = sum(_STATES[value] for value in match.values)
    else:
        yield "ct", number(1, _FIRST) + number(2, _CT_STATUS)
        wanted = sum(_STATUSES[value] for value in match.values)
    yield _mask(wanted.to_bytes(4, sys.byteorder), bytes(4))
    yield _compare(bytes(4), not match.negated)


def _verdict(rule: Rule) -> Iterator[Expression]:
    if rule.verdict in LOOKED_UP:
        yield _load(LOOKED_UP[rule.verdict])
        yield "lookup", string(1, rule.target) + number(2, _FIRST) + number(3, 0)
    elif rule.verdict in _PUBLISH:
        yield from _publish(rule)
    elif rule.verdict in (Verdict.MASQUERADE, Verdict.SNAT):
        yield from _translation(rule)
    elif rule.verdict is Verdict.REJECT:
        yield "reject", number(1, _REJECT_ICMPX) + attribute(2, bytes([_PORT_UNREACHABLE]))
    elif rule.verdict is Verdict.SPARE:
        yield _load_meta(_MARK)
        keep = SPARED_MARK ^ 0xFFFFFFFF
        yield _mask(keep.to_bytes(4, sys.byteorder), SPARED_MARK.to_bytes(4, sys.byteorder))
        yield "meta", number(2, _MARK) + number(3, _FIRST)
        yield _immediate(Verdict.ACCEPT)
    elif rule.verdict is Verdict.UNTRACK:
        yield "notrack", b""
        yield _immediate(Verdict.ACCEPT)
    elif rule.verdict is not Verdict.CONTINUE:
        yield _immediate(rule.verdict, rule.target)


def _publish(rule: Rule) -> Iterator[Expression]:
    """The key in consecutive registers; what is found, address and port, takes their place."""
    version, address = _PUBLISH[rule.verdict]
    words = 0
    if address is not None:
        yield from _test_meta(_NFPROTO, bytes([_NFPROTO_OF[version]]), False)
        yield _load_payload(_ADDRESSES[address], _register(0))
        words = _ADDRESSES[address][2] // 4
    yield _load_meta(_L4PROTO, _register(words))
    yield _load_payload(_PORTS[Field.DESTINATION_PORT], _register(words + 1))
    yield "lookup", string(1, rule.target) + number(2, _FIRST) + number(3, _FIRST)
    port = _register(1 if version == "4" else 4)
    family = number(1, _NAT_DESTINATION) + number(2, _NFPROTO_OF[version])
    yield "nat", family + number(3, _FIRST) + number(5, port)


def _translation(rule: Rule) -> Iterator[Expression]:
    """Source address, then the ports, in registers 1 to 3; each only where the rule names it."""
    address, _, ports = rule.target.partition(":")
    values = [IPv4Address(address).packed] if address else []
    values += [int(port).to_bytes(2, "big") for port in ports.split("-")] if ports else []
    for register, value in enumerate(values, 1):
        yield "immediate", number(1, register) + nested(2, attribute(1, value))
    behind = range(2 if address else 1, len(values) + 1)
    # Without this the kernel does not look at the ports of a masquerade, and nft shows no difference.
    flags = _RANDOM_FULLY | (_WITH_PORTS if ports else 0)
    if rule.verdict is Verdict.MASQUERADE:
        named = b"".join(number(2 + index, register) for index, register in enumerate(behind))
        yield "masq", number(1, flags) + named
        return
    named = b"".join(number(5 + index, register) for index, register in enumerate(behind))
    family = number(1, _NAT_SOURCE) + number(2, _NFPROTO_OF["4"])
    yield "nat", family + number(3, 1) + number(4, 1) + named + number(7, flags)


def _immediate(verdict: Verdict, target: str = "") -> Expression:
    code = attribute(1, struct.pack("!i", _CODES[verdict]))
    return "immediate", number(1, 0) + nested(2, nested(2, code, string(2, target) if target else b""))
