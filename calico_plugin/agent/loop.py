"""The owner thread: collect -> compile -> apply -> report. It alone touches policy, links, routes and status files.

It waits for the mailbox (datastore, workers), for netlink and for its timers; whatever has queued up is one batch,
and nothing is delayed on purpose, since Docker waits for the status file. Work is proportional to what changed.

What it promises: nothing is removed, and nothing written, before the first full listing is in; a part that fails is
tried again with growing pauses while the others go on; losing the datastore changes nothing on the host.
"""

from __future__ import annotations

import logging
import selectors
import time
from dataclasses import dataclass, field
from typing import Any, Callable, Iterable, Mapping, Protocol, Sequence

import structlog

from calico_plugin.agent import heap, labels
from calico_plugin.agent.bird import KINDS as BIRD_KINDS
from calico_plugin.agent.endpoints import Endpoints, LocalEndpoint, Published
from calico_plugin.agent.host_interfaces import HostInterfaces
from calico_plugin.agent.labels import Awaited
from calico_plugin.agent.mailbox import Mailbox
from calico_plugin.agent.policy import Policy
from calico_plugin.agent.ports import PublishedPorts
from calico_plugin.agent.released import Forgotten
from calico_plugin.agent.status_files import StatusFiles
from calico_plugin.agent.timers import Timers
from calico_plugin.agent.tunnels import Encapsulation
from calico_plugin.agent.upkeep import HostSettings, Sweeper
from calico_plugin.agent.view import AffinityUpdate, ResourceUpdate, Update, View
from calico_plugin.dataplane import addresses, links, routes
from calico_plugin.dataplane.netlink import (
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_NEWADDR,
    RTM_NEWLINK,
    Events,
    Netlink,
    Overrun,
)
from calico_plugin.datastore.watch import Broken, Changes, Listed
from calico_plugin.errors import DataplaneError
from calico_plugin.model.keys import ResourceKey
from calico_plugin.model.names import INTERFACE_PREFIX
from calico_plugin.model.resources import Node
from calico_plugin.model.snapshot import Snapshot
from calico_plugin.observe.health import Health
from calico_plugin.observe.log import bug
from calico_plugin.observe.metrics import RESYNC_IN_SYNC, RESYNC_RUNNING, RESYNC_WAITING, Metrics
from calico_plugin.observe.problems import Problems

HEALTH_PART = "InternalDataplaneMainLoop"
SYNC_PART = "CalculationGraph"
START_PART = "FelixStartup"

UPKEEP_SECONDS = 10.0
RESYNC_SECONDS = 90.0
# Whatever the kernel's count of transactions says: a large table takes seconds to read.
AUDIT_SECONDS = 3600.0
SWEEP_SECONDS = 2.0
WATCH_SECONDS = 3.0
# Interfaces that one line of the log names at most.
_NAMED = 20
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 10.0


@dataclass(frozen=True, slots=True)
class Stop:
    """Ends the loop after the present pass; `failed`: because a part that it cannot do without ended."""

    failed: bool = False


class Listeners(Protocol):
    """What the loop tells the workers; each call returns at once."""

    def routing(self, snapshot: Snapshot) -> None: ...

    def released_addresses(self, addresses: Iterable[str]) -> None: ...

    def hurry(self) -> None: ...

    def felix(self, specs: Sequence[dict[str, Any]]) -> None: ...

    def endpoints(self, up: dict[tuple[str, str, str], bool]) -> None: ...

    def host_endpoints(self, states: Mapping[str, str]) -> None: ...

    def wants_endpoints(self) -> bool: ...

    def awaits_labels(self, endpoint: Awaited) -> None: ...

    def needs_no_labels(self, endpoint: str) -> None: ...


@dataclass(slots=True)
class CycleReport:
    """What a pass did, for one sentence in the log."""

    updates: int = 0
    events: int = 0
    settled: int = 0
    policy: str = ""
    routes: int = 0
    published: Published = Published()
    problems: list[str] = field(default_factory=list)

    def sentence(self) -> str:
        did = [f"took {self.updates} updates and {self.events} link events"]
        did += [self.policy] if self.policy else []
        did += [f"set up {self.settled} links"] if self.settled else []
        did += [f"{self.routes} routes are not in place"] if self.routes else []
        did += [f"{len(self.published.up)} endpoints came up"] if self.published.up else []
        did += [f"{len(self.published.down)} went"] if self.published.down else []
        did += self.problems
        return "; ".join(did)


