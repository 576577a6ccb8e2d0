"""This host as far as `calicoctl policy` looks at it: Docker's names, the counters of our table, this node's name."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Iterator, Mapping

from calico_plugin.cli.doctor import probes
from calico_plugin.cli.policy.places import Containers
from calico_plugin.config import Settings
from calico_plugin.errors import DockerError
from calico_plugin.model.desired import Ruleset
from calico_plugin.model.names import NFLOG_GROUP
from calico_plugin.node import leftovers, lock
from calico_plugin.policy import felix

if TYPE_CHECKING:
    from calico_plugin.cli.policy.following import Following
    from calico_plugin.dataplane.nflog import Logged as Logged  # noqa: F401  # for its user

_DOCKER = "unix:///var/run/docker.sock"


def containers() -> Containers:
    """Running containers of this host's Docker; none when it does not answer. Takes no container's lock."""
    try:
        listed = probes.docker(os.environ.get("DOCKER_HOST") or _DOCKER, "/containers/json")
    except DockerError:
        return {}
    found = {}
    for one in listed:
        networks = (one.get("NetworkSettings") or {}).get("Networks") or {}
        endpoints = {name: network.get("EndpointID", "") for name, network in networks.items() if network}
        for name in (*(name.lstrip("/") for name in one.get("Names") or ()), one["Id"], one["Id"][:12]):
            found[name] = endpoints
    return found


def names_of_endpoints() -> Mapping[str, str]:
    """Endpoint id -> the container's name, for this host's containers."""
    found: dict[str, str] = {}
    for name, networks in containers().items():
        for endpoint in networks.values():
            # The first of a container's entries is its name.
            found.setdefault(endpoint, name)
    return found


def node_name() -> str:
    """Of this host."""
    settings = Settings.from_env(os.environ)
    try:
        return os.environ.get("NODENAME") or settings.nodename_file.read_text().strip() or settings.node_name
    except OSError:
        return settings.node_name


def environments() -> Mapping[str, Mapping[str, Any]]:
    """This node -> what variables `FELIX_…` of the calico-node that runs here say of policy; they are seen on a node's
    own host only.
    """
    pid = lock.holder(Settings.from_env(os.environ).run_dir)
    found = felix.from_environment(leftovers.environment(pid)) if pid else {}
    return {node_name(): found} if found else {}


def counters(rules: Ruleset) -> Mapping[tuple[str, str], int]:
    """(chain, origin) -> packets, from this host's table. Raises DataplaneError."""
    # Loads libnftables, which only counters need.
    from calico_plugin.dataplane.nftables import Table

    table = Table()
    try:
        return table.counters(rules)
    finally:
        table.close()


@contextmanager
def logged_packets() -> Iterator[Following]:
    """What this host's rules tell of packets. Raises DataplaneError."""
    from calico_plugin.cli.policy.following import Following

    following = Following(NFLOG_GROUP)
    try:
        yield following
    finally:
        following.close()
