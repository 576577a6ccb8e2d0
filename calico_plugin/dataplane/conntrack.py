"""Forget the connections of addresses that left this host, before they are given to others (policy 4.7); list those of
some addresses, and cut some.

An entry is deleted when the source of its original or of its reply direction is one of the addresses. A new kernel
tells cheaply which there are (`conntext`). Else, and where there are very many, it is asked for dumps: it filters by
one address (Linux >= 5.8; an older one sends all and we look ourselves); for several, one dump of all may be cheaper. A
dump costs milliseconds whatever it finds, so the caller collects addresses and calls from a thread of its own.
"""

from __future__ import annotations

import errno
import re
import socket
import struct
from dataclasses import dataclass
from typing import Collection, Iterable, Iterator, Mapping

from calico_plugin.dataplane import conntext, sysctl
from calico_plugin.dataplane.netlink import Message, Netlink, attribute, attributes, nested, refusal

_CT_GET, _CT_DELETE = (1 << 8) | 1, (1 << 8) | 2
_NFGENMSG = struct.Struct("=BBH")
_CTA_TUPLE_ORIG, _CTA_TUPLE_REPLY, _CTA_ID, _CTA_ZONE, _CTA_FILTER = 1, 2, 12, 18, 25
_CTA_TUPLE_IP, _CTA_TUPLE_PROTO = 1, 2
_CTA_STATUS, _EXPECTED, _DESTINATION_TRANSLATED = 3, 1, 32
_CTA_PROTO_NUM, _CTA_PROTO_SRC_PORT, _CTA_PROTO_DST_PORT = 1, 2, 3
_CTA_PROTO_ICMP = {1: (5, 6), 58: (8, 9)}
_CTA_IP_SRC: dict[int, int] = {socket.AF_INET: 1, socket.AF_INET6: 3}
_FILTER_IP_SRC, _FILTER_PROTOCOL, _FILTER_DESTINATION_PORT = 1, 8, 32
_WHAT = "connections of a released address cannot be forgotten"

# What a look costs: the kernel walks all buckets for each dump (5 to 9 ms), and each entry that it sends costs us as
# much again as this.
_WALK_SECONDS, _ENTRY_SECONDS = 5e-3, 2e-6
_BATCH = 64
_COUNT = "net/netfilter/nf_conntrack_count"


def forget(netlink: Netlink, addresses: Collection[str]) -> int:
    """Delete the entries of the addresses (both IP versions); how many. `netlink` speaks NETLINK_NETFILTER.

    Raises DataplaneError.
    """
    deletions: dict[bytes, Message] = {}
    for family in (socket.AF_INET, socket.AF_INET6):
        for _, message in _of_addresses(netlink, family, addresses):
            deletions[message.body] = message
    return _delete(netlink, list(deletions.values()))


def forget_ports(netlink: Netlink, version: int, protocol: int, ports: Collection[int]) -> int:
    """Delete the entries of connections to some ports that went on to where they were sent; how many. Their next packet
    is a first one again, which rules of translation see. Raises DataplaneError.
    """
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    # The kernel can look for one port; for several it sends all of the protocol.
    asked, flags = attribute(_CTA_PROTO_NUM, bytes([protocol])), _FILTER_PROTOCOL
    if len(ports) == 1:
        asked += attribute(_CTA_PROTO_DST_PORT, struct.pack("!H", *ports))
        flags |= _FILTER_DESTINATION_PORT
    sides = ((_CTA_TUPLE_ORIG, flags), (_CTA_TUPLE_REPLY, 0))
    chosen = (attribute(side, struct.pack("=I", bits)) for side, bits in sides)
    only = nested(_CTA_TUPLE_ORIG, nested(_CTA_TUPLE_PROTO, asked)) + nested(_CTA_FILTER, *chosen)
    request = Message(_CT_GET, 0, _NFGENMSG.pack(family, 0, 0) + only, _WHAT)
    found = (_untranslated(family, entry, protocol, ports) for entry in netlink.dump(request))
    return _delete(netlink, [message for message in found if message is not None])


