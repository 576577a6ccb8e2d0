"""Steps -> nf_tables messages, pure: what nft sends for the text of the same step (tests compare both in the kernel).

Straight netlink because libnftables reads all sets and chains of the table before each command: 15 ms of CPU for a rule
in a table of 2,400 sets, measured, where the kernel needs a tenth of one.
"""

from __future__ import annotations

import socket
import struct
from functools import lru_cache
from ipaddress import ip_address, ip_network
from itertools import zip_longest
from typing import Iterable, Iterator

from calico_plugin.dataplane import nftypes as types
from calico_plugin.dataplane.nfexpressions import expressions
from calico_plugin.dataplane.nfsteps import Elements, Line, Step
from calico_plugin.dataplane.nfwire import NESTED, Message, attribute, nested, number, string
from calico_plugin.errors import DataplaneError
from calico_plugin.model.desired import AddressSet, Hook, PortMap, SetType, VerdictMap
from calico_plugin.model.names import NFT_TABLE

_NEW_TABLE, _DEL_TABLE, _NEW_CHAIN, _DEL_CHAIN, _NEW_RULE, _DEL_RULE = 0, 2, 3, 5, 6, 8
_NEW_SET, _DEL_SET, _NEW_ELEMENTS, _DEL_ELEMENTS = 9, 11, 12, 14
_CREATE, _APPEND = 0x400, 0x800
HOOKS = {"prerouting": 0, "input": 1, "forward": 2, "output": 3, "postrouting": 4}
_ACCEPT = 1
_SET_MAP, _SET_INTERVAL, _SET_ANONYMOUS, _SET_CONSTANT = 8, 4, 1, 2
_VERDICT_DATA = 0xFFFFFF00
_GOTO = -4
_COMMENT = _KEY_ORDER = 0
_HOST_ORDER, _BIG_ENDIAN = 1, 2
_CHUNK = 400
"""Elements in one message: an attribute's length has 16 bits."""

# Data type and length of each key.
KEYS = {
    SetType.IPV4: (types.IPV4, 4),
    SetType.IPV6: (types.IPV6, 16),
    SetType.IPV4_PORT: (types.concatenated(types.IPV4, types.PROTOCOL, types.PORT), 12),
    SetType.IPV6_PORT: (types.concatenated(types.IPV6, types.PROTOCOL, types.PORT), 24),
    SetType.PORT: (types.concatenated(types.PROTOCOL, types.PORT), 8),
    SetType.INTERFACE: (types.IFNAME, 16),
    SetType.INTERFACE_IPV4: (types.concatenated(types.IFNAME, types.IPV4), 20),
    SetType.INTERFACE_IPV6: (types.concatenated(types.IFNAME, types.IPV6), 32),
    SetType.SERVICE: (types.PORT, 2),
    SetType.PROTOCOL: (types.PROTOCOL, 1),
}


# What a port map of each IP version leads to.
PORT_DATA = {
    4: (types.concatenated(types.IPV4, types.PORT), 8),
    6: (types.concatenated(types.IPV6, types.PORT), 20),
}


class Encoder:
    """Encodes the steps of one batch; sets without a name are numbered through it."""

    def __init__(self) -> None:
        self._next = 0
        self._before: list[Message] = []

    def messages(self, steps: Iterable[Step]) -> Iterator[Message]:
        for step in steps:
            encoded = list(self._step(step))
            yield from self._before
            self._before.clear()
            yield from encoded

    def _step(self, step: Step) -> Iterator[Message]:
        new = step.verb == "add"
        if isinstance(step.body, Elements):
            yield from _elements(step.name, 0, new, step.body)
        elif isinstance(step.body, Line):
            yield _NEW_RULE, _CREATE | _APPEND, self._rule(step.name, step.body)
        elif isinstance(step.body, AddressSet):
            yield _NEW_SET, _CREATE, self._set(step.name, step.body)
        elif step.sort == "table":
            yield _NEW_TABLE if new else _DEL_TABLE, _CREATE if new else 0, string(1, NFT_TABLE)
        elif step.sort == "chain":
            yield _chain(step)
        elif isinstance(step.body, PortMap):
            yield _NEW_SET, _CREATE, self._ports(step.body)
        elif isinstance(step.body, VerdictMap):
            yield _NEW_SET, _CREATE, self._map(step.name, step.body)
        else:
            yield _DEL_SET, 0, string(1, NFT_TABLE) + string(2, step.name)

    def _number(self) -> int:
        self._next += 1
        return self._next

    def _set(self, name: str, item: AddressSet) -> bytes:
        return _declare(name, _SET_INTERVAL if item.interval else 0, *KEYS[item.type], self._number())

    def _map(self, name: str, item: VerdictMap) -> bytes:
        flags = _SET_MAP | (_SET_INTERVAL if item.interval else 0)
        declared = _declare(name, flags, *KEYS[item.type], self._number())
        return declared + number(6, _VERDICT_DATA) + number(7, 16)

    def _ports(self, ports: PortMap) -> bytes:
        declared = _declare(ports.name, _SET_MAP, *KEYS[ports.type], self._number())
        kind, length = PORT_DATA[ports.version]
        return declared + number(6, kind) + number(7, length)

    def _rule(self, chain: str, line: Line) -> bytes:
        listed = (nested(1, string(1, name), nested(2, body)) for name, body in expressions(line.rule, self._anonymous))
        comment = line.comment.encode() + b"\0"
        return b"".join((
            string(1, NFT_TABLE), string(2, chain), nested(4, *listed),
            attribute(7, struct.pack("BB", _COMMENT, len(comment)) + comment),
        ))

    def _anonymous(
        self, kinds: tuple[int, ...], length: int, keys: list[tuple[bytes, bytes]], intervals: bool
    ) -> tuple[str, int]:
        """A set of its own for the alternatives of one criterion; made before the rule that names it."""
        identity, name = self._number(), "__set%d"
        flags = _SET_ANONYMOUS | _SET_CONSTANT | (_SET_INTERVAL if intervals else 0)
        self._before.append((_NEW_SET, _CREATE, _declare(name, flags, types.concatenated(*kinds), length, identity)))
        encoded = []
        for first, behind in keys:
            encoded.append(_element(first))
            if intervals and behind:
                encoded.append(_element(behind, end=True))
        self._before.extend(_chunks(name, identity, True, encoded))
        return name, identity


