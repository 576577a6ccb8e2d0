"""For a managed plugin: makes Docker know our drivers by the names that users write.

Docker knows a managed plugin by a name with a tag, `calico:latest`. Our sockets in the host's plugin folder have the
plain names, `calico` and `calico-ipam`. But where the plugin's own name is `calico:latest`, Docker takes `calico` for
that plugin, and then misses a driver registered as `calico` (docker-plugin 8.3). It does not look the plugin up when
such a driver is registered already, and it registers all sockets of the folder when volumes are listed: it asks each of
them whether it is a volume driver too. So volumes are listed once at every start of Docker or of ours.

At a boot, Docker starts containers before its API answers. Those whose start failed for the missing driver and that
have a restart policy are started here.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import structlog

from calico_plugin.config import Settings
from calico_plugin.node.ready import PLUGIN_SOCKETS, UnixConnection

log: Any = structlog.get_logger(part="names")

# In the run directory; the driver waits for it (`driver.introduction`), for a moment.
KNOWN_NAME = "plain-names-known"
# In the lib directory: whether Docker has a cluster store, for a driver that cannot see dockerd (`driver.scope`).
SCOPE_NAME = "docker-scope"
# What Docker says of a driver that it takes for a managed plugin of another name.
UNRESOLVED = "could not resolve driver"
_SECONDS = 30.0
_AGAIN_SECONDS = 0.1
_UNIX = "unix://"
_EVENTS = "/events?filters=" + quote(json.dumps({"type": ["plugin"]}))
_STOPPED = "/containers/json?all=1&filters=" + quote(json.dumps({"status": ["created", "exited"]}))


@dataclass(frozen=True, slots=True)
class Files:
    """The host's plugin folder, Docker's socket, and the two files that tell the driver."""

    folder: Path
    docker: Path
    known: Path
    scope: Path


def start(settings: Settings) -> None:
    """Keep the names known, in a thread that ends with the process."""
    folder, host = settings.host_plugin_dir, settings.docker_host
    if folder is None or not host.startswith(_UNIX):
        return
    files = Files(folder, Path(host.removeprefix(_UNIX)), settings.run_dir / KNOWN_NAME, settings.lib_dir / SCOPE_NAME)
    files.known.unlink(missing_ok=True)
    threading.Thread(target=_forever, args=(files,), name="names", daemon=True).start()


def _forever(files: Files) -> None:
    told = ""
    while True:
        try:
            _one_life_of_docker(files)
            told = ""
        except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
            # Docker is away, or still on its way up.
            if str(error) != told:
                log.debug("Docker's API does not answer", reason=str(error))
            told = str(error)
        time.sleep(_AGAIN_SECONDS)


def _one_life_of_docker(files: Files) -> None:
    """Returns when Docker has ended. Raises OSError, HTTPException, ValueError, KeyError."""
    docker = files.docker
    for name in PLUGIN_SOCKETS:
        _ask(files.folder / name, "POST", "/Plugin.Activate")
    events = UnixConnection(docker, _SECONDS)
    try:
        events.request("GET", _EVENTS)
        stream = events.getresponse()
        # The scope first: Docker asks for it while it makes the drivers known.
        files.scope.write_text("global" if _ask(docker, "GET", "/info").get("ClusterStore") else "local")
        _ask(docker, "GET", "/volumes")
        files.known.touch()
        log.info("Docker knows the drivers by their plain names")
        for name in start_failed(docker):
            log.info(f"Started container {name}, which Docker could not start before it knew the driver")
        events.sock.settimeout(None)
        while stream.read1():
            pass
    finally:
        events.close()


def start_failed(docker: Path) -> list[str]:
    """Start the containers that Docker itself should have started; their names."""
    started = []
    for one in _ask(docker, "GET", _STOPPED):
        container = _ask(docker, "GET", f"/containers/{one['Id']}/json")
        policy = container["HostConfig"]["RestartPolicy"]["Name"]
        if UNRESOLVED in container["State"]["Error"] and policy not in ("", "no"):
            _ask(docker, "POST", f"/containers/{one['Id']}/start")
            started.append(container["Name"].lstrip("/"))
    return started


def _ask(path: Path, method: str, url: str) -> Any:
    """One call; its answer as JSON. Raises OSError, HTTPException, ValueError."""
    connection = UnixConnection(path, _SECONDS)
    try:
        connection.request(method, url)
        answer = connection.getresponse()
        text = answer.read()
        if answer.status >= 400:
            raise ValueError(f"{method} {url}: {answer.status} {text.decode(errors='replace').strip()}")
        return json.loads(text) if text else None
    finally:
        connection.close()