def _untranslated(family: int, entry: bytes, protocol: int, ports: Collection[int]) -> Message | None:
    found = dict(attributes(entry, _NFGENMSG.size))
    asked = dict(attributes(dict(attributes(found.get(_CTA_TUPLE_ORIG, b""))).get(_CTA_TUPLE_PROTO, b"")))
    status = int.from_bytes(found.get(_CTA_STATUS, b""), "big")
    wanted = asked.get(_CTA_PROTO_NUM, b"\0")[0] == protocol and _port(asked.get(_CTA_PROTO_DST_PORT)) in ports
    return _message(family, found) if wanted and not status & _DESTINATION_TRANSLATED else None


@dataclass(frozen=True, slots=True)
class Connection:
    """An entry of the kernel's table as policy sees its first packet: after DNAT, before SNAT.

    `expected`: another connection announced it (it is `related` there). `translated`: its destination is not the one
    that the client asked for. Ports and ICMP fields are None where it has none.
    """

    source: str
    destination: str
    protocol: int
    source_port: int | None
    destination_port: int | None
    icmp_type: int | None
    icmp_code: int | None
    expected: bool
    translated: bool
    deletion: Message


def listing(netlink: Netlink, addresses: Collection[str]) -> Iterator[Connection]:
    """Connections that one of the addresses (both IP versions) started or answers; one may come twice. Raises
    DataplaneError.
    """
    for family in (socket.AF_INET, socket.AF_INET6):
        for entry, deletion in _of_addresses(netlink, family, addresses):
            yield _connection(family, entry, deletion)


def cut(netlink: Netlink, connections: Iterable[Connection]) -> int:
    """Delete entries, so that the next packet of each counts as the first of a new connection; how many were there.

    Raises DataplaneError.
    """
    return _delete(netlink, [connection.deletion for connection in connections])


def _connection(family: int, entry: bytes, deletion: Message) -> Connection:
    parts = dict(attributes(entry, _NFGENMSG.size))
    original, reply = (dict(attributes(parts.get(side, b""))) for side in (_CTA_TUPLE_ORIG, _CTA_TUPLE_REPLY))
    asked, answers = (dict(attributes(side.get(_CTA_TUPLE_PROTO, b""))) for side in (original, reply))
    protocol = asked.get(_CTA_PROTO_NUM, b"\0")[0]
    status = int.from_bytes(parts.get(_CTA_STATUS, b""), "big")
    kind, code = (asked.get(one) for one in _CTA_PROTO_ICMP.get(protocol, (0, 0)))
    return Connection(
        source=socket.inet_ntop(family, _source(family, parts[_CTA_TUPLE_ORIG])),
        destination=socket.inet_ntop(family, _source(family, parts[_CTA_TUPLE_REPLY])),
        protocol=protocol,
        source_port=_port(asked.get(_CTA_PROTO_SRC_PORT)),
        destination_port=_port(answers.get(_CTA_PROTO_SRC_PORT)),
        icmp_type=kind[0] if kind else None,
        icmp_code=code[0] if code else None,
        expected=bool(status & _EXPECTED),
        translated=bool(status & _DESTINATION_TRANSLATED),
        deletion=deletion,
    )


def _port(value: bytes | None) -> int | None:
    return int.from_bytes(value[:2], "big") if value else None


def _delete(netlink: Netlink, messages: list[Message]) -> int:
    deleted = 0
    for start in range(0, len(messages), _BATCH):
        for reply in netlink.send(messages[start:start + _BATCH]):
            if reply.errno not in (0, errno.ENOENT):  # an entry that ended by itself is as good
                raise refusal(messages[0].what, reply.errno, reply.explanation)
            deleted += reply.errno == 0
    return deleted