def _declare(name: str, flags: int, kind: int, length: int, identity: int) -> bytes:
    # Interface names are text to nft only if it is told that they are not big-endian numbers.
    order = _HOST_ORDER if kind == types.IFNAME else _BIG_ENDIAN
    return b"".join((
        string(1, NFT_TABLE), string(2, name), number(3, flags), number(4, kind), number(5, length),
        number(10, identity), attribute(13, struct.pack("=BBI", _KEY_ORDER, 4, order)),
    ))


def _chain(step: Step) -> Message:
    names = string(1, NFT_TABLE)
    if step.verb == "flush":
        return _DEL_RULE, 0, names + string(2, step.name)
    if step.verb == "delete":
        return _DEL_CHAIN, 0, names + string(3, step.name)
    body = names + string(3, step.name)
    if isinstance(step.body, Hook):
        hook = nested(4, number(1, HOOKS[step.body.hook]), number(2, step.body.priority & 0xFFFFFFFF))
        body += hook + number(5, _ACCEPT) + string(7, step.body.type)
    return _NEW_CHAIN, _CREATE, body


def _elements(name: str, identity: int, new: bool, elements: Elements) -> Iterator[Message]:
    return _chunks(name, identity, new, list(_encoded(elements)))


def _chunks(name: str, identity: int, new: bool, encoded: list[bytes]) -> Iterator[Message]:
    header = string(1, NFT_TABLE) + string(2, name) + (number(4, identity) if identity else b"")
    kind, flags = (_NEW_ELEMENTS, _CREATE) if new else (_DEL_ELEMENTS, 0)
    for start in range(0, len(encoded), _CHUNK):
        yield kind, flags, header + nested(3, *encoded[start:start + _CHUNK])


def _encoded(elements: Elements) -> Iterator[bytes]:
    if elements.data:
        for member, text in zip(elements.members, elements.data):
            yield _element(key(elements.type, member), nested(2, attribute(1, _destination(text))))
    elif elements.interval:
        for member, target in zip_longest(elements.members, elements.targets):
            first, behind = interval(elements.type, member)
            yield _element(first, _verdict(target) if target else b"")
            if behind:
                yield _element(behind, end=True)
    elif elements.targets:
        for member, target in zip(elements.members, elements.targets):
            yield _element(key(elements.type, member), _verdict(target))
    else:
        for member in elements.members:
            yield _element(key(elements.type, member))


@lru_cache(maxsize=4096)
def _verdict(target: str) -> bytes:
    return nested(2, nested(2, attribute(1, struct.pack("!i", _GOTO)) + string(2, target)))


_PLAIN = struct.Struct("=HHHHHH")


def _element(value: bytes, data: bytes = b"", end: bool = False) -> bytes:
    if not data and not end:
        # Hundreds of thousands of these: list item > key > value in one piece.
        size = len(value) + -len(value) % 4
        header = _PLAIN.pack(12 + size, 1 | NESTED, 8 + size, 1 | NESTED, 4 + len(value), 1)
        return header + value.ljust(size, b"\0")
    return nested(1, nested(1, attribute(1, value)), data, number(3, 1) if end else b"")


def _destination(text: str) -> bytes:
    address, port = text.split(" . ")
    return ip_address(address).packed + struct.pack("!Hxx", int(port))


def interval(kind: SetType, member: str) -> tuple[bytes, bytes]:
    """First key, and the one behind the last; the latter is empty at the end of all keys."""
    first, dash, last = member.partition("-")
    if not dash and kind is not SetType.SERVICE:
        net = ip_network(member)
        return net.network_address.packed, _after(net.broadcast_address.packed)
    return key(kind, first), _after(key(kind, last or first))


def _after(last: bytes) -> bytes:
    """The next key, empty when there is none."""
    value = int.from_bytes(last, "big") + 1
    return b"" if value >> (8 * len(last)) else value.to_bytes(len(last), "big")


def key(kind: SetType, member: str) -> bytes:
    """The kernel's key: each part padded to four bytes, interface names to sixteen."""
    if kind is SetType.IPV4:
        return socket.inet_pton(socket.AF_INET, member)
    if kind is SetType.IPV6:
        return socket.inet_pton(socket.AF_INET6, member)
    if kind in (SetType.SERVICE, SetType.PROTOCOL):
        return int(member).to_bytes(KEYS[kind][1], "big")
    parts = member.split(" . ")
    if kind in (SetType.IPV4_PORT, SetType.IPV6_PORT):
        address, protocol, port = parts
        return ip_address(address).packed + struct.pack("!BxxxHxx", int(protocol), int(port))
    if kind is SetType.PORT:
        return struct.pack("!BxxxHxx", int(parts[0]), int(parts[1]))
    name = parts[0].encode()
    if len(name) > 15:
        raise DataplaneError(f"interface name {parts[0]!r} is longer than 15 characters")
    return name.ljust(16, b"\0") + (ip_address(parts[1]).packed if len(parts) > 1 else b"")
