"""calico-agent: composition root.

Settings, signals, clients and threads are made here; the loop runs in the main thread.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any, Callable, Iterable, Mapping, Sequence

import structlog

from calico_plugin.agent import heap, labeller
from calico_plugin.agent.bird import BirdWorker, Secrets
from calico_plugin.agent.cutting import Cutter, Kernel
from calico_plugin.agent.docker_api import DockerApi
from calico_plugin.agent.docker_sync import DockerSettings, DockerSync
from calico_plugin.agent.labeller import Labeller
from calico_plugin.agent.labels import Awaited
from calico_plugin.agent.lock import AgentLock
from calico_plugin.agent.loop import Loop, Stop
from calico_plugin.agent.mailbox import Mailbox
from calico_plugin.agent.names import Names
from calico_plugin.agent.networks import Networks
from calico_plugin.agent.policy import Policy
from calico_plugin.agent.ports import PublishedPorts
from calico_plugin.agent.released import Released
from calico_plugin.agent.replication import Replication, Replicator
from calico_plugin.agent.status import Reporting, Status, reporting
from calico_plugin.agent.status_files import StatusFiles
from calico_plugin.agent.view import prefixes
from calico_plugin.agent.worker import Worker
from calico_plugin.config import NONE, Settings
from calico_plugin.dataplane import conntrack, forwarding, nflog
from calico_plugin.dataplane.addresses import local_addresses
from calico_plugin.dataplane.generation import generation
from calico_plugin.dataplane.netlink import NETLINK_NETFILTER, Netlink
from calico_plugin.dataplane.nftables import Table
from calico_plugin.datastore.etcd import EtcdKV, connect
from calico_plugin.datastore.store import Store
from calico_plugin.datastore.watch import Changes, Listed, Watch
from calico_plugin.deadline import Deadline
from calico_plugin.errors import CalicoError, InvalidInput
from calico_plugin.model import keys, names
from calico_plugin.model.snapshot import Snapshot
from calico_plugin.observe import log
from calico_plugin.observe.health import Health
from calico_plugin.observe.metrics import Metrics
from calico_plugin.observe.problems import Problems
from calico_plugin.observe.server import Server, health_pages, metrics_pages
from calico_plugin.policy import PolicyEngine, PolicyOptions, felix

FORWARD_SECONDS = 30.0
# For all workers together to end.
END_SECONDS = 0.5
USAGE = """Usage: calico-agent

Makes this host what the cluster says: policy, routes, BIRD's configuration, status. Runs in the foreground; calico-node
starts it. It takes no arguments: settings are the environment's (ETCD_ENDPOINTS, NODENAME, CALICO_..., FELIX_...)."""


