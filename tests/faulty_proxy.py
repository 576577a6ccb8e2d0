"""A TCP proxy on loopback that can lose etcd's answers, cut connections and refuse new ones: network faults on order.

It reads only the frame headers of HTTP/2 (RFC 9113, 4.1): an answer begins with a HEADERS frame, and is lost from there
on, after etcd has done what was asked.
"""

from __future__ import annotations

import socket
import struct
import threading
from typing import Iterator

_FRAME_HEADER = 9
_HEADERS_FRAME = 1


class FaultyProxy:
    """Forwards to `port`. Attributes may be set at any time by the test."""

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self.answers_to_lose = 0
        self.lost = 0
        self._refusing = False
        self._open: list[socket.socket] = []
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Close all connections and refuse new ones until `mend`."""
        self._refusing = True
        self._close_all()

    def mend(self) -> None:
        self._refusing = False

    def close(self) -> None:
        _shut(self._listener)
        self._close_all()

    def _close_all(self) -> None:
        with self._lock:
            connections, self._open = self._open, []
        for connection in connections:
            _shut(connection)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._refusing:
                client.close()
                continue
            try:
                server = socket.create_connection(self._target)
            except OSError:
                client.close()
                continue
            with self._lock:
                self._open += [client, server]
            threading.Thread(target=self._forward, args=(client, server), daemon=True).start()
            threading.Thread(target=self._answer, args=(server, client), daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(data)
        except OSError:
            pass
        _shut(source)
        _shut(target)

    def _answer(self, server: socket.socket, client: socket.socket) -> None:
        try:
            for kind, frame in _frames(server):
                if kind == _HEADERS_FRAME and self.answers_to_lose > 0:
                    self.answers_to_lose -= 1
                    self.lost += 1
                    break
                client.sendall(frame)
        except OSError:
            pass
        _shut(server)
        _shut(client)


def _frames(source: socket.socket) -> Iterator[tuple[int, bytes]]:
    """(type, whole frame) until the connection ends."""
    buffer = b""
    while data := source.recv(65536):
        buffer += data
        while len(buffer) >= _FRAME_HEADER:
            length = struct.unpack(">I", b"\0" + buffer[:3])[0] + _FRAME_HEADER
            if len(buffer) < length:
                break
            yield buffer[3], buffer[:length]
            buffer = buffer[length:]


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    connection.close()
