"""A socket for packets that rules hand to user space: bound to one group of nflog, or to one queue of nfqueue.

The two speak alike (linux/netfilter/nfnetlink_log.h, nfnetlink_queue.h). The socket stays in the network namespace of
the thread that made it.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from typing import Iterator

from calico_plugin.errors import DataplaneError

NFLOG, NFQUEUE = 4, 3
NFGENMSG = struct.Struct("!BBH")
BIND, COPY_PACKET = 1, 2
_WORDS = {NFLOG: "nflog group", NFQUEUE: "nfqueue"}
_NETLINK_NETFILTER = 12
_PACKET = {NFLOG: NFLOG << 8, NFQUEUE: NFQUEUE << 8}
_CONFIG = {NFLOG: NFLOG << 8 | 1, NFQUEUE: NFQUEUE << 8 | 2}
_ERROR = 2
_REQUEST, _ACK = 0x1, 0x4
_HEADER = struct.Struct("=IHHII")
_RECEIVE = 1 << 17


class PacketSocket:
    """Bound to `number` of a subsystem. Raises DataplaneError, where another program has it, too."""

    def __init__(self, subsystem: int, number: int, buffer: int) -> None:
        self._subsystem, self._number = subsystem, number
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self._socket.bind((0, 0))

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def configure(self, *attributes: bytes) -> None:
        self._send(_CONFIG[self._subsystem], _REQUEST | _ACK, b"".join(attributes))
        while True:
            for kind, answer in _messages(self._socket.recv(_RECEIVE)):
                if kind == _ERROR:
                    if failed := -struct.unpack_from("=i", answer)[0]:
                        raise self._refused(failed)
                    return

    def tell(self, kind: int, *attributes: bytes) -> None:
        """Send a message of the subsystem that nobody answers."""
        self._send(self._subsystem << 8 | kind, _REQUEST, b"".join(attributes))

    def packets(self, seconds: float | None) -> list[bytes] | None:
        """Bodies of the messages that have come, after a wait of so long at most (None: until something comes).

        None: some were lost, the kernel's buffer was full.
        """
        if not select.select([self._socket], [], [], seconds)[0]:
            return []
        try:
            data = self._socket.recv(_RECEIVE)
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                return None
            raise DataplaneError(f"packets cannot be read: {error}", error.errno or 0) from error
        return [body for kind, body in _messages(data) if kind == _PACKET[self._subsystem]]

    def _send(self, kind: int, flags: int, attributes: bytes) -> None:
        body = NFGENMSG.pack(0, 0, self._number) + attributes
        self._socket.send(_HEADER.pack(_HEADER.size + len(body), kind, flags, 1, 0) + body)

    def _refused(self, number: int) -> DataplaneError:
        why = errno.errorcode.get(number, str(number))
        if number in (errno.EBUSY, errno.EPERM):
            # The kernel has one word for both.
            why = "only root may; use sudo -E" if os.geteuid() else "another program listens to it; end that one"
        return DataplaneError(f"{_WORDS[self._subsystem]} {self._number} cannot be followed: {why}", number)


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind = _HEADER.unpack_from(data, offset)[:2]
        if length < _HEADER.size:
            return
        yield kind, data[offset + _HEADER.size:offset + length]
        offset += (length + 3) & ~3
