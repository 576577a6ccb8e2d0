"""What calico-node does once in each life of Docker, and again after each start of its own.

* A managed plugin makes its drivers' plain names known (`plain_names`).
* Containers that Docker should have started are started. At a boot Docker starts containers before its API answers,
  whether or not we are there yet: after 15 s without the driver, or as soon as etcd turns out to be away, it gives
  them up, whatever their restart policy says. So we look once all our parts work, and start those with such a policy
  whose last start failed at a network or IPAM driver and that are on a network of ours.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from pathlib import Path
from typing import Any, Collection, Iterator, Mapping
from urllib.parse import quote

import structlog

from calico_plugin.config import Settings
from calico_plugin.node import plain_names, ready
from calico_plugin.node.ready import UnixConnection, ask

log: Any = structlog.get_logger(part="docker")

# Pieces of what Docker notes on a container whose start failed for want of a driver or by a driver's refusal.
DRIVER_FAILED = ("could not resolve driver", "NetworkDriver.", "IpamDriver.", 'plugin "')
_SECONDS = 30.0
# A managed plugin's names are wanted by the very next command of a user.
_AGAIN_SECONDS, _AGAIN_SECONDS_MANAGED = 1.0, 0.1
_READY_LOOK_SECONDS = 0.5
_UNIX = "unix://"


def _filtered(path: str, **filters: list[str]) -> str:
    return f"{path}filters={quote(json.dumps(filters))}"


_EVENTS = _filtered("/events?", type=["plugin"])
_STOPPED = _filtered("/containers/json?all=1&", status=["created", "exited"])


def start(settings: Settings) -> None:
    """Follow Docker's lives in a thread that ends with the process."""
    if not settings.docker_host.startswith(_UNIX):
        return
    own = plain_names.files(settings)
    if own is not None:
        own.known.unlink(missing_ok=True)
    docker = Path(settings.docker_host.removeprefix(_UNIX))
    threading.Thread(target=_forever, args=(settings, own, docker), name="docker-life", daemon=True).start()


def _forever(settings: Settings, own: plain_names.Files | None, docker: Path) -> None:
    told = ""
    while True:
        try:
            _one_life(settings, own, docker)
            told = ""
        except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
            # Docker is away, or still on its way up.
            if str(error) != told:
                log.debug("Docker's API does not answer", reason=str(error))
            told = str(error)
        time.sleep(_AGAIN_SECONDS_MANAGED if own else _AGAIN_SECONDS)


def _one_life(settings: Settings, own: plain_names.Files | None, docker: Path) -> None:
    """Returns when Docker has ended. Raises OSError, HTTPException, ValueError, KeyError."""
    events = UnixConnection(docker, _SECONDS)
    try:
        events.request("GET", _EVENTS)
        stream = events.getresponse()
        if own is not None:
            plain_names.make_known(own, docker)
        _wait_until_ready(settings, docker)
        for name in start_stranded(docker, settings.docker_drivers):
            log.info(f"Started container {name}, which Docker could not start while Calico was not ready")
        events.sock.settimeout(None)
        while stream.read1():
            pass
    finally:
        events.close()


def _wait_until_ready(settings: Settings, docker: Path) -> None:
    """Raises OSError or HTTPException when Docker ends first."""
    checks = ready.checks(settings)
    while any(check() is not None for check in checks.values()):
        ask(docker, "GET", "/_ping", _SECONDS)
        time.sleep(_READY_LOOK_SECONDS)


def start_stranded(docker: Path, drivers: Collection[str]) -> Iterator[str]:
    """Start the containers that Docker itself should have started; their names."""
    networks = {one["Id"] for one in ask(docker, "GET", "/networks", _SECONDS) if one["Driver"] in drivers}
    for one in ask(docker, "GET", _STOPPED, _SECONDS):
        container = ask(docker, "GET", f"/containers/{one['Id']}/json", _SECONDS)
        if is_stranded(container, networks):
            try:
                ask(docker, "POST", f"/containers/{one['Id']}/start", _SECONDS)
            except ValueError as refusal:
                log.warning("A container could not be started, again", container=container["Name"], reason=str(refusal))
            else:
                yield container["Name"].lstrip("/")


def is_stranded(container: Mapping[str, Any], networks: Collection[str]) -> bool:
    """`container` as Docker's inspect tells it, `networks` the ids of ours."""
    policy = container["HostConfig"]["RestartPolicy"]["Name"]
    on = {end["NetworkID"] for end in container["NetworkSettings"]["Networks"].values()}
    failed = any(piece in container["State"]["Error"] for piece in DRIVER_FAILED)
    return policy not in ("", "no") and failed and not on.isdisjoint(networks)
