"""Several programs that follow the packets of one nflog group, of which the kernel tells only one.

Who has the group opens a door, an abstract unix socket: like the group it belongs to the network namespace. Others come
in by it and are told the same; when the first ends, one of them takes the group. Only root may follow.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from typing import Protocol

import msgspec

from calico_plugin.dataplane.nflog import Listener, Logged
from calico_plugin.errors import DataplaneError

_DOOR = "\0calico-policy-log-{}"
_CREDENTIALS = struct.Struct("=iII")
_MESSAGE = 1 << 18
# The first has ended, and nobody has the group yet: two may try at once.
_TRIES, _PAUSE = 20, 0.05


class _Ended(Exception):
    """Who has told us is gone."""


class _Source(Protocol):
    def read(self, seconds: float | None) -> list[Logged]: ...

    def close(self) -> None: ...


class Following:
    """Packets of a group, whoever else follows it. Raises DataplaneError when a stranger has it."""

    def __init__(self, group: int) -> None:
        self._group = group
        self._source = _source(group)

    def read(self, seconds: float | None) -> list[Logged]:
        """What has come, after a wait of so long at most (None: until something comes)."""
        over = None if seconds is None else time.monotonic() + seconds
        while True:
            try:
                return self._source.read(None if over is None else max(0.0, over - time.monotonic()))
            except _Ended:
                self._source.close()
                self._source = _source(self._group)

    def close(self) -> None:
        self._source.close()


def _source(group: int) -> _Source:
    for _ in range(_TRIES):
        try:
            return _First(group)
        except DataplaneError as error:
            refused = error
        try:
            return _Guest(group)
        except OSError:
            time.sleep(_PAUSE)
    raise refused


class _First:
    """Has the group, and hands on what it is told."""

    def __init__(self, group: int) -> None:
        self._listener = Listener(group)
        self._guests: list[socket.socket] = []
        self._door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            self._door.bind(_DOOR.format(group))
            self._door.listen()
        except OSError:
            pass  # somebody has put himself there: nobody else can follow, we can

    def read(self, seconds: float | None) -> list[Logged]:
        over = None if seconds is None else time.monotonic() + seconds
        sources: list[Listener | socket.socket] = [self._listener, self._door]
        while True:
            left = None if over is None else max(0.0, over - time.monotonic())
            ready = select.select(sources, [], [], left)[0]
            if self._door in ready:
                self._let_in()
            if self._listener in ready:
                packets = self._listener.read(0)
                self._hand_on(packets)
                return packets
            if not ready:
                return []

    def close(self) -> None:
        # First the group: who hears of our end takes it.
        self._listener.close()
        for one in (self._door, *self._guests):
            one.close()

    def _let_in(self) -> None:
        try:
            guest, _ = self._door.accept()
        except OSError:
            return
        guest.setblocking(False)
        if _is_root(guest):
            self._guests.append(guest)
        else:
            guest.close()

    def _hand_on(self, packets: list[Logged]) -> None:
        message = msgspec.json.encode(packets)
        for guest in tuple(self._guests):
            try:
                guest.send(message)
            except BlockingIOError:
                continue  # too slow: what does not fit is lost, as with the kernel
            except OSError:
                self._guests.remove(guest)
                guest.close()


class _Guest:
    """Is told by whoever has the group. Raises OSError when nobody lets it in."""

    def __init__(self, group: int) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._socket.connect(_DOOR.format(group))
            if not _is_root(self._socket):
                raise PermissionError("somebody else is behind the door")
        except OSError:
            self._socket.close()
            raise

    def read(self, seconds: float | None) -> list[Logged]:
        if not select.select([self._socket], [], [], seconds)[0]:
            return []
        try:
            message = self._socket.recv(_MESSAGE)
        except ConnectionError:
            raise _Ended from None  # it ended before it had let us in
        if not message:
            raise _Ended
        return msgspec.json.decode(message, type=list[Logged])

    def close(self) -> None:
        self._socket.close()


def _is_root(other: socket.socket) -> bool:
    _, user, _ = _CREDENTIALS.unpack(other.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return user in (0, os.geteuid())
