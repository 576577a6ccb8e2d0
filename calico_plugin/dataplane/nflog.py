"""What our rules tell user space of packets, through an nflog group (linux/netfilter/nfnetlink_log.h).

One program at a time may listen to a group. The kernel's queue is bounded; what does not fit is dropped and counted.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from dataclasses import dataclass
from typing import Iterator

from calico_plugin.dataplane.libnftables import Session
from calico_plugin.dataplane.netlink import attribute, attributes
from calico_plugin.errors import DataplaneError

_NETLINK_NETFILTER = 12
_PACKET, _CONFIG = 4 << 8, 4 << 8 | 1
_ERROR = 2
_REQUEST, _ACK = 0x1, 0x4
_HEADER, _NFGENMSG = struct.Struct("=IHHII"), struct.Struct("!BBH")
_CFG_CMD, _CFG_MODE, _CFG_TIMEOUT, _CFG_QTHRESH = 1, 2, 4, 5
_BIND, _COPY_PACKET, _COPY_BYTES = 1, 2, 128
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
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        self._socket.bind((0, 0))
        self._configure(group, attribute(_CFG_CMD, bytes([_BIND])))
        self._configure(group, attribute(_CFG_MODE, struct.pack("!IBB", _COPY_BYTES, _COPY_PACKET, 0)))
        for kind, value in ((_CFG_TIMEOUT, _SOON), (_CFG_QTHRESH, 1)):
            self._configure(group, attribute(kind, struct.pack("!I", value)))

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def read(self, seconds: float | None) -> list[Logged]:
        """What has come, after a wait of so long at most (None: until something comes)."""
        if not select.select([self._socket], [], [], seconds)[0]:
            return []
        try:
            data = self._socket.recv(1 << 17)
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                return [Logged("", lost=True)]
            raise DataplaneError(f"logged packets cannot be read: {error}", error.errno or 0) from error
        return [packet(body) for kind, body in _messages(data) if kind == _PACKET]

    def _configure(self, group: int, command: bytes) -> None:
        body = _NFGENMSG.pack(0, 0, group) + command
        self._socket.send(_HEADER.pack(_HEADER.size + len(body), _CONFIG, _REQUEST | _ACK, 1, 0) + body)
        while True:
            for kind, answer in _messages(self._socket.recv(1 << 16)):
                if kind == _ERROR:
                    failed = -struct.unpack_from("=i", answer)[0]
                    if failed:
                        raise _refused(group, failed)
                    return


def _refused(group: int, number: int) -> DataplaneError:
    why = errno.errorcode.get(number, str(number))
    if number in (errno.EBUSY, errno.EPERM):
        # The kernel has one word for both.
        why = "only root may; use sudo -E" if os.geteuid() else "another program listens to it; end that one"
    return DataplaneError(f"nflog group {group} cannot be followed: {why}", number)


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind = _HEADER.unpack_from(data, offset)[:2]
        if length < _HEADER.size:
            return
        yield kind, data[offset + _HEADER.size:offset + length]
        offset += (length + 3) & ~3


def packet(body: bytes) -> Logged:
    """A message's content; a packet that is cut short or strange tells less."""
    parts = dict(attributes(body, _NFGENMSG.size))
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
