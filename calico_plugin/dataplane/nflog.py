"""What our rules tell user space of packets, through an nflog group (linux/netfilter/nfnetlink_log.h).

One program at a time may listen to a group. The kernel's queue is bounded; what does not fit is dropped and counted.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

from calico_plugin.dataplane.libnftables import Session
from calico_plugin.dataplane.netlink import attribute, attributes
from calico_plugin.dataplane.nfgroup import BIND, COPY_PACKET, NFGENMSG, NFLOG, PacketSocket
from calico_plugin.errors import DataplaneError

_CFG_CMD, _CFG_MODE, _CFG_TIMEOUT, _CFG_QTHRESH = 1, 2, 4, 5
_COPY_BYTES = 128
_PAYLOAD, _PREFIX = 9, 10
_BUFFER = 1 << 20
_SOON = 1  # hundredths of a second


@dataclass(frozen=True, slots=True)
class Logged:
    """One packet: the rule's prefix and, as far as the packet says, its ends. `lost`: others were dropped before."""

    prefix: str
    source: str = ""
    destination: str = ""
    protocol: int = 0
    source_port: int | None = None
    destination_port: int | None = None
    icmp_type: int | None = None
    lost: bool = False


def is_supported() -> bool:
    """Whether the kernel has nflog: a rule that it does not take would close its chain."""
    probe = "add table inet calico-probe; add chain inet calico-probe c; add rule inet calico-probe c "
    session = Session()
    try:
        session.check(probe + "limit rate 1/second log group 1")
    except DataplaneError:
        return False
    finally:
        session.close()
    return True


class Listener:
    """Bound to a group of the network namespace in which it is made. Raises DataplaneError."""

    def __init__(self, group: int) -> None:
        self._socket = PacketSocket(NFLOG, group, _BUFFER)
        self._socket.configure(attribute(_CFG_CMD, bytes([BIND])))
        self._socket.configure(attribute(_CFG_MODE, struct.pack("!IBB", _COPY_BYTES, COPY_PACKET, 0)))
        for kind, value in ((_CFG_TIMEOUT, _SOON), (_CFG_QTHRESH, 1)):
            self._socket.configure(attribute(kind, struct.pack("!I", value)))

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def read(self, seconds: float | None) -> list[Logged]:
        """What has come, after a wait of so long at most (None: until something comes)."""
        bodies = self._socket.packets(seconds)
        return [Logged("", lost=True)] if bodies is None else [packet(body) for body in bodies]


def packet(body: bytes) -> Logged:
    """A message's content; a packet that is cut short or strange tells less."""
    parts = dict(attributes(body, NFGENMSG.size))
    prefix = parts.get(_PREFIX, b"").rstrip(b"\0").decode("ascii", "replace")
    data = parts.get(_PAYLOAD, b"")
    version = data[0] >> 4 if data else 0
    if version == 4 and len(data) >= 20:
        return _with_ports(prefix, socket.AF_INET, data[12:16], data[16:20], data[9], data[(data[0] & 15) * 4:])
    if version == 6 and len(data) >= 40:
        return _with_ports(prefix, socket.AF_INET6, data[8:24], data[24:40], data[6], data[40:])
    return Logged(prefix)


def _with_ports(prefix: str, family: int, source: bytes, destination: bytes, protocol: int, rest: bytes) -> Logged:
    ends = socket.inet_ntop(family, source), socket.inet_ntop(family, destination)
    if protocol in (1, 58) and rest:
        return Logged(prefix, *ends, protocol, icmp_type=rest[0])
    if protocol in (6, 17, 132, 136) and len(rest) >= 4:
        return Logged(prefix, *ends, protocol, *struct.unpack_from("!HH", rest))
    return Logged(prefix, *ends, protocol)
