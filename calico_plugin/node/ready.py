"""Whether the parts really work: each is asked at its own door, as its users would."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any, Callable

from calico_plugin.config import Settings
from calico_plugin.errors import RoutingError
from calico_plugin.node.services import AGENT, BIRD, DRIVER
from calico_plugin.routing.apply import SOCKET_NAME
from calico_plugin.routing.birdc import BirdClient

SECONDS = 2.0
PLUGIN_SOCKETS = ("calico.sock", "calico-ipam.sock")
# None: it works; else why not.
Check = Callable[[], "str | None"]


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path, timeout: float = SECONDS) -> None:
        super().__init__("localhost", timeout=timeout)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))


def ask(path: Path, method: str, url: str, seconds: float = SECONDS) -> Any:
    """One call at a unix socket; its answer as JSON. Raises OSError, HTTPException, and ValueError for a refusal."""
    connection = UnixConnection(path, seconds)
    try:
        connection.request(method, url)
        answer = connection.getresponse()
        text = answer.read().decode(errors="replace").strip()
        if answer.status >= 400:
            raise ValueError(f"{method} {url}: {answer.status} {text}")
        return json.loads(text) if text.startswith(("{", "[")) else None
    finally:
        connection.close()


def checks(settings: Settings) -> dict[str, Check]:
    """The check of each part that the settings want."""
    wanted: dict[str, Check] = {}
    if settings.node.run_driver:
        wanted[DRIVER] = lambda: driver(settings.plugin_dir)
    if settings.node.run_agent and settings.health_enabled:
        wanted[AGENT] = lambda: agent(settings.health_host, settings.health_port)
    if settings.node.backend == "bird":
        wanted[BIRD] = lambda: bird(settings.run_dir)
    return wanted


def driver(plugin_dir: Path) -> str | None:
    """Both sockets answer Docker's first call."""
    for name in PLUGIN_SOCKETS:
        status = _status(UnixConnection(plugin_dir / name), "POST", "/Plugin.Activate")
        if status != "200":
            return f"{plugin_dir / name}: {status}"
    return None


def agent(host: str, port: int, page: str = "/readiness") -> str | None:
    """In sync with the datastore, and applied to the kernel once; with `/liveness`, that its loops turn."""
    status = _status(http.client.HTTPConnection(host, port, timeout=SECONDS), "GET", page)
    return None if status in ("200", "204") else f"http://{host}:{port}{page}: {status}"


def bird(run_dir: Path) -> str | None:
    """The control socket answers."""
    try:
        BirdClient(run_dir / SOCKET_NAME, SECONDS).status()
    except RoutingError as error:
        return str(error)
    return None


def _status(connection: http.client.HTTPConnection, method: str, path: str) -> str:
    try:
        connection.request(method, path, b"{}" if method == "POST" else None)
        return str(connection.getresponse().status)
    except (OSError, http.client.HTTPException) as error:
        return str(error) or type(error).__name__
    finally:
        connection.close()