@dataclass(frozen=True)
class Workers:
    """Everything beside the loop; also what the loop tells (`loop.Listeners`)."""

    kv: EtcdKV
    watch: Watch
    # Of the networks that all hosts share; the Docker thread reads them itself.
    shared: Watch
    bird: BirdWorker | None
    released: Released
    cutter: Cutter
    status: Status
    docker: DockerSync
    names: Names
    labeller: Labeller
    forward: Worker
    servers: tuple[Server, ...]
    # Members of FelixConfiguration that the environment says.
    felix_environment: dict[str, Any]

    def start(self, mailbox: Mailbox) -> None:
        for worker in self._all():
            worker.start()
        for server in self.servers:
            server.start()
        threading.Thread(target=_follow, args=(self.watch, mailbox), name="datastore", daemon=True).start()
        threading.Thread(target=self._follow_shared, args=(mailbox,), name="shared-networks", daemon=True).start()
        self.names.start()

    def stop(self) -> None:
        """Tell all before waiting for any."""
        self.watch.close()
        self.shared.close()
        self.docker.stop()
        self.names.stop()
        self.labeller.stop()
        self.released.stop()
        for worker in self._all():
            worker.stop()
        for server in self.servers:
            server.close()
        deadline = Deadline(END_SECONDS)
        for worker in self._all():
            worker.join(deadline.left())

    def _all(self) -> list[Worker]:
        bird = [self.bird.worker] if self.bird is not None else []
        return [
            *bird,
            self.released.worker,
            self.cutter.worker,
            self.status.worker,
            self.docker.worker,
            self.docker.listener,
            *self.names.workers,
            self.labeller.worker,
            self.forward,
        ]

    def _follow_shared(self, mailbox: Mailbox) -> None:
        try:
            for event in self.shared:
                if isinstance(event, Listed) or isinstance(event, Changes) and event.changes:
                    self.docker.shared_changed()
        except Exception:
            log.bug(structlog.get_logger(part="datastore"), "the watch of shared networks ended")
            mailbox.put(Stop(failed=True))

    # loop.Listeners

    def routing(self, snapshot: Snapshot) -> None:
        if self.bird is not None:
            self.bird.submit(snapshot)

    def released_addresses(self, addresses: Iterable[str]) -> None:
        self.released.submit(list(addresses))

    def hurry(self) -> None:
        self.released.hurry()

    def felix(self, specs: Sequence[dict[str, Any]]) -> None:
        self.status.configure(reporting(Reporting(), *specs, self.felix_environment))

    def endpoints(self, up: dict[tuple[str, str, str], bool]) -> None:
        self.status.endpoints(up)

    def host_endpoints(self, states: Mapping[str, str]) -> None:
        self.status.host_endpoints(states)

    def wants_endpoints(self) -> bool:
        return self.status.reports_endpoints

    def awaits_labels(self, endpoint: Awaited) -> None:
        self.labeller.submit(endpoint)

    def needs_no_labels(self, endpoint: str) -> None:
        self.labeller.withdraw(endpoint)


def main() -> int:
    """Exit status: 0 after SIGTERM or SIGINT, 1 when it cannot start or a part of it failed."""
    if len(sys.argv) > 1:
        print(USAGE, file=sys.stderr if sys.argv[1] not in ("-h", "--help") else sys.stdout)
        return 0 if sys.argv[1] in ("-h", "--help") else 2
    try:
        settings = Settings.checked(os.environ)
        log.setup("calico-agent", settings.log_level)
        settings.run_dir.mkdir(parents=True, exist_ok=True)
        with closing(AgentLock(settings.run_dir)):
            return 0 if run(settings) else 1
    except (CalicoError, OSError) as error:
        print(f"calico-agent: {error}", file=sys.stderr)
        return 1


def run(settings: Settings) -> bool:
    """Until SIGTERM or SIGINT; False when it ended by itself. Raises CalicoError when it cannot start."""
    heap.share()
    mailbox = Mailbox()
    metrics, health = Metrics(settings.node_name), Health()
    nftables = Netlink(protocol=NETLINK_NETFILTER)
    group = names.NFLOG_GROUP if nflog.is_supported() else 0
    engine = PolicyEngine(settings.node_name, PolicyOptions(log_group=group), _felix_variables(os.environ))
    loops: list[Loop] = []
    workers = _workers(
        settings, _connect(settings), mailbox, metrics, health, lambda: loops[0].linkless if loops else ()
    )
    files, problems = StatusFiles(settings.run_dir), Problems(settings.run_dir)
    policy = Policy(
        engine,
        Table(),
        metrics,
        # What is done to the table of names concerns policy's not.
        lambda: generation(nftables) - workers.names.transactions,
        workers.cutter.submit,
        problems,
    )
    encapsulate = settings.node.backend != NONE
    ports = PublishedPorts(settings.run_dir)
    loop = Loop(settings.node_name, mailbox, policy, files, workers, metrics, health, problems, ports, encapsulate)
    loops.append(loop)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: mailbox.put(Stop()))
    workers.start(mailbox)
    try:
        return loop.run()
    finally:
        workers.stop()
        loop.close()
        structlog.get_logger(part="main").info("ended; rules and routes stay")


def _connect(settings: Settings) -> EtcdKV:
    return connect(**asdict(settings.datastore))


