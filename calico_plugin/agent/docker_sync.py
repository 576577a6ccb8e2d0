"""Hears Docker's events and keeps the cluster's side of networks, labels and endpoints in step with it.

Two threads: one sits in the event stream, one does the work. Whatever the stream missed (it breaks with every restart
of dockerd) is found by listing: after each connect and every 30 s. An absent Docker is normal: it is looked for again
quietly. Nothing is taken away because Docker did not answer, only because it answered that it does not know the
thing.
"""

from __future__ import annotations

import queue
import time
from dataclasses import dataclass
from typing import Callable, Sequence

import structlog

from calico_plugin.agent import labels
from calico_plugin.agent.docker_api import Container, DockerApi, DockerNetwork, Event, EventStream, answers
from calico_plugin.agent.endpoints import LocalEndpoint
from calico_plugin.agent.networks import Networks
from calico_plugin.agent.replication import Replicator
from calico_plugin.agent.worker import Worker
from calico_plugin.datastore.store import Store
from calico_plugin.deadline import Deadline
from calico_plugin.errors import Conflict, DockerError, NotFound
from calico_plugin.model.names import ORCHESTRATOR
from calico_plugin.model.resources import WorkloadEndpoint
from calico_plugin.observe.metrics import Metrics

LIST_EVERY = 30.0
# A destroyed network's record is the driver's to delete; we look after so long.
DESTROYED_GRACE = 5.0
# A network that Docker does not list: with a cluster store that may also mean that the store does not answer Docker.
ABSENT_SECONDS, ABSENT_WITH_STORE_SECONDS = 60.0, 300.0
_RECONNECT = 1.0
_TURN = 5.0
_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class DockerSettings:
    """`drivers` are the names under which Docker knows our driver (a managed plugin's has a tag)."""

    base_url: str
    drivers: frozenset[str]
    label_endpoints: bool


