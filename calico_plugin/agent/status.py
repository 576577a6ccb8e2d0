"""What this agent tells the cluster: that it runs, and which endpoints are up (policy 6, datamodel 1.2).

The live key carries a lease, so it vanishes with us; `last_reported_status` stays. Endpoint keys are written when
`endpointReportingEnabled` is set. A write that fails is made again at the next turn, and nothing waits for it.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Callable, Mapping

import msgspec
import structlog

from calico_plugin.agent.worker import Worker
from calico_plugin.datastore.kv import KV
from calico_plugin.deadline import Deadline
from calico_plugin.errors import NotFound
from calico_plugin.model import duration, keys

FIRST_SECONDS = 10.0
_WRITE_SECONDS = 2.0
_LIST_SECONDS = 10.0
_ALL_AGAIN = 180


# Members of FelixConfiguration, and of Reporting.
_TIMES = (("reportingInterval", "interval"), ("reportingTTL", "ttl"), ("endpointReportingDelay", "delay"))


@dataclass(frozen=True, slots=True)
class Reporting:
    """Intervals in seconds; `interval` 0: no process status."""

    interval: float = 30.0
    ttl: float = 90.0
    endpoints: bool = False
    delay: float = 1.0


def reporting(base: Reporting, *specs: Mapping[str, Any]) -> Reporting:
    """`base` with the members of FelixConfigurations laid over it, later ones winning.

    What does not parse is passed over.
    """
    found = {name: getattr(base, name) for name in ("interval", "ttl", "endpoints", "delay")}
    for spec in specs:
        for member, name in _TIMES:
            try:
                found[name] = duration.seconds(str(spec[member]))
            except (KeyError, ValueError):
                continue
        if isinstance(spec.get("endpointReportingEnabled"), bool):
            found["endpoints"] = spec["endpointReportingEnabled"]
    return Reporting(**found)


class Status:
    """Writes in a thread of its own; the loop calls `configure` and `endpoints`."""

    def __init__(self, kv: KV, node: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._kv, self._node, self._clock = kv, node, clock
        self._started = clock()
        self._next = self._started + FIRST_SECONDS
        self._first = True
        self._reporting = Reporting()
        self._lock = threading.Lock()
        self._wanted: Mapping[str, str] | None = None
        self._hosts: Mapping[str, str] = {}
        self._written: dict[str, str] | None = None
        self._turns = 0
        self._log = structlog.get_logger(part="status")
        self.worker = Worker("status", self._step, every=1.0, longest=5.0)

    @property
    def reports_endpoints(self) -> bool:
        return self._reporting.endpoints

    def configure(self, settings: Reporting) -> None:
        self._reporting = settings
        self.worker.wake()

    def endpoints(self, up: Mapping[tuple[str, str, str], bool]) -> None:
        """(orchestrator, workload, endpoint) -> whether it is up; complete."""
        wanted = {
            keys.endpoint_status(self._node, *identity): "up" if is_up else "down" for identity, is_up in up.items()
        }
        with self._lock:
            self._wanted = wanted

    def host_endpoints(self, states: Mapping[str, str]) -> None:
        """Name -> `up` or `error`; complete."""
        with self._lock:
            self._hosts = {keys.host_endpoint_status(self._node, name): state for name, state in states.items()}

    def _step(self) -> None:
        settings = self._reporting
        if settings.interval > 0 and self._clock() >= self._next:
            self._report(settings)
            self._next = self._clock() + settings.interval
        if settings.endpoints:
            self._report_endpoints()

    def _report(self, settings: Reporting) -> None:
        now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        uptime = round(self._clock() - self._started, 3)
        value = msgspec.json.encode({"time": now, "uptime": uptime, "first_update": self._first})
        deadline = Deadline(_WRITE_SECONDS)
        self._kv.put(keys.felix_status(self._node), value, deadline, ttl=max(1, round(settings.ttl)))
        self._kv.put(keys.felix_last_status(self._node), value, deadline)
        self._first = False

    def _report_endpoints(self) -> None:
        with self._lock:
            if self._wanted is None:
                return
            wanted = {**self._wanted, **self._hosts}
        self._turns += 1
        if self._written is None or self._turns % _ALL_AGAIN == 0:
            self._written = self._stored()
        written = self._written
        for key in [key for key, value in wanted.items() if written.get(key) != value]:
            self._kv.put(key, msgspec.json.encode({"status": wanted[key]}), Deadline(_WRITE_SECONDS))
            written[key] = wanted[key]
        for key in [key for key in written if key not in wanted]:
            try:
                self._kv.delete(key, Deadline(_WRITE_SECONDS))
            except NotFound:
                pass
            del written[key]

    def _stored(self) -> dict[str, str]:
        deadline = Deadline(_LIST_SECONDS)
        prefixes = (keys.endpoint_status_prefix(self._node), keys.host_endpoint_status(self._node, ""))
        return {item.key: _status(item.value) for prefix in prefixes for item in self._kv.list(prefix, deadline).items}


def _status(value: bytes) -> str:
    try:
        document = msgspec.json.decode(value)
    except msgspec.DecodeError:
        return ""
    return str(document.get("status", "")) if isinstance(document, dict) else ""
