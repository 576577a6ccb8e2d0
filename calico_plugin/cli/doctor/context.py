"""What the checks look at, each thing read once, when the first check asks for it."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from datetime import datetime, timezone
from enum import Enum
from functools import cached_property
from typing import Any, Mapping, TypeVar
from urllib.parse import quote

import msgspec

from calico_plugin.cli import settings as connection
from calico_plugin.cli.doctor import probes
from calico_plugin.cli.session import Session
from calico_plugin.config import DatastoreSettings, Settings
from calico_plugin.deadline import Deadline
from calico_plugin.errors import CalicoError, DockerError, RoutingError
from calico_plugin.ipam.audit import Audit
from calico_plugin.model import duration, keys
from calico_plugin.model.codec import Invalid, Stored
from calico_plugin.model.resources import (
    KINDS,
    BGPConfiguration,
    ClusterInformation,
    FelixConfiguration,
    IPPool,
    Node,
    WorkloadEndpoint,
)
from calico_plugin.node import container, leftovers, lock, ready, report
from calico_plugin.node.addresses import node_addresses
from calico_plugin.node.interfaces import Interface, read_interfaces
from calico_plugin.node.report import Row
from calico_plugin.routing.apply import SOCKET_NAME
from calico_plugin.routing.birdc import BirdClient, Status

R = TypeVar("R")
SECONDS = 4.0
_OURS = ("CALICO_", "FELIX_", "ETCD_", "IP", "AS", "NODENAME", "NO_DEFAULT_POOLS")
AGENT_LOCK = "agent.lock"
BGP_PORT = 179


class Form(Enum):
    """How calico-node runs on a host."""

    PROCESS = "process of the host"
    CONTAINER = "container"
    PLUGIN = "managed plugin"


_START = {
    Form.PROCESS: "calicoctl node run",
    Form.CONTAINER: "docker restart calico-node",
    Form.PLUGIN: "docker plugin disable -f calico; docker plugin enable calico",
}
_CONTAINER_QUERY = "/containers/json?all=1&filters=" + quote('{"name": ["^/calico-node$"]}')


def _is_our_plugin(plugin: dict[str, Any]) -> bool:
    return "CALICO_MANAGED_PLUGIN=true" in ((plugin.get("Settings") or {}).get("Env") or ())


class Context:
    """One look at this host and its cluster."""

    def __init__(self, session: Session, environ: Mapping[str, str] = os.environ) -> None:
        self.session, self.environ = session, environ
        self.now = time.time()

    @property
    def is_root(self) -> bool:
        return os.geteuid() == 0

    # -- settings and processes ---------------------------------------------------------------------------------------
    @cached_property
    def settings(self) -> Settings:
        """As calico-node on this host has them: its environment, where it runs, under the user's."""
        return Settings.from_env({**self.node_environment, **self.environ})

    @cached_property
    def node_pid(self) -> int | None:
        """Process id of calico-node; None when none runs."""
        return lock.holder(Settings.from_env(self.environ).run_dir)

    @cached_property
    def node_runs(self) -> bool:
        """calico-node, or parts that a killed one has left."""
        run_dir = Settings.from_env(self.environ).run_dir
        return self.node_pid is not None or bool(leftovers.find(run_dir))

    @cached_property
    def nothing_runs(self) -> bool:
        """Neither calico-node nor an agent by itself: one finding says so, and the parts need none of their own."""
        return not self.node_runs and not self.agent_alive

    @cached_property
    def node_environment(self) -> dict[str, str]:
        """Settings in the environment of the running calico-node, as far as they mean something out here."""
        found = leftovers.environment(self.node_pid) if self.node_pid else {}
        without = container.PATHS if self.node_pid and leftovers.elsewhere(self.node_pid) else ()
        return {name: value for name, value in found.items() if name.startswith(_OURS) and name not in without}

    @cached_property
    def form(self) -> Form:
        """How calico-node runs on this host, or ran when it was last seen."""
        if self.node_pid and leftovers.environment(self.node_pid).get("CALICO_MANAGED_PLUGIN") == "true":
            return Form.PLUGIN
        if self.node_pid is not None:
            return Form.CONTAINER if not self.node_pid or probes.contained(self.node_pid) else Form.PROCESS
        try:
            if self.docker(_CONTAINER_QUERY):
                return Form.CONTAINER
            return Form.PLUGIN if any(map(_is_our_plugin, self.docker("/plugins"))) else Form.PROCESS
        except DockerError:
            return Form.PROCESS

    @property
    def start(self) -> str:
        """The command that starts calico-node, or starts it again."""
        return _START[self.form]

    def log_of(self, part: str) -> str:
        """The command that shows what a part has logged last."""
        if self.form is Form.PLUGIN:
            return f"journalctl -u docker | grep {part}"
        return f"tail {self.settings.log_dir}/{part}/current"

    @property
    def name(self) -> str:
        return self.settings.node_name

    @cached_property
    def kept_name(self) -> str:
        """The name under which calico-node was started last."""
        try:
            return self.settings.nodename_file.read_text().strip()
        except OSError:
            return ""

    @cached_property
    def agent_alive(self) -> bool:
        return probes.locked(self.settings.run_dir / AGENT_LOCK)

    @cached_property
    def metrics(self) -> dict[str, float]:
        """The agent's metrics by name and labels as they stand on the page; empty when there is no page."""
        status, text = probes.page(self.settings.metrics_host, self.settings.metrics_port, "/metrics")
        found: dict[str, float] = {}
        for line in text.splitlines() if status == 200 else ():
            name, _, value = line.rpartition(" ")
            if name and not line.startswith("#"):
                found[name] = float(value)
        return found

    def driver_fault(self) -> str | None:
        """Why the driver's sockets do not answer; None when they do."""
        return ready.driver(self.settings.plugin_dir)

    # -- the datastore ------------------------------------------------------------------------------------------------
    @property
    def datastore(self) -> DatastoreSettings:
        """What calicoctl itself uses."""
        return self.session.settings

    def overruled(self) -> str:
        """A warning when the configuration file hides what the environment says."""
        return connection.overruled(self.datastore, self.environ)

    @cached_property
    def etcd_fault(self) -> str:
        """Why etcd cannot be read; nothing when it can. A read needs a leader, so it proves that there is one."""
        try:
            self.session.kv.get(keys.resource("ClusterInformation", "default"), Deadline(SECONDS))
        except CalicoError as error:
            return str(error)
        return ""

    def endpoints(self) -> dict[str, str]:
        """etcd endpoint -> its version, or what is wrong with it."""
        return self.session.kv.status(Deadline(SECONDS))

    def all_of(self, kind: type[Any]) -> list[Any]:
        """All resources of a type, as far as they parse."""
        return [stored.value for stored in self.session.store.resources(kind).list(Deadline(SECONDS)).items]

    @cached_property
    def nodes(self) -> list[Node]:
        return self.all_of(Node)

    @cached_property
    def own_node(self) -> Node | None:
        return next((node for node in self.nodes if node.name == self.name), None)

    @cached_property
    def pools(self) -> list[IPPool]:
        return self.all_of(IPPool)

    @cached_property
    def local_endpoints(self) -> list[WorkloadEndpoint]:
        return [endpoint for endpoint in self.all_of(WorkloadEndpoint) if endpoint.spec.node == self.name]

    @cached_property
    def cluster(self) -> Stored[ClusterInformation] | None:
        return self.session.store.resources(ClusterInformation).find("default", Deadline(SECONDS))

    def mesh_enabled(self) -> bool:
        stored = self.session.store.resources(BGPConfiguration).find("default", Deadline(SECONDS))
        return stored is None or stored.value.spec.node_to_node_mesh_enabled is not False

    def reporting_seconds(self) -> float:
        """How often agents report; 0 when they do not."""
        for name in (f"node.{self.name}", "default"):
            stored = self.session.store.resources(FelixConfiguration).find(name, Deadline(SECONDS))
            given = stored.value.spec.get("reportingInterval") if stored else None
            if given is not None:
                return duration.seconds(str(given))
        return 30.0

    @cached_property
    def reports(self) -> dict[str, float]:
        """Node -> when it says that it reported last, in seconds since 1970."""
        found: dict[str, float] = {}
        for item in self.session.kv.list(keys.FELIX, Deadline(SECONDS)).items:
            key = keys.parse(item.key)
            if isinstance(key, keys.StatusKey):
                at = _time_of(item.value)
                if at is not None:
                    found[key.host] = max(at, found.get(key.host, 0.0))
        return found

    @cached_property
    def live(self) -> set[str]:
        """Nodes whose agent renews its status now."""
        items = self.session.kv.list(keys.FELIX, Deadline(SECONDS), keys_only=True).items
        parsed = (keys.parse(item.key) for item in items)
        return {key.host for key in parsed if isinstance(key, keys.StatusKey) and not key.last}

    def invalid(self) -> list[Invalid]:
        """Stored values that do not parse."""
        store = self.session.store
        found: list[Invalid] = []
        for kind in KINDS.values():
            found += store.resources(kind.type).list(Deadline(SECONDS)).invalid
        for family in (store.blocks, store.handles, store.affinities, store.networks):
            found += family.list(Deadline(SECONDS)).invalid
        return found

    def networks(self) -> dict[str, str]:
        """Docker's id of a network that we know -> its name."""
        stored = self.session.store.networks.list(Deadline(SECONDS)).items
        return {one.value.network_id: one.value.name for one in stored}

    @cached_property
    def audit(self) -> Audit:
        from calico_plugin.cli import ipam_check
        from calico_plugin.ipam import DirectView

        return ipam_check.load(self.session, DirectView(self.session.kv).inputs(Deadline(SECONDS)).pools)

    # -- BIRD ---------------------------------------------------------------------------------------------------------
    @cached_property
    def bird(self) -> BirdClient:
        return BirdClient(self.settings.run_dir / SOCKET_NAME)

    @cached_property
    def bird_status(self) -> Status:
        """Raises RoutingError."""
        return self.bird.status()

    @cached_property
    def sessions(self) -> list[Row]:
        """BGP sessions of ours. Raises RoutingError."""
        return report.rows(self.bird.protocols())

    def seen_by_bgp(self, name: str) -> bool:
        """Whether a node is there as far as BGP tells; one that cannot be judged counts as seen."""
        addresses = next((node_addresses(node) for node in self.nodes if node.name == name), ())
        try:
            mine = [row for row in self.sessions if row.address in addresses]
        except RoutingError:
            return True
        return not mine or any(row.established for row in mine)

    def bgp_addresses(self, node: Node) -> tuple[str, ...]:
        """Bare addresses under which a node is a neighbour."""
        return node_addresses(node)

    def down(self, row: Row) -> str:
        """`ADDRESS (node NAME) is down: why`; a TCP connection is tried where BIRD itself says nothing."""
        names = {address: node.name for node in self.nodes for address in node_addresses(node)}
        (sentence,) = report.hints([row], names)
        if "keeps trying" in sentence or "has to connect to us" in sentence:
            fault = probes.reaches(row.address, BGP_PORT)
            if fault:
                (sentence,) = report.hints([replace(row, info=fault)], names)
                sentence += f" (a TCP connection to its port {BGP_PORT}: {fault})"
        peer, _, why = sentence.partition(": ")
        return f"{peer} is down: {why}"

    # -- the kernel ---------------------------------------------------------------------------------------------------
    @cached_property
    def interfaces(self) -> tuple[Interface, ...]:
        return read_interfaces()

    @cached_property
    def links(self) -> tuple[probes.Link, ...]:
        return probes.links()

    @cached_property
    def routes(self) -> tuple[probes.Route, ...]:
        return probes.routes()

    def carrier(self, address: str) -> str:
        """The link that has an address; nothing when none has."""
        bare = address.partition("/")[0]
        for interface in self.interfaces:
            if any(one.partition("/")[0] == bare for one in interface.addresses):
                return interface.name
        return ""

    # -- Docker -------------------------------------------------------------------------------------------------------
    def docker(self, path: str) -> Any:
        """Raises DockerError."""
        return probes.docker(self.settings.docker_host, path)


def _time_of(value: bytes) -> float | None:
    try:
        text = msgspec.json.decode(value)["time"]
        return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc).timestamp()
    except (msgspec.DecodeError, KeyError, TypeError, ValueError):
        return None
