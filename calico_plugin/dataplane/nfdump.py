"""What the kernel holds -> the state of our table. Of a chain only what makes it right is read: hook and comments.

Straight netlink, as for writing: libnftables needs seconds and 150 MB for a table of 200,000 members.
"""

from __future__ import annotations

import socket
import struct
from ipaddress import ip_address
from itertools import chain, repeat
from typing import Iterator, Protocol

from calico_plugin.dataplane.nfencode import HOOKS, KEYS, PORT_DATA
from calico_plugin.dataplane.nfsteps import Print, State
from calico_plugin.dataplane.nfwire import string
from calico_plugin.model.desired import AddressSet, Hook, PortMap, SetType, VerdictMap
from calico_plugin.model.names import NFT_TABLE

_GET_CHAIN, _GET_RULE, _GET_SET, _GET_ELEMENTS = 4, 7, 10, 13
_ANONYMOUS, _INTERVAL, _MAP = 1, 4, 8
_GOTO = -4
_HOOK_NAMES = {value: name for name, value in HOOKS.items()}
_TYPE_OF = {value: kind for kind, value in KEYS.items()}
_VERSION_OF = {kind: version for version, (kind, _) in PORT_DATA.items()}
_COMMENT = 0


class Dumper(Protocol):
    """What asks the kernel: `nfwire.Link`."""

    def has_table(self, name: str) -> bool:
        """Whether the table is there."""

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        """Attributes of each object."""


def read(link: Dumper) -> State:
    """Everything in our table. Raises DataplaneError."""
    if not link.has_table(NFT_TABLE):
        return State()
    sets, maps, ports = _read_sets(link)
    return State(True, sets, maps, _read_chains(link), ports)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    position = 0
    while position + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, position)
        yield kind & 0x3FFF, data[position + 4:position + length]
        position += max(4, length + 3 & ~3)


def _text(data: bytes) -> str:
    return data.rstrip(b"\0").decode(errors="replace")


def _number(data: bytes) -> int:
    return int.from_bytes(data, "big")


def _read_sets(link: Dumper) -> tuple[dict[str, AddressSet], dict[str, VerdictMap], dict[str, PortMap]]:
    sets: dict[str, AddressSet] = {}
    maps: dict[str, VerdictMap] = {}
    ports: dict[str, PortMap] = {}
    for body in link.dump(_GET_SET, string(1, NFT_TABLE)):
        found = dict(_attributes(body))
        flags = _number(found.get(3, b""))
        if flags & _ANONYMOUS:
            continue
        name = _text(found[2])
        elements = _elements(link, name)
        version = _VERSION_OF.get(_number(found.get(6, b""))) if flags & _MAP else None
        kind = _TYPE_OF.get((_number(found[4]), _number(found[5])), SetType.INTERFACE)
        if version is not None:
            leads = {_member(kind, key): _destination(data) for key, data, _ in elements}
            ports[name] = PortMap(name, kind, version, leads)
        elif flags & _MAP:
            maps[name] = _map(name, kind, bool(flags & _INTERVAL), elements)
        else:
            sets[name] = _set(name, kind, bool(flags & _INTERVAL), elements)
    return sets, maps, ports


Elements = list[tuple[bytes, bytes, bool]]
"""(key, data, whether it ends an interval)."""


def _elements(link: Dumper, name: str) -> Elements:
    return [
        (_value(parts.get(1, b"")), parts.get(2, b""), bool(_number(parts.get(3, b"")) & 1))
        for body in link.dump(_GET_ELEMENTS, string(1, NFT_TABLE) + string(2, name))
        for kind, listed in _attributes(body) if kind == 3
        for _, item in _attributes(listed)
        for parts in [dict(_attributes(item))]
    ]


def _value(data: bytes) -> bytes:
    return dict(_attributes(data)).get(1, b"")


def _target(data: bytes) -> str:
    verdict = dict(_attributes(dict(_attributes(data)).get(2, b"")))
    code = struct.unpack("!i", verdict.get(1, bytes(4)))[0]
    return _text(verdict.get(2, b"")) if code == _GOTO else f"verdict {code}"


def _destination(data: bytes) -> str:
    value = _value(data)
    return f"{ip_address(value[:-4])} . {_number(value[-4:-2])}"