def _workers(
    settings: Settings,
    kv: EtcdKV,
    mailbox: Mailbox,
    metrics: Metrics,
    health: Health,
    linkless: Callable[[], Sequence[Any]],
) -> Workers:
    forward = Worker("forward", lambda: _assert_forwarding(metrics), every=FORWARD_SECONDS)
    store = Store(kv)
    docker = DockerSync(
        DockerSettings(settings.docker_host, frozenset(settings.docker_drivers), settings.label_endpoints),
        store,
        settings.node_name,
        Networks(store, settings.node_name, settings.create_profiles),
        metrics,
        linkless=linkless,
        changed=forward.wake,
        replicator=Replicator(
            Replication(settings.replicate, settings.scope != "global"),
            store,
            settings.node_name,
            settings.docker_drivers,
            Problems(settings.run_dir),
        ),
    )
    netfilter = Netlink(protocol=NETLINK_NETFILTER)
    return Workers(
        kv=kv,
        watch=Watch(kv, prefixes()),
        shared=Watch(kv, (keys.SHARED_NETWORKS,)),
        bird=_bird(settings, metrics),
        released=Released(lambda addresses: conntrack.forget(netfilter, addresses), mailbox.put, metrics),
        cutter=Cutter(_kernel(), metrics),
        status=Status(kv, settings.node_name),
        docker=docker,
        names=Names(
            settings.names, settings.docker_host, kv, settings.node_name, settings.run_dir, metrics
        ),
        labeller=Labeller(
            lambda: DockerApi(settings.docker_host, labeller.DOCKER_SECONDS),
            frozenset(settings.docker_drivers),
            store,
            settings.node_name,
            settings.label_endpoints,
            metrics,
            Problems(settings.run_dir),
        ),
        forward=forward,
        servers=_servers(settings, metrics, health),
        felix_environment=_felix_environment(settings),
    )


def _kernel() -> Kernel:
    # Sockets of its own: a long look must not keep the release of addresses waiting.
    netfilter, links = Netlink(protocol=NETLINK_NETFILTER), Netlink()
    return Kernel(
        lambda addresses: conntrack.listing(netfilter, addresses),
        lambda: local_addresses(links),
        lambda connections: conntrack.cut(netfilter, connections),
    )


def _felix_variables(environ: Mapping[str, str]) -> Mapping[str, Any]:
    """Those about policy. Raises InvalidInput."""
    found = felix.from_environment(environ)
    _, problems = felix.merged(PolicyOptions(), found)
    if problems:
        raise InvalidInput("environment (FELIX_…)", None, "; ".join(problems))
    return found


def _felix_environment(settings: Settings) -> dict[str, Any]:
    """The environment wins over FelixConfiguration, as with Felix."""
    members: dict[str, Any] = {}
    if settings.reporting_interval is not None:
        members["reportingInterval"] = f"{settings.reporting_interval}s"
    if settings.endpoint_reporting is not None:
        members["endpointReportingEnabled"] = settings.endpoint_reporting
    return members


def _bird(settings: Settings, metrics: Metrics) -> BirdWorker | None:
    if settings.node.backend != "bird":
        return None
    return BirdWorker(
        settings.node_name,
        settings.run_dir,
        metrics,
        router_id=settings.node.router_id,
        secrets=Secrets(settings.secrets_dir),
    )


def _servers(settings: Settings, metrics: Metrics, health: Health) -> tuple[Server, ...]:
    servers = []
    if settings.metrics_enabled:
        servers.append(Server(settings.metrics_host, settings.metrics_port, metrics_pages(metrics.page)))
    if settings.health_enabled:
        servers.append(Server(settings.health_host, settings.health_port, health_pages(health)))
    return tuple(servers)


def _assert_forwarding(metrics: Metrics) -> None:
    for change in forwarding.ensure():
        metrics.forward_repairs.inc()
        structlog.get_logger(part="forward").info(change)


def _follow(watch: Watch, mailbox: Mailbox) -> None:
    """Hand on what the watch tells.

    Without it the agent would be deaf for ever, so its supervisor shall start it anew.
    """
    try:
        for event in watch:
            mailbox.put(event)
    except Exception:
        log.bug(structlog.get_logger(part="datastore"), "the watch ended")
        mailbox.put(Stop(failed=True))


if __name__ == "__main__":
    sys.exit(main())
