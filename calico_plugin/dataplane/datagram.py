"""UDP datagrams in IP packets, pure: taken out of one, and the packet that answers it (RFC 768, 791, 8200)."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

_UDP = 17
_IPV4, _IPV6 = struct.Struct("!BBHHHBBH4s4s"), struct.Struct("!IHBB16s16s")
_PORTS = struct.Struct("!HHHH")
_DO_NOT_FRAGMENT, _FRAGMENT = 0x4000, 0x3FFF
_HOPS = 64


@dataclass(frozen=True, slots=True)
class Datagram:
    """Addresses as text; `family` is AF_INET or AF_INET6."""

    family: int
    source: str
    destination: str
    source_port: int
    destination_port: int
    payload: bytes


def parse(packet: bytes) -> Datagram | None:
    """None for what is no whole UDP datagram: other protocols, fragments, extension headers, cut packets."""
    version = packet[0] >> 4 if packet else 0
    if version == 4 and len(packet) >= _IPV4.size:
        _, _, _, _, fragment, _, protocol, _, source, destination = _IPV4.unpack_from(packet)
        rest = packet[(packet[0] & 15) * 4:]
        family = socket.AF_INET
        protocol = -1 if fragment & _FRAGMENT else protocol
    elif version == 6 and len(packet) >= _IPV6.size:
        _, _, protocol, _, source, destination = _IPV6.unpack_from(packet)
        rest, family = packet[_IPV6.size:], socket.AF_INET6
    else:
        return None
    if protocol != _UDP or len(rest) < _PORTS.size:
        return None
    source_port, destination_port, length, _ = _PORTS.unpack_from(rest)
    if not _PORTS.size <= length <= len(rest):
        return None
    ends = socket.inet_ntop(family, source), socket.inet_ntop(family, destination)
    return Datagram(family, *ends, source_port, destination_port, rest[_PORTS.size:length])


def reply(to: Datagram, payload: bytes) -> bytes:
    """The packet that answers a datagram, from its destination to its source."""
    source, destination = (socket.inet_pton(to.family, text) for text in (to.destination, to.source))
    length = _PORTS.size + len(payload)
    udp = _PORTS.pack(to.destination_port, to.source_port, length, 0) + payload
    pseudo = source + destination + struct.pack("!II", length, _UDP)
    # 0 would mean: no checksum.
    udp = udp[:6] + struct.pack("!H", _checksum(pseudo + udp) or 0xFFFF) + udp[8:]
    if to.family == socket.AF_INET6:
        return _IPV6.pack(6 << 28, length, _UDP, _HOPS, source, destination) + udp
    words = (0x45, 0, _IPV4.size + length, 0, _DO_NOT_FRAGMENT, _HOPS, _UDP)
    header = _IPV4.pack(*words, 0, source, destination)
    return _IPV4.pack(*words, _checksum(header), source, destination) + udp


def _checksum(data: bytes) -> int:
    """RFC 1071."""
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
