"""gunicorn's worker for Docker's calls: threads that accept for themselves.

Each call is one short request on a connection of its own, and many wait (for etcd, for the agent). So each thread
accepts, answers and closes, on both sockets; a connection wakes exactly one of them. gunicorn's own threaded worker
hands each connection from the main thread to a pool and back, which costs as much as the rest of a small call.
Parsing, the WSGI environment, supervision and signals are gunicorn's.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
import time
from typing import Any, Callable, Iterable

from gunicorn.http import wsgi
from gunicorn.workers.sync import SyncWorker

from calico_plugin.driver import request

# Docker sends its request together with the connection. Who connects and sends nothing must not hold a thread for long.
_RECEIVE_SECONDS = 2
_TIMEVAL = struct.pack("ll", _RECEIVE_SECONDS, 0)
_TICK_SECONDS = 1.0
# A connection wakes one thread, which arms the socket again when it has taken it. (Waiting for both sockets with a
# private, exclusive epoll in each thread loses wake-ups: a thread woken for one socket may take a call from the other
# first.)
_ONE_THREAD = select.EPOLLIN | select.EPOLLONESHOT


class PluginWorker(SyncWorker):
    """`cfg.threads` threads; calls on their way are finished within `cfg.graceful_timeout` after SIGTERM."""

    def run(self) -> None:
        # Readable as soon as it is closed at the other end: that stops all threads at once.
        stop, running = os.pipe()
        with select.epoll() as ready:
            for listener in self.sockets:
                listener.setblocking(False)
                ready.register(listener, _ONE_THREAD)
            ready.register(stop, select.EPOLLIN | select.EPOLLHUP)
            threads = [
                threading.Thread(target=self._serve, args=(ready, stop), name=f"call-{n}", daemon=True)
                for n in range(self.cfg.threads)
            ]
            for thread in threads:
                thread.start()
            while self.alive and self.is_parent_alive():
                self.notify()
                select.select([self.PIPE[0]], [], [], _TICK_SECONDS)
            os.close(running)
            self._await(threads)

    def _await(self, threads: Iterable[threading.Thread]) -> None:
        over = time.monotonic() + self.cfg.graceful_timeout
        for thread in threads:
            while thread.is_alive() and time.monotonic() < over:
                self.notify()
                thread.join(_TICK_SECONDS)

    def _serve(self, ready: select.epoll, stop: int) -> None:
        """One thread: calls, one after the other, until the worker stops."""
        listeners = {listener.fileno(): listener for listener in self.sockets}
        while True:
            for descriptor, _ in ready.poll(maxevents=1):
                if descriptor == stop:
                    return
                client = _accept(listeners[descriptor])
                # Only now may the next connection wake the next thread; one that waits already does so at once.
                ready.modify(descriptor, _ONE_THREAD)
                if client is not None:
                    self.handle(listeners[descriptor], client, "")

    def handle(self, listener: Any, client: socket.socket, addr: Any) -> None:
        """One connection: Docker's form at once, anything else by gunicorn's parser and its rules."""
        try:
            data = client.recv(request.PIECE)
            parsed = request.parse(data)
            if parsed is None:
                super().handle(listener, _Unread(client, data), addr)
                return
            path, start, length = parsed
            content = request.body(data, start, length, client)
            if content is not None:
                self._answer(request.environ(path, content, client), client)
        except OSError as error:
            # The caller has gone, or says nothing.
            self.log.debug("connection closed: %s", error)
        except Exception:
            self.log.exception("a connection broke")
        finally:
            client.close()

    def handle_request(self, listener: Any, req: Any, client: socket.socket, addr: Any) -> None:
        """What gunicorn's parser has read. Its log of requests and its answers in pieces are left out."""
        _, environ = wsgi.create(req, client, addr, listener.getsockname(), self.cfg)
        environ["wsgi.multithread"] = True
        self._answer(environ, client)

    def _answer(self, environ: dict[str, Any], client: socket.socket) -> None:
        answer = _Answer()
        parts = self.wsgi(environ, answer.start)
        try:
            answer.send(client, parts)
        finally:
            if hasattr(parts, "close"):
                parts.close()


def _accept(listener: Any) -> socket.socket | None:
    try:
        client: socket.socket = listener.accept()[0]
    except OSError:
        # The caller has gone already.
        return None
    client.setblocking(True)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEVAL)
    return client


class _Unread:
    """A connection of which the first bytes were read already."""

    def __init__(self, connection: socket.socket, data: bytes) -> None:
        self._connection, self._data = connection, data

    def recv(self, size: int, *flags: int) -> bytes:
        if self._data:
            part, self._data = self._data[:size], self._data[size:]
            return part
        return self._connection.recv(size, *flags)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


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