class DockerSync:
    """`linkless` tells the local endpoints whose link has been gone for long; `changed` is called when Docker may
    have touched iptables."""

    def __init__(
        self,
        settings: DockerSettings,
        store: Store,
        node: str,
        networks: Networks,
        metrics: Metrics,
        *,
        linkless: Callable[[], Sequence[LocalEndpoint]],
        changed: Callable[[], None],
        replicator: Replicator | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings, self._store, self._node, self._networks = settings, store, node, networks
        self._metrics, self._linkless, self._changed, self._clock = metrics, linkless, changed, clock
        self._replicator = replicator
        self._replicate, self._replicates = False, dict[DockerApi, bool]()
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._api: DockerApi | None = None
        self._stream: EventStream | None = None
        self._list_at = 0.0
        self._absent_since: dict[str, float] = {}
        self._destroyed: dict[str, float] = {}
        self._log = structlog.get_logger(part="docker")
        self._refused: dict[str, tuple[str, ...]] = {}
        self.listener = Worker("docker-events", self._listen, every=_RECONNECT, longest=_RECONNECT)
        self.worker = Worker("docker", self._step, every=_TURN, longest=5.0)

    def stop(self) -> None:
        self.listener.stop()
        self.worker.stop()
        if (stream := self._stream) is not None:
            stream.close()

    def shared_changed(self) -> None:
        """The networks that all hosts share have changed; any thread may call."""
        self._replicate = True
        self.worker.wake()

    # The listener's thread

    def _listen(self) -> None:
        self._api = None
        if not answers(self._settings.base_url):
            return
        try:
            self._follow()
        except DockerError as error:
            self._log.debug("Docker does not answer", error=str(error))
        connected, self._api = self._api is not None, None
        self._metrics.docker_connected.set(0)
        if connected and not self.listener.stopping.is_set():
            self._log.info("Docker's event stream ended; it will be opened again")

    def _follow(self) -> None:
        api = DockerApi(self._settings.base_url)
        try:
            self._stream = api.events(self._filters())
            # Listed after the stream is open, so that nothing falls between.
            self._api, self._list_at = api, 0.0
            self._metrics.docker_connected.set(1)
            self._log.info("connected to Docker")
            self._changed()
            self.worker.wake()
            for event in self._stream:
                self._hear(event)
        finally:
            api.close()

    def _filters(self) -> dict[str, list[str]]:
        """Only what is needed: each event of a container costs time in both threads."""
        if self._settings.label_endpoints:
            return {"type": ["network", "container"], "event": ["create", "destroy", "connect", "start"]}
        return {"type": ["network"], "event": ["create", "destroy"]}

    def _hear(self, event: Event) -> None:
        if event.type == "network" and event.action == "create":
            self._changed()
        if event.type == "container" and event.action != "start":
            return
        self._events.put(event)
        self.worker.wake()

    # The worker's thread

    def _step(self) -> None:
        api = self._api
        if api is None:
            return
        try:
            while not self._events.empty():
                self._handle(api, self._events.get())
            if self._clock() >= self._list_at:
                listed = self._list(api)
                self._list_at = self._clock() + LIST_EVERY - _TURN / 2
                self._carry(api, listed, thorough=True)
            elif self._replicate:
                self._carry(api, api.networks(), thorough=False)
        except Exception:
            # What was taken from the queue is found again by listing.
            self._list_at, self._replicate = 0.0, True
            raise

    def _handle(self, api: DockerApi, event: Event) -> None:
        if event.type == "container":
            self._label(api.containers(event.id))
        elif event.action == "connect":
            # A container that is being started is not listed yet; its start event comes.
            self._label(api.containers(event.attributes.get("container", "")))
        elif event.action == "create":
            network = api.network(event.id)
            if network is not None and self._is_ours(network):
                self._networks.complete(network)
            self._replicate = True
        else:
            # Whosever it was, its name is free now.
            self._replicate = True
            if event.attributes.get("type", "") in self._settings.drivers:
                self._destroy(event.id)

    def _destroy(self, network_id: str) -> None:
        self._destroyed[network_id] = self._clock()
        self._list_at = min(self._list_at, self._clock() + DESTROYED_GRACE)
        if self._replicator is not None:
            self._replicator.destroyed(network_id)

    def _carry(self, api: DockerApi, listed: Sequence[DockerNetwork], thorough: bool) -> None:
        if self._replicator is None:
            return
        self._replicate = False
        if api not in self._replicates:
            self._replicates = {api: self._replicator.applies(api)}
            if not self._replicates[api]:
                self._replicator.leave()
        if self._replicates[api]:
            if self._replicator.run(api, listed, thorough):
                # What is in use is tried again with the next turn.
                self._replicate = True

    def _list(self, api: DockerApi) -> Sequence[DockerNetwork]:
        listed = api.networks()
        for network in listed:
            if self._is_ours(network):
                self._networks.complete(network)
        self._forget_networks(api, listed)
        if self._settings.label_endpoints:
            running = api.containers()
            self._refused = {one.id: self._refused[one.id] for one in running if one.id in self._refused}
            self._label(running)
        if linkless := self._linkless():
            self._forget_endpoints(linkless, api.containers())
        return listed

    def _is_ours(self, network: DockerNetwork) -> bool:
        return network.driver in self._settings.drivers

    def _label(self, containers: Sequence[Container]) -> None:
        for container in containers if self._settings.label_endpoints else ():
            wanted, refused = labels.wanted(container.labels)
            if refused and self._refused.get(container.id) != refused:
                self._log.warning(
                    "labels that Calico does not take are left out", container=container.id[:12], labels=refused
                )
                self._refused[container.id] = refused
            labels.apply(self._store, self._node, container.endpoints.values(), wanted)

    def _forget_networks(self, api: DockerApi, listed: Sequence[DockerNetwork]) -> None:
        """Records of networks that Docker removed while the driver was away."""
        known = {network.id for network in listed}
        shared = any(network.scope == "global" for network in listed)
        now = self._clock()
        records = self._networks.records()
        gone = {
            network_id: stored
            for network_id, stored in records.items()
            if network_id not in known and (stored.value.created_on == self._node or network_id in self._destroyed)
        }
        self._absent_since = {network_id: self._absent_since.get(network_id, now) for network_id in gone}
        self._destroyed = {network_id: at for network_id, at in self._destroyed.items() if network_id in records}
        for network_id, stored in gone.items():
            heard = self._destroyed.get(network_id)
            absent = now - self._absent_since[network_id]
            if heard is not None and now - heard >= DESTROYED_GRACE or absent >= self._patience(api, shared, absent):
                try:
                    self._networks.forget(stored)
                except (Conflict, NotFound):
                    continue  # somebody else is at it

    def _patience(self, api: DockerApi, shared: bool, absent: float) -> float:
        if shared or absent < ABSENT_SECONDS or not api.has_cluster_store():
            return ABSENT_SECONDS
        return ABSENT_WITH_STORE_SECONDS

    def _forget_endpoints(self, linkless: Sequence[LocalEndpoint], running: Sequence[Container]) -> None:
        """Endpoints of containers that ended while nobody was there to tell the driver (power cut, killed dockerd)."""
        known = {endpoint for container in running for endpoint in container.endpoints.values()}
        endpoints = self._store.resources(WorkloadEndpoint)
        for endpoint in linkless:
            if endpoint.orchestrator != ORCHESTRATOR or endpoint.endpoint in known:
                continue
            deadline = Deadline(_SECONDS)
            try:
                stored = endpoints.get(endpoint.key.name, deadline, endpoint.key.namespace)
                revision = stored.revision
                endpoints.delete(endpoint.key.name, deadline, endpoint.key.namespace, revision=revision)
            except (NotFound, Conflict):
                continue
            self._metrics.swept.labels("endpoint").inc()
            short = endpoint.endpoint[:12]
            self._log.info("removed an endpoint without link that Docker does not know", endpoint=short)
