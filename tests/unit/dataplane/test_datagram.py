"""UDP datagrams, taken out of packets and answered."""

from __future__ import annotations

import socket
import struct

import pytest

from calico_plugin.dataplane.datagram import Datagram, _checksum, parse, reply

FOUR = Datagram(socket.AF_INET, "10.0.0.1", "8.8.8.8", 40000, 53, b"query")
SIX = Datagram(socket.AF_INET6, "fd00::1", "fd00::53", 40000, 53, b"query!")


@pytest.mark.parametrize("query", [FOUR, SIX])
def test_a_reply_goes_the_other_way(query: Datagram) -> None:
    back = parse(reply(query, b"answer"))
    assert back == Datagram(query.family, query.destination, query.source, 53, 40000, b"answer")
    assert parse(reply(back, query.payload)) == query


@pytest.mark.parametrize("payload", [b"", b"a", b"ab", b"\xff" * 301])
def test_checksums(payload: bytes) -> None:
    """The sum over what is summed, with its checksum, is nothing (RFC 1071)."""
    packet = reply(FOUR, payload)
    assert _checksum(packet[:20]) == 0
    pseudo = packet[12:20] + struct.pack("!HH", 17, len(packet) - 20)
    assert _checksum(pseudo + packet[20:]) == 0
    packet = reply(SIX, payload)
    assert _checksum(packet[8:40] + struct.pack("!II", len(packet) - 40, 17) + packet[40:]) == 0


def four(**changes: bytes) -> bytes:
    """A packet with some bytes other than they should be, by place."""
    packet = bytearray(reply(FOUR, b"x"))
    for place, value in changes.items():
        at = int(place.removeprefix("at"))
        packet[at:at + len(value)] = value
    return bytes(packet)


@pytest.mark.parametrize(
    "packet",
    [b"", b"\x45", four()[:27], four(at9=b"\x06"), four(at6=b"\x20\x00"), four(at6=b"\x00\x01"), four(at24=b"\x00\x07"),
     four(at24=b"\xff\xff"), four(at0=b"\x4f"), four(at0=b"\x75"), reply(SIX, b"")[:47]],
)
def test_what_is_no_whole_datagram(packet: bytes) -> None:
    """Other protocols, fragments, lengths that cannot be."""
    assert parse(packet) is None


def test_options_of_ipv4_are_passed_over() -> None:
    plain = four()
    assert parse(b"\x46" + plain[1:20] + bytes(4) + plain[20:]) == parse(plain)