def _set(name: str, kind: SetType, interval: bool, elements: Elements) -> AddressSet:
    if not interval:
        return AddressSet(name, kind, frozenset(_member(kind, key) for key, _, _ in elements))
    text = _ports if kind is SetType.SERVICE else _network
    return AddressSet(name, kind, frozenset(text(first, behind) for first, _, behind in _intervals(elements)), interval)


def _map(name: str, kind: SetType, interval: bool, elements: Elements) -> VerdictMap:
    if not interval:
        return VerdictMap(name, {_member(kind, key): _target(data) for key, data, _ in elements}, kind)
    text = _ports if kind is SetType.SERVICE else _addresses
    found = {text(first, behind): _target(data) for first, data, behind in _intervals(elements)}
    return VerdictMap(name, found, kind, interval)


def _intervals(elements: Elements) -> Iterator[tuple[bytes, bytes, bytes]]:
    """(first key, data, key behind the last, which is empty at the end of all keys)."""
    starts = sorted((key, data) for key, data, end in elements if not end)
    ends = sorted(key for key, _, end in elements if end and any(key))
    for (first, data), behind in zip(starts, chain(ends, repeat(b""))):
        yield first, data, behind


def _last(first: bytes, behind: bytes) -> int:
    return int.from_bytes(behind, "big") - 1 if behind else (1 << 8 * len(first)) - 1


def _ports(first: bytes, behind: bytes) -> str:
    lowest, highest = _number(first), _last(first, behind)
    return str(lowest) if lowest == highest else f"{lowest}-{highest}"


def _addresses(first: bytes, behind: bytes) -> str:
    lowest, highest = ip_address(first), ip_address(_last(first, behind).to_bytes(len(first), "big"))
    return str(lowest) if lowest == highest else f"{lowest}-{highest}"


def _network(start: bytes, behind: bytes) -> str:
    """Text of an interval; one that is no prefix cannot be ours."""
    last = _last(start, behind)
    first = int.from_bytes(start, "big")
    if last < first:
        return f"{first}-{last}"
    size = last - first + 1
    if size == 1:
        return str(ip_address(start))
    if size & (size - 1) or first % size:
        return f"{ip_address(start)}-{last}"
    return f"{ip_address(start)}/{8 * len(start) - size.bit_length() + 1}"


def _member(kind: SetType, key: bytes) -> str:
    if kind is SetType.IPV4:
        return socket.inet_ntop(socket.AF_INET, key)
    if kind is SetType.IPV6:
        return str(ip_address(key))
    if kind in (SetType.SERVICE, SetType.PROTOCOL):
        return str(_number(key))
    if kind in (SetType.IPV4_PORT, SetType.IPV6_PORT):
        return f"{ip_address(key[:-8])} . {key[-8]} . {_number(key[-4:-2])}"
    if kind is SetType.PORT:
        return f"{key[0]} . {_number(key[4:6])}"
    name = _text(key[:16])
    return f"{name} . {ip_address(key[16:])}" if len(key) > 16 else name


def _read_chains(link: Dumper) -> dict[str, Print]:
    comments: dict[str, list[str]] = {}
    hooks: dict[str, Hook | None] = {}
    for body in link.dump(_GET_CHAIN, string(1, NFT_TABLE)):
        found = dict(_attributes(body))
        if _text(found[1]) == NFT_TABLE:
            name = _text(found[3])
            comments[name], hooks[name] = [], _hook(found)
    for body in link.dump(_GET_RULE, string(1, NFT_TABLE)):
        found = dict(_attributes(body))
        if _text(found[1]) == NFT_TABLE:
            comments.setdefault(_text(found[2]), []).append(_comment(found.get(7, b"")))
    return {name: Print(hooks.get(name), tuple(listed)) for name, listed in comments.items()}


def _hook(found: dict[int, bytes]) -> Hook | None:
    if 4 not in found:
        return None
    parts = dict(_attributes(found[4]))
    number = _number(parts[1])
    return Hook(_text(found[7]), _HOOK_NAMES.get(number, str(number)), struct.unpack("!i", parts[2])[0])


def _comment(userdata: bytes) -> str:
    position = 0
    while position + 2 <= len(userdata):
        kind, length = userdata[position], userdata[position + 1]
        if kind == _COMMENT:
            return _text(userdata[position + 2:position + 2 + length])
        position += 2 + length
    return ""