def _of_addresses(netlink: Netlink, family: int, addresses: Collection[str]) -> Iterator[tuple[bytes, Message]]:
    """Each entry with what deletes it; one may come twice."""
    wanted = {socket.inet_pton(family, text) for text in addresses if (":" in text) == (family == socket.AF_INET6)}
    count = sysctl.read(_COUNT)
    if not wanted or count == "0":
        return
    # Most entries of an unfiltered dump are ruled out by one search in C.
    mentioned = re.compile(b"|".join(map(re.escape, wanted)), re.DOTALL)
    for entry in _entries(netlink, family, wanted, int(count or 0)):
        deletion = _deletion(family, entry, wanted) if mentioned.search(entry) else None
        if deletion is not None:
            yield entry, deletion


def _entries(netlink: Netlink, family: int, wanted: set[bytes], count: int) -> Iterator[bytes]:
    """Those of the addresses, and maybe others, of `count` in all."""
    # Two dumps for each address, and as text an entry costs twice as much.
    if count * _ENTRY_SECONDS < len(wanted) * _WALK_SECONDS and conntext.is_told():
        try:
            told = list(conntext.identities(family, wanted))
        except OSError:
            pass  # a kernel without it, or one that writes something new
        else:
            yield from _asked_for(netlink, family, told)
            return
    for request in _requests(family, wanted, count):
        yield from netlink.dump(request)


def _asked_for(netlink: Netlink, family: int, identities: list[bytes]) -> Iterator[bytes]:
    """The entries; of those that have ended meanwhile nothing."""
    header = _NFGENMSG.pack(family, 0, 0)
    messages = [Message(_CT_GET, 0, header + identity, _WHAT) for identity in identities]
    for start in range(0, len(messages), _BATCH):
        for reply in netlink.send(messages[start:start + _BATCH]):
            if reply.errno not in (0, errno.ENOENT):
                raise refusal(_WHAT, reply.errno, reply.explanation)
            yield from reply.objects


def _requests(family: int, wanted: set[bytes], entries: int) -> list[Message]:
    if 2 * len(wanted) * _WALK_SECONDS > _WALK_SECONDS + entries * _ENTRY_SECONDS:
        return [Message(_CT_GET, 0, _NFGENMSG.pack(family, 0, 0), _WHAT)]
    return [
        Message(_CT_GET, 0, _NFGENMSG.pack(family, 0, 0) + _filter(family, address, direction), _WHAT)
        for address in wanted
        for direction in (_CTA_TUPLE_ORIG, _CTA_TUPLE_REPLY)
    ]


def _filter(family: int, address: bytes, direction: int) -> bytes:
    source = attribute(_CTA_IP_SRC[family], address)
    flags = (
        attribute(tuple_, struct.pack("=I", _FILTER_IP_SRC if tuple_ == direction else 0))
        for tuple_ in (_CTA_TUPLE_ORIG, _CTA_TUPLE_REPLY)
    )
    return nested(direction, nested(_CTA_TUPLE_IP, source)) + nested(_CTA_FILTER, *flags)


def _deletion(family: int, entry: bytes, wanted: set[bytes]) -> Message | None:
    found = dict(attributes(entry, _NFGENMSG.size))
    sources = (_source(family, found.get(direction, b"")) for direction in (_CTA_TUPLE_ORIG, _CTA_TUPLE_REPLY))
    if not any(source in wanted for source in sources):
        return None
    return _message(family, found)


def _message(family: int, found: Mapping[int, bytes]) -> Message:
    body = _NFGENMSG.pack(family, 0, 0) + nested(_CTA_TUPLE_ORIG, found[_CTA_TUPLE_ORIG])
    for kind in (_CTA_ZONE, _CTA_ID):
        if kind in found:
            body += attribute(kind, found[kind])
    return Message(_CT_DELETE, 0, body, _WHAT)


def _source(family: int, tuple_: bytes) -> bytes:
    addresses = dict(attributes(dict(attributes(tuple_)).get(_CTA_TUPLE_IP, b"")))
    return addresses.get(_CTA_IP_SRC[family], b"")
