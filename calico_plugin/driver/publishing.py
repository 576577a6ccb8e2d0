"""What ProgramExternalConnectivity and RevokeExternalConnectivity mean: a container's ports on its host.

Docker tells the endpoint that has the container's default route, also when nothing is published: that costs nothing
here. Else the ports are reserved, stored with the endpoint in one commit, and the answer waits until the agent says
that they are in force. They go when the endpoint is no longer the gateway, and with the endpoint; not every release
says the former.

What holds: a port is reserved before it is stored, and until etcd no longer has it. So what etcd says is the truth
from which a restarted driver, and every pass of the janitor, brings the reservations in line.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack, contextmanager, suppress
from typing import Iterator, Sequence

import structlog
from msgspec.structs import replace

from calico_plugin.datastore.kv import KV
from calico_plugin.deadline import Deadline
from calico_plugin.driver.endpoints import DATASTORE_SECONDS, READY_SECONDS, Endpoints
from calico_plugin.driver.readiness import Readiness
from calico_plugin.driver.reservations import Reservations
from calico_plugin.driver.view import View
from calico_plugin.driver.wire import Connectivity, PortRequest
from calico_plugin.errors import CalicoError, Conflict, DeadlineExceeded, NotFound
from calico_plugin.model import codec
from calico_plugin.model.published import PROTOCOLS, Published, addresses, content, published
from calico_plugin.model.resources import WorkloadEndpoint
from calico_plugin.model.resources.endpoint import WorkloadEndpointPort

log = structlog.get_logger(part="ports")

_TRIES = 5
Entries = tuple[WorkloadEndpointPort, ...]


class Publishing:
    """Shared by all threads. `readiness` watches what the agent says of published ports."""

    def __init__(
        self, kv: KV, view: View, endpoints: Endpoints, readiness: Readiness, reservations: Reservations
    ) -> None:
        self._kv, self._view, self._endpoints = kv, view, endpoints
        self._readiness, self._reservations = readiness, reservations
        self._lock = threading.Lock()
        self._busy: set[str] = set()
        self._told: set[str] = set()
        self._restored = False

    def publish(self, call: Connectivity, deadline: Deadline) -> None:
        """All or nothing; again for the same is no change. Raises PortTaken, DeadlineExceeded, ..."""
        name = call.endpoint
        if not call.ports:
            self.withdraw(name, deadline)
            return
        self.restore(deadline.sooner(DATASTORE_SECONDS))
        endpoint = self._endpoints.find(name, deadline)
        if not _fits(endpoint, call.ports):
            self.withdraw(name, deadline)
            endpoint = self._publish_anew(endpoint, call.ports, deadline)
        self._await_agent(endpoint, deadline)

    def withdraw(self, name: str, deadline: Deadline) -> None:
        """Of an endpoint that publishes nothing no matter. Raises CalicoError; then the ports stay reserved until the
        endpoint is deleted.
        """
        if self._reservations.has(name) or self._published(name):
            with suppress(NotFound):
                self._store(name, (), self._endpoints.for_delete(deadline))
            self._reservations.release(name)

    def left(self, name: str, deadline: Deadline) -> None:
        """The container has left the endpoint, which will be deleted: what cannot be withdrawn now goes with it. Not
        every release of Docker revokes what a container had before dockerd was restarted (docker-plugin 5).
        """
        try:
            self.withdraw(name, deadline)
        except CalicoError as error:
            log.info("ports go with the endpoint", endpoint=name, error=str(error))

    def reconcile(self) -> None:
        """Reservations as etcd's endpoints want them."""
        publishing = {one.spec.endpoint for one in self._view.endpoints() if published(one.spec)}
        problems = set()
        for name in publishing.union(self._reservations.endpoints()):
            problems.update(self._reservations.align(name, self._settled))
        for problem in problems - self._told:
            log.warning("a published port is not reserved; it goes on working", port=problem)
        self._told = problems

    def _settled(self, name: str) -> tuple[Published, ...] | None:
        """What an endpoint publishes, None while that changes."""
        with self._lock:
            return None if name in self._busy else self._published(name)

    def _published(self, name: str) -> tuple[Published, ...]:
        known = self._view.endpoint(name)
        return published(known.spec) if known is not None else ()

    def restore(self, deadline: Deadline) -> None:
        """Reserve, once, what our predecessor held: it must not be given to others. Raises DatastoreUnavailable."""
        if not self._restored:
            self._view.wait_synced(deadline)
            self.reconcile()
            self._restored = True

    def _publish_anew(
        self, endpoint: WorkloadEndpoint, requests: tuple[PortRequest, ...], deadline: Deadline
    ) -> WorkloadEndpoint:
        name = endpoint.spec.endpoint
        with self._changing(name), ExitStack() as undo:
            entries = self._reservations.take(name, addresses(endpoint.spec), requests)
            undo.callback(self._reservations.release, name)
            stored = self._store(name, entries, deadline.sooner(DATASTORE_SECONDS))
            undo.pop_all()
        return stored

    def _store(self, name: str, entries: Entries, deadline: Deadline) -> WorkloadEndpoint:
        """One commit, more if the endpoint changes meanwhile (its labels do). Ports that are only named stay."""
        key = self._endpoints.key(name)
        item = self._view.stored(key) or self._kv.get(key, deadline)
        for _ in range(_TRIES):
            if item is None:
                break
            current = codec.decode(WorkloadEndpoint, key, item.value)
            named = tuple(port for port in current.spec.ports if not port.host_port)
            changed = replace(current, spec=replace(current.spec, ports=(*named, *entries)))
            value = codec.encode(changed)
            try:
                revision = self._kv.replace(key, value, item.revision, deadline)
            except Conflict as lost:
                item = lost.current
                continue
            self._view.wrote(key, value, revision)
            return changed
        raise NotFound(f"endpoint {name[:12]}", "it was deleted, or changes all the time; start the container again")

    def _await_agent(self, endpoint: WorkloadEndpoint, deadline: Deadline) -> None:
        name, ports = endpoint.spec.endpoint, published(endpoint.spec)
        if not self._readiness.wait(name, deadline.sooner(READY_SECONDS), content(ports)):
            with suppress(CalicoError):
                self.withdraw(name, Deadline(1.0))
            agent = "is running but has not got that far" if self._readiness.agent_alive() else "is not running"
            raise DeadlineExceeded(
                f"ports of endpoint {name[:12]} ({', '.join(one.door for one in ports)}) were not published in time: "
                f"calico-agent, which directs them to the container, {agent}"
            )

    @contextmanager
    def _changing(self, name: str) -> Iterator[None]:
        with self._lock:
            self._busy.add(name)
        try:
            yield
        finally:
            with self._lock:
                self._busy.discard(name)


def _fits(endpoint: WorkloadEndpoint, requests: Sequence[PortRequest]) -> bool:
    """Whether the endpoint publishes exactly what is asked for already."""
    entries = [port for port in endpoint.spec.ports if port.host_port]
    return len(entries) == len(requests) and all(map(_answers, entries, requests))


def _answers(entry: WorkloadEndpointPort, request: PortRequest) -> bool:
    wanted = PROTOCOLS[request.protocol], request.port, str(request.host_ip or "")
    in_range = request.first <= entry.host_port <= request.last or not request.first
    return (entry.protocol, entry.port, entry.host_ip) == wanted and in_range
