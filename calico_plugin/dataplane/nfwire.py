"""Batches of nf_tables messages over netlink: framing, attributes, answers.

A batch is one transaction: the kernel does all of it or nothing. Formats: linux/netfilter/nfnetlink.h and nf_tables.h.
The socket stays in the network namespace of the thread that made it; one thread at a time.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import Iterable, Iterator

from calico_plugin.errors import DataplaneError

NESTED = 0x8000
INET = 1

_NETLINK_NETFILTER = 12
_SUBSYSTEM = 10
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_REQUEST, _ACK = 0x1, 0x4
_ERROR, _DONE = 2, 3
_DUMP, _INTERRUPTED = 0x300, 0x10
_DUMP_TRIES = 10
_RECEIVE = 1 << 18
_GET_TABLE, _TABLE_NAME = 1, 1
_BUFFER = 8 << 20
_SO_SNDBUFFORCE = 32
_TIMEOUT = 30.0

Message = tuple[int, int, bytes]
"""nf_tables message type, flags, attributes."""


def attribute(kind: int, body: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(body), kind) + body + bytes(-len(body) % 4)


def nested(kind: int, *parts: bytes) -> bytes:
    return attribute(kind | NESTED, b"".join(parts))


def number(kind: int, value: int) -> bytes:
    """32 bits, big-endian as all of nf_tables' numbers."""
    return attribute(kind, struct.pack("!I", value))


def string(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


class Link:
    """A netlink socket for transactions on nf_tables."""

    def __init__(self) -> None:
        self._sequence = 0
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
        except OSError as error:
            raise DataplaneError(f"netfilter's netlink socket: {error}", error.errno or 0) from error
        self._socket.bind((0, 0))
        self._socket.settimeout(_TIMEOUT)

    def run(self, messages: Iterable[Message]) -> None:
        """One transaction. Raises DataplaneError with the kernel's errno; then nothing was done."""
        first = self._sequence + 1
        batch, last = self._batch(list(messages))
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, max(_BUFFER, 2 * len(batch)))
            self._socket.send(batch)
            self._await(first, last)
        except OSError as error:
            raise DataplaneError(f"nftables: {error}", error.errno or 0) from error

    def has_table(self, name: str) -> bool:
        """Whether there is an `inet` table of that name. Raises DataplaneError."""
        body = struct.pack("!BBH", INET, 0, 0) + string(_TABLE_NAME, name)
        try:
            self._socket.send(self._message(_SUBSYSTEM << 8 | _GET_TABLE, _REQUEST | _ACK, body))
            self._await(self._sequence, self._sequence)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return False
            raise DataplaneError(f"nftables: {error}", error.errno or 0) from error
        return True

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        """Attributes of each object that the kernel lists. Raises DataplaneError."""
        try:
            for _ in range(_DUMP_TRIES):
                found = self._dump(kind, body)
                if found is not None:
                    return found
        except OSError as error:
            raise DataplaneError(f"nftables: {error}", error.errno or 0) from error
        raise DataplaneError(f"nftables: the table changed under {_DUMP_TRIES} readings", errno.EINTR)

    def _dump(self, kind: int, body: bytes) -> list[bytes] | None:
        """None when the list raced with a change."""
        header = struct.pack("!BBH", INET, 0, 0)
        self._socket.send(self._message(_SUBSYSTEM << 8 | kind, _REQUEST | _DUMP, header + body))
        found: list[bytes] = []
        interrupted = False
        while True:
            for number, kind_, flags, payload in _messages(self._socket.recv(_RECEIVE)):
                if number != self._sequence:
                    continue
                interrupted = interrupted or bool(flags & _INTERRUPTED)
                if kind_ == _ERROR and (code := -struct.unpack_from("=i", payload)[0]):
                    raise OSError(code, os.strerror(code))
                if kind_ in (_DONE, _ERROR):
                    return None if interrupted else found
                found.append(payload[4:])

    def close(self) -> None:
        self._socket.close()

    def _batch(self, messages: list[Message]) -> tuple[bytes, int]:
        """The whole transaction, and the number of its last message, which alone asks for an answer."""
        limits = struct.pack("!BBH", 0, 0, _SUBSYSTEM)
        header = struct.pack("!BBH", INET, 0, 0)
        parts = [self._message(_BATCH_BEGIN, _REQUEST, limits)]
        for index, (kind, flags, body) in enumerate(messages):
            asked = _ACK if index == len(messages) - 1 else 0
            parts.append(self._message(_SUBSYSTEM << 8 | kind, _REQUEST | flags | asked, header + body))
        last = self._sequence
        parts.append(self._message(_BATCH_END, _REQUEST, limits))
        return b"".join(parts), last

    def _message(self, kind: int, flags: int, body: bytes) -> bytes:
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        return struct.pack("=IHHII", 16 + len(body), kind, flags, self._sequence, 0) + body

    def _await(self, first: int, last: int) -> None:
        """Read answers until the last message's; the first error is what went wrong.

        A batch that is not even looked at (no permission) is answered at its first message alone.
        """
        failed = 0
        while True:
            for answered, code in _answers(self._socket.recv(1 << 16)):
                if not first <= answered <= last:
                    continue  # the late answer of a transaction that was given up
                failed = failed or code
                if answered == last or (code and answered == first):
                    if failed:
                        raise OSError(failed, os.strerror(failed))
                    return


def _answers(data: bytes) -> Iterator[tuple[int, int]]:
    """(sequence number of the message, errno or 0)."""
    for answered, kind, _, payload in _messages(data):
        if kind == _ERROR:
            yield answered, -struct.unpack_from("=i", payload)[0]


def _messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """(sequence number, type, flags, payload)."""
    position = 0
    while position + 16 <= len(data):
        length, kind, flags, answered, _ = struct.unpack_from("=IHHII", data, position)
        yield answered, kind, flags, data[position + 16:position + length]
        position += max(16, length + 3 & ~3)
