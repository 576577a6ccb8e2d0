"""The kernel's connections as text, /proc/net/nf_conntrack: which there are, cheaper than by a dump over netlink.

A dump locks each bucket of the table in turn: 9 ms for 262,144 of them, however few connections there are, and packets
wait for these locks. The text needs none: 0.2 ms, and 2 µs for each connection. It names them by addresses and ports;
whatever else is to be known of one is asked for by these.

Only kernels that remember their place in the table are asked. Older ones (6.17 at the latest) find it again for each
page by counting, so that a connection that ends meanwhile hides another.
"""

from __future__ import annotations

import os
import re
import socket
import struct
from pathlib import Path
from typing import Collection, Iterator

from calico_plugin.dataplane.netlink import attribute, nested

PATH = Path("/proc/thread-self/net/nf_conntrack")
_SINCE = (6, 18)
_CTA_TUPLE_ORIG, _CTA_ZONE = 1, 18
_CTA_TUPLE_IP, _CTA_TUPLE_PROTO = 1, 2
_CTA_IP: dict[int, tuple[int, int]] = {socket.AF_INET: (1, 2), socket.AF_INET6: (3, 4)}
_CTA_PROTO_NUM, _CTA_PROTO_PORTS = 1, (2, 3)
# Type, code, id.
_CTA_PROTO_ICMP = {b"icmp": (5, 6, 4), b"icmpv6": (8, 9, 7)}
_LINE = re.compile(
    rb"^(?P<family>ipv[46]) +\d+ +(?P<name>\S+) +(?P<number>\d+) .*?\bsrc=(?P<source>\S+) dst=(?P<destination>\S+) "
    rb"(?:sport=(?P<sport>\d+) dport=(?P<dport>\d+) |type=(?P<type>\d+) code=(?P<code>\d+) id=(?P<id>\d+) "
    rb"|srckey=0x(?P<skey>[0-9a-f]+) dstkey=0x(?P<dkey>[0-9a-f]+) )?.*?\bsrc=(?P<answers>\S+) "
)
_ZONE = re.compile(rb" zone=(\d+)")


def is_told(path: Path = PATH, release: str = os.uname().release) -> bool:
    """Whether this kernel tells it, all of it."""
    version = tuple(map(int, re.findall(r"\d+", release)[:2]))
    return version >= _SINCE and path.exists()


def identities(family: int, wanted: Collection[bytes], path: Path = PATH) -> Iterator[bytes]:
    """What names each connection of `family` that starts at, or is answered by, one of the addresses (4 or 16 bytes):
    attributes for messages of nfnetlink_conntrack. Raises OSError.
    """
    texts = {_text(family, address) for address in wanted}
    wanted_family = b"ipv4" if family == socket.AF_INET else b"ipv6"
    for line in path.read_bytes().splitlines():
        found = _LINE.match(line)
        if found is None:
            raise OSError(f"{path}: {line.decode(errors='replace')!r} cannot be read")
        if found["family"] == wanted_family and (found["source"] in texts or found["answers"] in texts):
            zone = _ZONE.search(line)
            yield _identity(family, found) + (attribute(_CTA_ZONE, struct.pack("!H", int(zone[1]))) if zone else b"")


def _text(family: int, address: bytes) -> bytes:
    """As the kernel writes it: of IPv6 all digits."""
    if family == socket.AF_INET:
        return socket.inet_ntop(family, address).encode()
    return b":".join(address[start:start + 2].hex().encode() for start in range(0, 16, 2))


def _identity(family: int, found: re.Match[bytes]) -> bytes:
    addresses = (
        attribute(kind, socket.inet_pton(family, found[end].decode()))
        for kind, end in zip(_CTA_IP[family], ("source", "destination"))
    )
    return nested(_CTA_TUPLE_ORIG, nested(_CTA_TUPLE_IP, *addresses), nested(_CTA_TUPLE_PROTO, *_protocol(found)))


def _protocol(found: re.Match[bytes]) -> Iterator[bytes]:
    yield attribute(_CTA_PROTO_NUM, bytes([int(found["number"])]))
    if found["id"] is not None:
        kind, code, number = _CTA_PROTO_ICMP[found["name"]]
        yield attribute(kind, bytes([int(found["type"])]))
        yield attribute(code, bytes([int(found["code"])]))
        yield attribute(number, struct.pack("!H", int(found["id"])))
    ports = (found["sport"], found["dport"]) if found["sport"] is not None else ()
    keys = (found["skey"], found["dkey"]) if found["skey"] is not None else ()
    numbers = [int(port) for port in ports] or [int(key, 16) for key in keys]
    for kind, value in zip(_CTA_PROTO_PORTS, numbers):
        yield attribute(kind, struct.pack("!H", value))
