"""The steps before the parts of a host start, in the original's order (node-and-cli 1.3), each a short function.

After them the datastore holds the node, the cluster's defaults and a pool, and the node's name is on the disk. Every
step may be repeated: a start that fails half-way is simply started again. What a user added to a resource stays.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import structlog
from msgspec.structs import replace

from calico_plugin.config import NONE, Settings, node_name_and_source
from calico_plugin.datastore.store import Store
from calico_plugin.deadline import Deadline
from calico_plugin.errors import AlreadyExists, Conflict, DatastoreUnauthorized, DatastoreUnavailable, DeadlineExceeded
from calico_plugin.model.codec import Stored
from calico_plugin.model.resources import Metadata, Node
from calico_plugin.model.resources.node import NodeBGPSpec, NodeSpec
from calico_plugin.node import cluster
from calico_plugin.node.addresses import Addresses, AddressTaken, View, check_conflicts, resolve
from calico_plugin.node.detect import Reach
from calico_plugin.node.interfaces import Interface

log: Any = structlog.get_logger(part="startup")

# A step talks to etcd a few times; a datastore that is slower than this is not usable.
STEP_SECONDS = 20.0
PROBE_SECONDS = 1.0
_TRIES = 5


@dataclass(frozen=True, slots=True)
class HostView:
    """How the steps see the host; values and functions, so that a test can say what the host is like."""

    interfaces: tuple[Interface, ...]
    reach: Reach


def report_name(settings: Settings, environ: dict[str, str]) -> None:
    """Log where the node's name came from, and warn when it is not the one of the last start."""
    name, source = node_name_and_source(environ, settings.lib_dir)
    log.info(f"Node name {name} determined from {source}")
    kept = _content(settings.nodename_file)
    if kept and kept != name:
        log.warning(
            f"The node name is {name} now, but this host was {kept} before ({settings.nodename_file}): "
            f"endpoints of the old name are left behind; `calicoctl delete node {kept}` removes them"
        )
    if source == "the host's name":
        log.info(f"NODENAME is not set: the name is kept in {settings.nodename_file}; an explicit name is recommended")


def wait_for_datastore(store: Store, wait: bool, sleep: Callable[[float], None] = time.sleep) -> None:
    """Ask for the nodes once; with `wait`, each second until etcd answers. Raises DatastoreError."""
    if not wait:
        log.info("Skipping datastore connection test")
        return
    while True:
        try:
            store.resources(Node).list(Deadline(PROBE_SECONDS * 5))
            log.info("Datastore connection verified")
            return
        except DatastoreUnauthorized:
            raise
        except (DatastoreUnavailable, DeadlineExceeded) as error:
            log.info("Waiting for the datastore", reason=str(error))
            sleep(PROBE_SECONDS)


def prepare(settings: Settings, store: Store, host: HostView) -> Node:
    """All steps that write to the datastore; the Node as stored. Raises CalicoError of any kind, for the user."""
    deadline = Deadline(STEP_SECONDS)
    cluster.ensure_cluster_information(store, settings.node, deadline)
    cluster.ensure_tiers(store, deadline)
    node = write_node(settings, store, host, deadline)
    deadline = Deadline(STEP_SECONDS)
    for line in cluster.ensure_pools(store, settings.node, host.interfaces, deadline):
        log.info(line)
    cluster.ensure_defaults(store, settings.node_name, deadline)
    return node


def write_node(settings: Settings, store: Store, host: HostView, deadline: Deadline) -> Node:
    """Create or update the Node; another writer in between means: look again, decide again."""
    for _ in range(_TRIES - 1):
        try:
            return _write_node(settings, store, host, deadline)
        except AddressTaken:
            raise
        except (AlreadyExists, Conflict):
            continue
    return _write_node(settings, store, host, deadline)


def preflight(settings: Settings, store: Store, host: HostView) -> None:
    """Raise what a start would stumble over first: the datastore does not answer, no address, an address of another."""
    _wanted(settings, store, host, Deadline(STEP_SECONDS))


def _wanted(
    settings: Settings, store: Store, host: HostView, deadline: Deadline
) -> tuple[Stored[Node] | None, NodeSpec]:
    """What is stored of the node, and what its spec should be."""
    everyone = store.resources(Node).list(deadline).items
    stored = next((one for one in everyone if one.value.name == settings.node_name), None)
    spec = stored.value.spec if stored else NodeSpec()
    if settings.node.backend != NONE:
        others = tuple(one.value for one in everyone if one.value.name != settings.node_name)
        view = View(host.interfaces, host.reach, others)
        spec = replace(spec, bgp=_bgp(settings, stored, view))
    return stored, spec


def _write_node(settings: Settings, store: Store, host: HostView, deadline: Deadline) -> Node:
    nodes = store.resources(Node)
    stored, spec = _wanted(settings, store, host, deadline)
    if stored is None:
        log.info(f"Building new node resource {settings.node_name}")
        return nodes.create(Node(metadata=Metadata(name=settings.node_name), spec=spec), deadline).value
    if spec == stored.value.spec:
        return stored.value
    return nodes.update(stored, replace(stored.value, spec=spec), deadline).value


def _bgp(settings: Settings, stored: Stored[Node] | None, view: View) -> NodeBGPSpec | None:
    """The node's BGP data; None instead of an empty object, which Calico's validation refuses."""
    old = stored.value if stored else None
    addresses = resolve(settings.node, old, view)
    for level, text in addresses.notes:
        getattr(log, level)(text)
    _check(settings, addresses, old, view)
    before = (old.spec.bgp if old else None) or NodeBGPSpec()
    as_number = before.as_number if settings.node.as_number is None else settings.node.as_number
    log.info(_as_source(settings, before), as_number=as_number if as_number is not None else "global")
    bgp = replace(before, ipv4_address=addresses.ipv4, ipv6_address=addresses.ipv6, as_number=as_number)
    log.info("Initialized BGP data", ipv4=addresses.ipv4, ipv6=addresses.ipv6)
    return None if bgp == NodeBGPSpec() else bgp


def _check(settings: Settings, addresses: Addresses, old: Node | None, view: View) -> None:
    if not settings.node.check_conflicts:
        return
    for warning in check_conflicts(settings.node_name, addresses, old, view):
        log.warning(f"Node IPv4 or IPv6 address changed, checking for conflicts: {warning}")


def _as_source(settings: Settings, before: NodeBGPSpec) -> str:
    if settings.node.as_number is not None:
        return "Using AS number from environment"
    return "Using AS number from node resource" if before.as_number is not None else "Using global AS number"


def make_directories(settings: Settings) -> None:
    """The folders that the parts share."""
    folders = [settings.run_dir, settings.lib_dir, settings.nodename_file.parent]
    if settings.node.file_logging:
        folders.append(settings.log_dir)
    for folder in folders:
        if not folder.is_dir():
            log.info(f"Creating directory {folder}; in a container it should be a mount of the host's")
            folder.mkdir(parents=True, exist_ok=True)


def keep_name(settings: Settings) -> None:
    """Write the nodename file, which the driver, the agent and the next start read."""
    path: Path = settings.nodename_file
    if _content(path) != settings.node_name:
        fresh = path.with_name(path.name + ".new")
        fresh.write_text(settings.node_name)
        fresh.chmod(0o644)
        os.replace(fresh, path)
    else:
        path.touch()  # its age tells the health check how long ago this start was
    log.info(f"Using node name: {settings.node_name}")


def _content(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
