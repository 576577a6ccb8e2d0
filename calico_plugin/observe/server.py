"""Serves metrics and health, each on a port of its own, apart from Docker's sockets.

A port that is taken is tried again.
"""

from __future__ import annotations

import http.server
import threading
from typing import Callable, Mapping

import structlog

from calico_plugin.observe.health import Answer, Health

TEXT = "text/plain; version=0.0.4; charset=utf-8"
_AGAIN_SECONDS = 1.0
_LOUD_EVERY = 60
_TURN_SECONDS = 0.5

Page = Callable[[], tuple[int, bytes]]


def metrics_pages(page: Callable[[], bytes]) -> dict[str, Page]:
    return {"/metrics": lambda: (200, page())}


def health_pages(health: Health) -> dict[str, Page]:
    def page(answer: Answer) -> tuple[int, bytes]:
        return (200 if answer.good else 503), answer.text.encode()

    return {"/liveness": lambda: page(health.liveness()), "/readiness": lambda: page(health.readiness())}


class Server:
    """One port in a thread of its own, from `start` to `close`. `host` "" means all addresses."""

    def __init__(self, host: str, port: int, pages: Mapping[str, Page]) -> None:
        self._address = (host, port)
        self._handler = _handler(pages)
        self._stop = threading.Event()
        self._log = structlog.get_logger(part="observe", port=port)
        self._thread = threading.Thread(target=self._run, name=f"http-{port}", daemon=True)

    def start(self) -> Server:
        self._thread.start()
        return self

    def close(self) -> None:
        """Ends within half a second."""
        self._stop.set()

    def _run(self) -> None:
        failures = 0
        while not self._stop.is_set():
            try:
                server = http.server.ThreadingHTTPServer(self._address, self._handler)
            except OSError as error:
                if failures % _LOUD_EVERY == 0:
                    self._log.warning("the port cannot be served; trying again", error=str(error))
                failures += 1
                self._stop.wait(_AGAIN_SECONDS)
                continue
            with server:
                server.daemon_threads = True
                server.timeout = _TURN_SECONDS
                while not self._stop.is_set():
                    server.handle_request()


def _handler(pages: Mapping[str, Page]) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self) -> None:
            page = pages.get(self.path.split("?")[0])
            status, body = page() if page is not None else (404, f"try {', '.join(pages)}\n".encode())
            self.send_response(status)
            self.send_header("Content-Type", TEXT)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """A scrape is not worth a line."""

    return Handler
