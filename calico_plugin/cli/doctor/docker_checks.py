"""Checks of Docker: its version, how it shares networks, and the networks that are ours."""

from __future__ import annotations

import re
from typing import Any, Iterable

from calico_plugin.cli.doctor.context import Context
from calico_plugin.cli.doctor.finding import Finding, Level
from calico_plugin.errors import DockerError

OLDEST = (17, 6)
_NO_CLUSTER_STORE = 23
_DRIVER, _IPAM = "calico", "calico-ipam"


def docker(context: Context) -> Iterable[Finding]:
    """Docker answers, is new enough, and carries networks in the way that its version does."""
    if not context.settings.node.run_driver:
        yield Finding("docker", Level.SKIP, "CALICO_LIBNETWORK_ENABLED=false")
        return
    try:
        version, information = context.docker("/version"), context.docker("/info")
    except DockerError as error:
        meaning = "No container can be started or named; Calico goes on without it."
        yield Finding("docker", Level.WARN, str(error), meaning, "systemctl status docker")
        return
    text = str(version.get("Version", ""))
    numbers = tuple(int(part) for part in re.findall(r"\d+", text)[:2])
    if numbers and numbers < OLDEST:
        meaning = "Its plugin protocol lacks parts that are used here."
        yield Finding("docker", Level.FAIL, f"Docker {text} is too old", meaning, "upgrade to Docker 20.10 or newer")
        return
    yield Finding("docker", Level.OK, f"version {text}, {_sharing(numbers, information)}")


def _sharing(version: tuple[int, ...], information: dict[str, Any]) -> str:
    """How networks come to other hosts."""
    if information.get("ClusterStore"):
        return f"networks are shared by its cluster store ({information['ClusterStore']}): scope global"
    return "networks are local to it and carried to other hosts by calico-agent: scope local"


def networks(context: Context) -> Iterable[Finding]:
    """Networks of our driver: with our IPAM, of a scope that works, and known to the cluster."""
    try:
        ours = [one for one in context.docker("/networks") if one.get("Driver", "").partition(":")[0] == _DRIVER]
        store = bool(context.docker("/info").get("ClusterStore"))
    except DockerError:
        yield Finding("networks", Level.SKIP, "Docker cannot be asked")
        return
    known = None if context.etcd_fault else context.networks()
    faults = [fault for network in ours for fault in _faults(network, store, known, context.start)]
    yield from faults
    if not faults:
        yield Finding("networks", Level.OK, f"{len(ours)} networks of driver {_DRIVER}")


def _faults(
    network: dict[str, Any], store: bool, known: dict[str, str] | None, start: str
) -> Iterable[Finding]:
    name, ipam = network.get("Name", "?"), (network.get("IPAM") or {}).get("Driver", "")
    again = f"docker network rm {name}; docker network create --driver calico --ipam-driver calico-ipam {name}"
    if ipam.partition(":")[0] not in (_IPAM, _DRIVER):
        meaning = "Its addresses come from Docker, not from a pool of Calico's, so that hosts give the same ones."
        yield Finding("networks", Level.FAIL, f"network {name} has the IPAM driver {ipam}", meaning, again)
    if network.get("Scope") == "global" and not store:
        meaning = "Nothing carries it to other hosts, and this Docker may refuse to use it."
        summary = f"network {name} has scope global, and Docker has no cluster store"
        yield Finding("networks", Level.WARN, summary, meaning, again)
    if known is not None and network.get("Id") not in known:
        meaning = "calico-agent writes it within 30 s; until then no container starts on it."
        yield Finding("networks", Level.WARN, f"network {name} is not recorded in etcd", meaning, start)
