"""Finds the containers of endpoints that are being created, and gives these their labels: before the first packet.

The driver marks an endpoint that it stores (`names.LABELS_AWAITED`), and while the mark is there the endpoint carries
nothing anywhere. Docker waits meanwhile for the answer to Join, so what is asked of it here must take no container's
lock: a network's endpoints, which Docker knows as soon as CreateEndpoint is answered and names by their container, and
the list of containers, running or not (seen with 20.10, 26.1 and 28.5).

An endpoint whose container cannot be found is asked for again for as long as it exists: it stays dark, and is named.
While dockerd itself starts, its API does not answer: containers that it starts then begin in the dark.
"""

from __future__ import annotations

import threading
import time
from typing import Callable, Iterable, Mapping

import structlog

from calico_plugin.agent import labels
from calico_plugin.agent.docker_api import Container, DockerApi
from calico_plugin.agent.labels import Awaited
from calico_plugin.agent.worker import Worker
from calico_plugin.datastore.store import Store
from calico_plugin.errors import CalicoError, DockerError
from calico_plugin.model import names
from calico_plugin.observe.metrics import Metrics
from calico_plugin.observe.problems import LABELS, Problems

DOCKER_SECONDS = 3.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.005, 0.5
# After so long something is wrong, and is told; and the other way to the container is tried.
_LATE_SECONDS = 2.0

Connect = Callable[[], DockerApi]


class Labeller:
    """`submit` endpoints as they appear. `drivers`: the names under which Docker knows our driver; `enabled` False: no
    labels are wanted, marks are only taken away.
    """

    def __init__(
        self,
        connect: Connect,
        drivers: frozenset[str],
        store: Store,
        node: str,
        enabled: bool,
        metrics: Metrics,
        problems: Problems,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connect, self._drivers, self._store, self._node = connect, drivers, store, node
        self._enabled, self._metrics, self._problems, self._clock = enabled, metrics, problems, clock
        self._lock = threading.Lock()
        self._fresh = threading.Event()
        self._waiting: dict[Awaited, float] = {}
        self._networks: Mapping[str, str] = {}
        self._api: DockerApi | None = None
        self._why = ""
        # None: an earlier agent's may still stand in the file.
        self._told: tuple[str, ...] | None = None
        self._log = structlog.get_logger(part="labels")
        self.worker = Worker("labels", self._step)

    def submit(self, endpoint: Awaited) -> None:
        with self._lock:
            self._waiting.setdefault(endpoint, self._clock())
        self._fresh.set()
        self.worker.wake()

    def withdraw(self, endpoint: str) -> None:
        """It has its labels, or is gone."""
        with self._lock:
            for one in [one for one in self._waiting if one.endpoint == endpoint]:
                del self._waiting[one]

    def stop(self) -> None:
        self.worker.stop()
        self._fresh.set()

    def _step(self) -> None:
        pause = _FIRST_PAUSE
        while not self.worker.stopping.is_set():
            with self._lock:
                waiting = dict(self._waiting)
            self._metrics.labels_awaited.set(len(waiting))
            self._tell(waiting)
            if not waiting:
                return
            found = self._look(waiting)
            pause = _FIRST_PAUSE if found else min(2 * pause, _LONGEST_PAUSE)
            if self._fresh.wait(pause):
                self._fresh.clear()
                pause = _FIRST_PAUSE

    def _look(self, waiting: Mapping[Awaited, float]) -> int:
        """How many got what they waited for."""
        try:
            found = self._containers(waiting) if self._enabled else dict.fromkeys(waiting)
            for one, container in found.items():
                wanted, refused = labels.wanted(container.labels) if container else ({}, ())
                if container and refused:
                    self._log.warning(
                        "labels that Calico does not take are left out", container=container.id[:12], labels=refused)
                labels.settle(self._store, self._node, one.endpoint, wanted)
                self.withdraw(one.endpoint)
            return len(found)
        except DockerError as error:
            self._why = str(error)
            self._forget_connection()
        except CalicoError as error:
            self._why = str(error)
        return 0

    def _containers(self, waiting: Mapping[Awaited, float]) -> dict[Awaited, Container]:
        """Raises DockerError."""
        if self._api is None:
            self._api = self._connect()
        self._why = "Docker does not name its container"
        attached = self._attached(self._api, waiting)
        known = {one.name: one for one in self._api.containers_named(attached.values())} if attached else {}
        found = {one: known[name] for one in waiting if (name := attached.get(one.endpoint)) in known}
        now = self._clock()
        late = [one for one, since in waiting.items() if one not in found and now - since > _LATE_SECONDS]
        if late:
            running = {endpoint: one for one in self._api.containers() for endpoint in one.endpoints.values()}
            found.update({one: running[one.endpoint] for one in late if one.endpoint in running})
        return found

    def _attached(self, api: DockerApi, waiting: Iterable[Awaited]) -> dict[str, str]:
        """Endpoint -> name of its container, of the networks in question."""
        profiles = {one.profile for one in waiting}
        if not profiles <= self._networks.keys():
            ours = [network for network in api.networks() if network.driver in self._drivers]
            self._networks = {names.network_profile(network.name): network.id for network in ours}
        # A network with a profile of another name: all are looked at.
        chosen = profiles if profiles <= self._networks.keys() else self._networks.keys()
        found: dict[str, str] = {}
        for profile in chosen:
            found.update(api.attached(self._networks[profile]))
        wanted = {one.endpoint for one in waiting}
        if not wanted <= found.keys():
            # Not there yet; or the network is another one of the same name by now.
            self._networks = {}
        return {endpoint: name for endpoint, name in found.items() if endpoint in wanted}

    def _forget_connection(self) -> None:
        if self._api is not None:
            self._api.close()
        self._api, self._networks = None, {}

    def _tell(self, waiting: Mapping[Awaited, float]) -> None:
        now = self._clock()
        late = tuple(
            f"endpoint {one.endpoint[:12]} carries nothing: the labels of its container are not known yet ({self._why})"
            for one, since in waiting.items() if now - since > _LATE_SECONDS)
        if late != self._told:
            self._told = late
            self._problems.tell(LABELS, late)
            for sentence in late[:1]:
                self._log.warning(sentence, endpoints=len(late))