class Loop:
    """Construct and `run` in the same thread: the sockets belong to its network namespace."""

    def __init__(
        self,
        node: str,
        mailbox: Mailbox,
        policy: Policy,
        files: StatusFiles,
        listeners: Listeners,
        metrics: Metrics,
        health: Health,
        problems: Problems,
        ports: PublishedPorts,
        encapsulate: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._node, self._mailbox, self._policy, self._files, self._ports = node, mailbox, policy, files, ports
        self._listeners, self._metrics, self._health, self._clock = listeners, metrics, health, clock
        self._netlink = Netlink()
        routing = (routes.GROUP_IPV4_ROUTE, routes.GROUP_IPV6_ROUTE)
        self._events = Events((links.GROUP_LINK, *routing, addresses.GROUP_IPV4, addresses.GROUP_IPV6))
        self._routes = routes.RouteTable(self._netlink)
        self._endpoints = Endpoints(node, self._routes, files)
        self._tunnels = Encapsulation(node, self._netlink, metrics, problems, encapsulate)
        self._view = View()
        self._selector = selectors.DefaultSelector()
        self._selector.register(mailbox, selectors.EVENT_READ)
        self._selector.register(self._events, selectors.EVENT_READ)
        self._timers = Timers(clock)
        self._log = structlog.get_logger(part="loop")
        self._started = clock()
        self._in_sync = self._first_pass_done = self._stopping = False
        self._routing_dirty = self._felix_dirty = self._files_dirty = False
        self._failures = 0
        self._failed = self._lost = False
        self._interfaces = HostInterfaces(self._netlink, policy)
        self._host = HostSettings(self._netlink, self._endpoints, self._node_address)
        self._sweeper = Sweeper(self._netlink, self._endpoints, metrics, clock)

    @property
    def linkless(self) -> tuple[LocalEndpoint, ...]:
        """Endpoints that have had no link for long; any thread may ask."""
        return self._sweeper.linkless

    def run(self) -> bool:
        """Until Stop is put into the mailbox; whether that was meant. Rules, routes and status files stay."""
        for part, timeout in ((START_PART, None), (SYNC_PART, None), (HEALTH_PART, 90.0)):
            self._health.register(part, timeout)
        self._start()
        while not self._stopping:
            report = CycleReport()
            try:
                self._turn(report)
            except Exception as error:
                # One broken event must not end the agent: look at everything anew, after a pause.
                bug(self._log, "a pass failed", error=str(error))
                self._timers.once("read", 1.0, self._read_kernel)
                self._retry()
        return not self._failed

    def close(self) -> None:
        self._selector.close()
        self._events.close()
        self._netlink.close()
        self._policy.close()
        self._ports.close()

    # Start

    def _start(self) -> None:
        self._policy.bootstrap()
        self._host.ensure_forwarding()
        self._read_kernel()
        self._files.read()
        self._ports.read()
        for every, job in (
            (UPKEEP_SECONDS, self._upkeep),
            (RESYNC_SECONDS, self._read_kernel),
            (AUDIT_SECONDS, self._audit),
            (WATCH_SECONDS, self._watch_table),
            (SWEEP_SECONDS, self._sweep),
        ):
            self._timers.every(every, job)
        self._metrics.local_endpoints.set_function(lambda: len(self._endpoints))
        self._metrics.routes.labels("IPv4:254").set_function(lambda: len(self._routes))
        self._metrics.interfaces.labels("IPv4:254").set_function(lambda: len(self._endpoints.links))
        self._health.report(START_PART, detail="started")
        self._log.info("started", node=self._node, links=len(self._endpoints.links), routes=len(self._routes))

    # One turn

    def _turn(self, report: CycleReport) -> None:
        ready = {key.fileobj for key, _ in self._selector.select(self._timers.left())}
        started = self._clock()
        if self._events in ready:
            self._hear(report)
        self._take(report)
        for job in self._timers.due():
            job()
        if self._in_sync and self._has_work():
            with self._metrics.apply_seconds.time():
                self._apply(report)
            if heap.fills():
                heap.filled()
            self._tell(report, started)

    def _has_work(self) -> bool:
        return (
            self._policy.dirty
            or self._endpoints.dirty
            or self._routes.pending
            or self._tunnels.dirty
            or self._files_dirty
            or self._routing_dirty
            or self._felix_dirty
        )

    def _take(self, report: CycleReport) -> None:
        for message in self._mailbox.take():
            if isinstance(message, (Listed, Changes)):
                self._on_datastore(message, report)
            elif isinstance(message, Broken):
                self._on_broken(message)
            elif isinstance(message, Forgotten):
                self._endpoints.forgotten(message.addresses)
            elif isinstance(message, Stop):
                self._stopping = True
                self._failed = self._failed or message.failed

    def _on_datastore(self, event: Listed | Changes, report: CycleReport) -> None:
        if isinstance(event, Listed) and not self._in_sync:
            heap.fill()
        with self._metrics.update_seconds.time():
            updates = self._view.listed(event) if isinstance(event, Listed) else self._view.changed(event)
            for update in updates:
                self._try_update(update)
        report.updates += len(updates)
        if isinstance(event, Listed):
            self._metrics.resyncs_started.inc()
            if not self._in_sync:
                self._log.info("in sync with the datastore", resources=len(updates))
            # An empty cluster must be applied, too.
            self._in_sync = self._routing_dirty = self._felix_dirty = self._files_dirty = True
            self._policy.touch()
        if self._lost:
            self._log.info("in sync with the datastore again")
        self._lost = False
        self._metrics.resync_state.set(RESYNC_IN_SYNC)
        self._health.report(SYNC_PART, ready=True, detail="in sync")

    def _on_broken(self, event: Broken) -> None:
        if not self._lost:
            self._log.warning("lost the datastore; this host goes on as it is", error=str(event.error))
        self._lost = True
        self._metrics.resync_state.set(RESYNC_RUNNING if self._in_sync else RESYNC_WAITING)
        # Ready stays ready: the host goes on under the last policy (the loss shows in felix_resync_state).
        self._health.report(SYNC_PART, ready=self._in_sync, detail=str(event.error))

    def _try_update(self, update: Update) -> None:
        """A mistake of ours about one resource must not keep the others out."""
        try:
            self._on_update(update)
        except Exception as error:
            bug(self._log, "an update failed", key=str(update.key), error=str(error))

    def _on_update(self, update: Update) -> None:
        self._tunnels.on_update(update)
        if isinstance(update, AffinityUpdate):
            # Only own blocks stand in BIRD's configuration.
            self._routing_dirty = self._routing_dirty or update.key[0] == self._node
            return
        kind = update.key.kind
        self._metrics.update_of(kind).inc()
        self._policy.on_update(update.key, update.old, update.new)
        if kind == "WorkloadEndpoint":
            self._endpoints.on_resource(update.key, update.new)
            self._tell_of_labels(update)
        elif kind == "FelixConfiguration":
            self._felix_dirty = True
        if kind in BIRD_KINDS and _matters(update):
            self._routing_dirty = True

    def _tell_of_labels(self, update: ResourceUpdate) -> None:
        before, now = (labels.awaited(update.key, one, self._node) for one in (update.old, update.new))
        if now is not None:
            self._listeners.awaits_labels(now)
        elif before is not None:
            self._listeners.needs_no_labels(before.endpoint)

    # Netlink

    def _hear(self, report: CycleReport) -> None:
        try:
            events = self._events.read()
        except Overrun:
            self._log.warning("link events were lost; everything is read anew")
            self._read_kernel()
            return
        for kind, body in events:
            if kind in (RTM_NEWLINK, RTM_DELLINK):
                self._tunnels.on_link(body)
                ours = self._on_link(kind, body)
                report.events += ours
                if not ours and self._interfaces.on_link():
                    self._policy.touch()
            elif kind in (routes.RTM_NEWROUTE, routes.RTM_DELROUTE):
                self._tunnels.on_route(kind, body)
                self._on_route(kind, body)
            elif kind in (RTM_NEWADDR, RTM_DELADDR) and self._interfaces.on_address(body, self._endpoints.indexes()):
                self._policy.touch()
        if report.events:
            self._metrics.interface_batch_size.observe(report.events)

    def _on_link(self, kind: int, body: bytes) -> bool:
        link = links.decode(body, INTERFACE_PREFIX)
        if link is None:
            return False
        if kind == RTM_NEWLINK:
            self._endpoints.on_link(link)
            self._policy.on_namespace(link.name, link.namespace)
        else:
            self._endpoints.on_link_gone(link.name)
            self._policy.on_namespace(link.name, None)
        return True

    def _on_route(self, kind: int, body: bytes) -> None:
        event = routes.decode(kind, body)
        if event is None:
            return
        ours = self._endpoints.owns(event.index)
        before = self._routes.in_place(event.destination)
        self._routes.on_event(event, ours)
        if before and not self._routes.in_place(event.destination):
            self._endpoints.on_route(event.destination)
        if not event.added and not ours:
            # It may have been the one that led to the containers' gateway.
            self._timers.once("gateway", 0.05, self._host.cover_gateway)

    def _read_kernel(self) -> None:
        try:
            gone = set(self._endpoints.links)
            self._endpoints.on_links(links.listing(self._netlink, INTERFACE_PREFIX))
            for name in gone | set(self._endpoints.links):
                link = self._endpoints.links.get(name)
                self._policy.on_namespace(name, link.namespace if link else None)
            self._routes.read(self._endpoints.indexes())
            self._endpoints.touch_all()
            self._tunnels.look()
            self._interfaces.refresh()
        except DataplaneError as error:
            self._log.warning("links and routes cannot be read; they are read again", error=str(error))
            self._timers.once("read", 1.0, self._read_kernel)

    # Apply

    def _apply(self, report: CycleReport) -> None:
        self._apply_policy(report)
        self._apply_links(report)
        self._endpoints.resolve(self._policy.in_force)
        self._apply_routes(report)
        report.problems += self._tunnels.apply(self._view)
        if released := self._endpoints.released():
            self._listeners.released_addresses(released)
        if self._endpoints.wanted_again():
            self._listeners.hurry()
        report.published = self._endpoints.publish()
        self._apply_files(report)
        report.problems += self._ports.apply(
            self._policy.published, self._endpoints.known, self._policy.in_force, self._endpoints.links
        )
        self._feed()
        if report.problems:
            self._retry()
        else:
            self._failures = 0

    def _apply_policy(self, report: CycleReport) -> None:
        self._interfaces.tell()
        if not self._policy.dirty:
            return
        failed = self._policy.failed
        try:
            report.policy = self._policy.apply()
        except DataplaneError as error:
            report.problems.append(f"policy is not in force: {error}")
            return
        if failed:
            # What was passed over meanwhile.
            self._endpoints.touch_all()
        known = self._endpoints.links
        joined = [known[name] for name in self._policy.take_joined() if name in known]
        report.problems += links.loosen(self._netlink, joined)

    def _apply_links(self, report: CycleReport) -> None:
        unsettled = self._endpoints.unsettled()
        if not unsettled:
            return
        report.settled = len(unsettled)
        for name, error in links.assert_settings(self._netlink, unsettled).items():
            self._endpoints.unsettle(name)
            report.problems.append(str(error))
        self._host.ensure_first()

    def _apply_routes(self, report: CycleReport) -> None:
        for error in self._routes.apply(remove=True).values():
            if routes.moot(error):
                report.routes += 1  # the event that the link went or comes back is on its way
            else:
                report.problems.append(str(error))

    def _apply_files(self, report: CycleReport) -> None:
        self._files_dirty = False
        for error in (*self._files.remove(), *self._files.write()):
            report.problems.append(f"status file {error.name}: {error.why}")
            self._files_dirty = True

    def _feed(self) -> None:
        """Tell the workers what is news for them."""
        if self._felix_dirty:
            self._felix_dirty = False
            self._listeners.felix(self._felix_specs())
        if self._routing_dirty:
            self._routing_dirty = False
            self._listeners.routing(self._view.snapshot(BIRD_KINDS))
        if self._listeners.wants_endpoints():
            self._timers.once("endpoints", 0.5, self._tell_endpoints)

    def _felix_specs(self) -> list[dict[str, Any]]:
        known = self._view.kind("FelixConfiguration")
        wanted = (ResourceKey("FelixConfiguration", name) for name in ("default", f"node.{self._node}"))
        return [getattr(known[key], "spec") for key in wanted if key in known]

    def _tell_endpoints(self) -> None:
        self._listeners.host_endpoints(self._policy.host_endpoints())
        up = self._endpoints.up()
        known = self._endpoints.known
        self._listeners.endpoints(
            {(known[key].orchestrator, known[key].workload, known[key].endpoint): is_up for key, is_up in up.items()}
        )

    def _tell(self, report: CycleReport, started: float) -> None:
        if self._log.is_enabled_for(logging.DEBUG):
            self._log.debug(report.sentence(), ms=round((self._clock() - started) * 1000, 1))
        self._metrics.batch_size.observe(report.updates)
        self._tell_endpoints_that_changed(report.published)
        if report.problems:
            self._metrics.apply_failures.inc()
            self._log.error("a pass failed in part and will be repeated", problems=report.problems)
        if not self._first_pass_done and not report.problems:
            self._first_pass_done = True
            seconds = self._clock() - self._started
            self._metrics.initial_resync_seconds.set(seconds)
            self._report_health()
            self._log.info("the first pass is done", endpoints=len(self._endpoints), seconds=round(seconds, 3))

    def _tell_endpoints_that_changed(self, published: Published) -> None:
        for event, names in (("endpoints came up", published.up), ("endpoints went", published.down)):
            if names:
                self._log.info(event, count=len(names), interfaces=",".join(names[:_NAMED]))

    def _retry(self) -> None:
        pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(self._failures, 16))
        self._failures += 1
        self._timers.once("retry", pause, self._endpoints.touch_all)

    # Timers

    def _upkeep(self) -> None:
        """What others may have changed, and what the cluster's numbers are."""
        self._host.ensure_forwarding()
        self._host.cover_gateway()
        self._sweeper.look_for_returned()
        self._tunnels.look()
        self._files.read()
        self._ports.read()
        self._files_dirty = True
        self._count()
        self._policy.count()
        self._report_health()

    def _node_address(self) -> str:
        node = self._view.kind("Node").get(ResourceKey("Node", self._node))
        address = node.spec.bgp.ipv4_address if isinstance(node, Node) and node.spec.bgp else ""
        return address.split("/")[0]

    def _audit(self) -> None:
        if not self._first_pass_done:
            return
        changed = self._policy.audit()
        if changed:
            self._log.warning("somebody changed our table; repaired", objects=len(changed), first=changed[0])

    def _watch_table(self) -> None:
        """Others' transactions are rare, and so is a look at the whole table."""
        try:
            if self._first_pass_done and self._policy.is_disturbed():
                self._audit()
        except DataplaneError as error:
            self._log.warning("the table cannot be watched", error=str(error))

    def _sweep(self) -> None:
        if self._first_pass_done:
            self._sweeper.sweep()

    def _count(self) -> None:
        metrics, view = self._metrics, self._view
        for gauge, kind in (
            (metrics.cluster_hosts, "Node"),
            (metrics.cluster_workloads, "WorkloadEndpoint"),
            (metrics.cluster_host_endpoints, "HostEndpoint"),
            (metrics.cluster_profiles, "Profile"),
            (metrics.cluster_tiers, "Tier"),
        ):
            gauge.set(len(view.kind(kind)))
        metrics.cluster_policies.set(len(view.kind("GlobalNetworkPolicy")) + len(view.kind("NetworkPolicy")))
        metrics.invalid.set(len(view.invalid))

    def _report_health(self) -> None:
        detail = "first pass done" if self._first_pass_done else "waiting for the datastore"
        self._health.report(HEALTH_PART, ready=self._first_pass_done, detail=detail)


def _matters(update: ResourceUpdate) -> bool:
    """A node's status may change often and is nothing to BIRD."""
    old, new = update.old, update.new
    if isinstance(old, Node) and isinstance(new, Node):
        return (old.spec, old.labels) != (new.spec, new.labels)
    return True
