"""Tells the cluster what this host's containers are called: one record for each endpoint of ours (docs/names.md).

Docker says it only to those who inspect a container, which takes the container's lock. So this has threads of its
own, which ask once the container has started, and again when it was renamed or connected. What events missed is
found by listing. A record is written on the condition that the endpoint is there.
"""

from __future__ import annotations

import queue
import time
from contextlib import closing
from dataclasses import dataclass
from typing import Callable, Iterable

import structlog

from calico_plugin.agent.docker_api import Called, Container, DockerApi, Event, EventStream, answers
from calico_plugin.agent.responder import Asking
from calico_plugin.agent.worker import Worker
from calico_plugin.datastore.kv import Compare, Put
from calico_plugin.datastore.store import Store
from calico_plugin.deadline import Deadline
from calico_plugin.errors import Conflict, DockerError, NotFound
from calico_plugin.model import codec, keys, names
from calico_plugin.model.docker import EndpointNames
from calico_plugin.model.resources import WorkloadEndpoint

AUTO, ON, OFF = "auto", "true", "false"
# Docker's events that may change a name, by type.
EVENTS = {"container": ("start", "die", "rename"), "network": ("connect", "disconnect")}
LIST_EVERY = 30.0
SECONDS = 10.0
_RECONNECT = 1.0
_TRIES = 3


@dataclass(frozen=True, slots=True)
class Known:
    """A running container as it was listed when Docker said what it is called, and which of its endpoints are ours."""

    container: Container
    called: tuple[Called, ...]
    ours: frozenset[str]


class Naming:
    """`setting`: auto (unless a cluster store carries names), true or false. `asking` is told who may ask on this host.
    """

    def __init__(
        self,
        base_url: str,
        setting: str,
        store: Store,
        node: str,
        asking: Callable[[Asking], None] = lambda asking: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._base_url, self._setting, self._store, self._node = base_url, setting, store, node
        self._asking, self._clock = asking, clock
        self._api: DockerApi | None = None
        self._stream: EventStream | None = None
        self._applies: dict[DockerApi, bool] = {}
        self._changed: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._known: dict[str, Known] = {}
        self._mine: dict[str, EndpointNames] = {}
        self._list_at = 0.0
        self._log = structlog.get_logger(part="names")
        self.listener = Worker("names-events", self._listen, every=_RECONNECT, longest=_RECONNECT)
        self.worker = Worker("names", self._step, every=LIST_EVERY, longest=5.0)

    def stop(self) -> None:
        self.listener.stop()
        self.worker.stop()
        if (stream := self._stream) is not None:
            stream.close()

    # The listener's thread

    def _listen(self) -> None:
        if not answers(self._base_url):
            return
        try:
            self._follow(DockerApi(self._base_url))
        except DockerError as error:
            self._log.debug("Docker does not answer", error=str(error))
        finally:
            self._api = None

    def _follow(self, api: DockerApi) -> None:
        with closing(api):
            actions = [action for some in EVENTS.values() for action in some]
            self._stream = api.events({"type": list(EVENTS), "event": actions})
            # Listed after the stream is open, so that nothing falls between.
            self._api, self._list_at = api, 0.0
            self.worker.wake()
            for event in self._stream:
                self._hear(event)

    def _hear(self, event: Event) -> None:
        if event.action in EVENTS.get(event.type, ()):
            self._changed.put(event.id if event.type == "container" else event.attributes.get("container", ""))
            self.worker.wake()

    # The worker's thread

    def _step(self) -> None:
        api = self._api
        if api is None:
            return
        if not self._applies_to(api):
            self._withdraw(api)
            return
        try:
            if self._clock() >= self._list_at:
                self._list(api)
            while not self._changed.empty():
                self._look(api, self._changed.get())
        except Exception:
            self._list_at = 0.0
            raise
        self._tell(api)

    def _applies_to(self, api: DockerApi) -> bool:
        if self._setting != AUTO:
            return self._setting == ON
        if api not in self._applies:
            self._applies = {api: not api.has_cluster_store()}
        return self._applies[api]

    def _list(self, api: DockerApi) -> None:
        while not self._changed.empty():
            self._changed.get()
        self._read()
        running = {one.id: one for one in api.containers()}
        self._known = {one: known for one, known in self._known.items() if running.get(one) == known.container}
        for container in running.values():
            self._publish(container, self._called(api, container))
        ours = {endpoint for known in self._known.values() for endpoint in known.ours}
        self._forget(endpoint for endpoint in self._mine if endpoint not in ours)
        self._list_at = self._clock() + LIST_EVERY / 2

    def _look(self, api: DockerApi, container_id: str) -> None:
        """At one container. While it is being started it is not listed yet; its start event comes."""
        self._known.pop(container_id, None)
        for container in api.containers(container_id):
            self._publish(container, self._called(api, container))
        ours = self._known[container_id].ours if container_id in self._known else ()
        self._forget(
            endpoint for endpoint, one in self._mine.items() if one.container == container_id and endpoint not in ours
        )

    def _called(self, api: DockerApi, container: Container) -> tuple[Called, ...]:
        known = self._known.get(container.id)
        return known.called if known is not None else api.called(container.id)

    def _publish(self, container: Container, called: tuple[Called, ...]) -> None:
        """Docker's list may be behind what it says of the container itself; then the next list has it once more."""
        before = self._known.get(container.id)
        foreign = {one.endpoint for one in called} - before.ours if before is not None else ()
        ours = (one.endpoint for one in called if one.endpoint not in foreign and self._write(container.id, one))
        self._known[container.id] = Known(container, called, frozenset(ours))

    def _write(self, container_id: str, called: Called) -> bool:
        """False for an endpoint that is not ours: of another driver's network, or gone."""
        wanted = EndpointNames(container=container_id, network=called.network, names=called.names)
        if self._mine.get(called.endpoint) == wanted:
            return True
        record = Put(keys.endpoint_names(self._node, called.endpoint), codec.encode(wanted))
        for _ in range(_TRIES):
            deadline = Deadline(SECONDS)
            name = names.workload_endpoint(self._node, called.endpoint)
            endpoint = self._store.resources(WorkloadEndpoint).find(name, deadline, names.NAMESPACE)
            if endpoint is None:
                return False
            if self._store.kv.commit([Compare(endpoint.key, endpoint.revision)], [record], deadline).succeeded:
                self._mine[called.endpoint] = wanted
                self._log.debug("names are known to all hosts", names=called.names, network=called.network)
                return True
        raise Conflict(f"names of endpoint {called.endpoint}", hint="its endpoint keeps changing; tried again later")

    # What is stored

    def _read(self) -> None:
        found = self._store.endpoint_names.list(Deadline(SECONDS), keys.names_of_node(self._node))
        self._mine = {one.key.rpartition("/")[2]: one.value for one in found.items}
        self._forget(invalid.key.rpartition("/")[2] for invalid in found.invalid)

    def _forget(self, endpoints: Iterable[str]) -> None:
        for endpoint in tuple(endpoints):
            try:
                self._store.endpoint_names.delete(f"{self._node} {endpoint}", Deadline(SECONDS))
            except (NotFound, Conflict):
                pass
            self._mine.pop(endpoint, None)

    def _withdraw(self, api: DockerApi) -> None:
        """This host tells nothing, so nothing that it told before shall count."""
        self._read()
        self._forget(self._mine)
        self._known = {}
        self._tell(api)

    def _tell(self, api: DockerApi) -> None:
        ours = [one for one in self._known.values() if one.ours]
        addresses = {address: one.container.id for one in ours for end in one.called for address in end.addresses}
        self._asking(Asking(addresses, api.asks_from_host))
