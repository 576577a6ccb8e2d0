"""gunicorn's threaded worker, cut down to what Docker's calls need.

Each call is one short request on a connection of its own. Of gunicorn's way of serving it this leaves out: a poll
before the first read, times and access log of each request, and a second system call for the answer. That halves
gunicorn's share of a call. Accepting, threads, limits, parsing and the graceful stop are gunicorn's.
"""

from __future__ import annotations

import socket
from typing import Any, Callable, Iterable

from gunicorn.http import wsgi
from gunicorn.workers.gthread import TConn, ThreadWorker

StartResponse = Callable[..., Callable[[bytes], None]]


class PluginWorker(ThreadWorker):
    """One request a connection."""

    def handle(self, conn: TConn) -> bool:
        # Docker sends its request together with the connection; who does not is left to gunicorn, which frees the
        # thread meanwhile.
        if not conn.data_ready:
            conn.data_ready = _has_data(conn.sock)
        handled: bool = super().handle(conn)
        return handled

    def handle_request(self, req: Any, conn: TConn) -> bool:
        """False: the connection is closed, as the answer says."""
        _, environ = wsgi.create(req, conn.sock, conn.client, conn.server, self.cfg)
        environ["wsgi.multithread"] = True
        self.nr += 1
        answer = _Answer()
        parts = self.wsgi(environ, answer.start)
        try:
            answer.send(conn.sock, parts)
        finally:
            if hasattr(parts, "close"):
                parts.close()
        return False


def _has_data(connection: socket.socket) -> bool:
    """Without waiting."""
    try:
        connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        return True
    except BlockingIOError:
        return False


class _Answer:
    """Collects status and headers, and sends all in one piece."""

    def __init__(self) -> None:
        self._head = b""

    def start(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], None]:
        lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers), "Connection: close", "", ""]
        self._head = "\r\n".join(lines).encode("latin-1")
        return self._no_write

    def send(self, connection: socket.socket, parts: Iterable[bytes]) -> None:
        connection.sendall(self._head + b"".join(parts))

    def _no_write(self, data: bytes) -> None:
        raise NotImplementedError("the application answers with its return value")
