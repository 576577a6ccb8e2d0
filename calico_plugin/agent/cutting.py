"""Cuts the connections that a change of policy forbids; those that are still allowed go on. In a thread of its own.

The rules let packets of established connections through first, so a new Deny alone would never meet them. After each
change that may forbid something, the entries of conntrack that it may concern are judged by the same compiled rules
(`policy.explain`), and those that would not be allowed to start now are deleted: their next packet counts as a first
one and meets the policy.

The work is bounded: changes are collected for a moment; what can only open is passed over; a set's change looks at the
connections of the addresses that came or went, a list's or chain's at those of its endpoints; and the thread rests as
long as it worked, so that the loop is not held up. Each look makes the kernel walk its whole table of connections, so
after one it rests so long that looks take a fiftieth of a processor, however fast the cluster changes. The first time,
after a start, all endpoints are looked at.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Callable, Collection, Iterable, Mapping

import structlog

from calico_plugin.agent.concern import Concern, interfaces_of
from calico_plugin.agent.worker import Worker
from calico_plugin.dataplane.conntrack import Connection
from calico_plugin.model.desired import DENIES, Ruleset
from calico_plugin.observe.metrics import Metrics
from calico_plugin.policy import explain
from calico_plugin.policy.explain import Flow

COLLECT_SECONDS = 0.2
_SLICE_SECONDS = 0.005
# Rest for each second of processor time that a look took, and the longest: what is forbidden shall not go on for long.
_REST, _LONGEST_REST_SECONDS = 50, 2.0
_BATCH = 256
# Verdicts that are kept while one look lasts.
_REMEMBERED = 20_000


@dataclass(frozen=True)
class Kernel:
    """What the cutter asks: connections of addresses, this host's own addresses, and to cut some connections."""

    listing: Callable[[Collection[str]], Iterable[Connection]]
    own_addresses: Callable[[], Collection[str]]
    cut: Callable[[Iterable[Connection]], int]


class Cutter:
    """`submit` after every applied ruleset; the latest counts."""

    def __init__(self, kernel: Kernel, metrics: Metrics, collect_seconds: float = COLLECT_SECONDS) -> None:
        self._kernel, self._metrics, self._collect_seconds = kernel, metrics, collect_seconds
        self._lock = threading.Lock()
        self._latest: Ruleset | None = None
        self._judged: Ruleset | None = None
        self._concern = Concern()
        self._wanted: set[str] = set()
        self._log = structlog.get_logger(part="connections")
        self.worker = Worker("connections", self._step)

    def submit(self, ruleset: Ruleset) -> None:
        with self._lock:
            self._latest = ruleset
        self.worker.wake()

    def _step(self) -> None:
        if self.worker.stopping.wait(self._collect_seconds):
            return
        with self._lock:
            rules = self._latest
        if rules is None or rules is self._judged:
            return
        began = time.thread_time()
        # Kept until they have been looked at: that may fail, and is tried again.
        self._wanted |= self._concern.of(rules)
        if self._wanted:
            self._look(rules, self._wanted)
        self._wanted, self._judged = set(), rules
        self.worker.stopping.wait(min(_LONGEST_REST_SECONDS, _REST * (time.thread_time() - began)))

    def _look(self, rules: Ruleset, wanted: Collection[str]) -> None:
        judge = Judge(rules, frozenset(self._kernel.own_addresses()))
        looked_at, forbidden = 0, []
        for connection in self._resting(self._kernel.listing(wanted)):
            looked_at += 1
            if judge.forbids(connection):
                forbidden.append(connection)
        cut = 0
        for start in range(0, len(forbidden), _BATCH):
            cut += self._kernel.cut(forbidden[start:start + _BATCH])
            self.worker.stopping.wait(_SLICE_SECONDS)
        if cut:
            self._metrics.connections_cut.inc(cut)
            first = forbidden[0]
            self._log.info("cut connections that policy forbids now", connections=cut, looked_at=looked_at,
                           first=f"{first.source} > {first.destination} protocol {first.protocol}")

    def _resting(self, connections: Iterable[Connection]) -> Iterable[Connection]:
        """The interpreter has one lock: work a little, then let the loop have it."""
        began = time.monotonic()
        for connection in connections:
            yield connection
            if time.monotonic() - began > _SLICE_SECONDS:
                if self.worker.stopping.wait(_SLICE_SECONDS):
                    return
                began = time.monotonic()


@dataclass
class Judge:
    """Whether connections would be allowed to start now. `host`: addresses of the host, whose own traffic to its
    containers no policy meets.
    """

    rules: Ruleset
    host: frozenset[str]
    _interfaces: Mapping[str, str] = field(init=False)
    _known: dict[tuple[object, ...], bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._interfaces = interfaces_of(self.rules)

    def forbids(self, connection: Connection) -> bool:
        if connection.expected:
            return False
        leaving = self._interfaces.get(connection.source)
        entering = self._interfaces.get(connection.destination)
        if leaving is not None and self._denies(explain.egress, leaving, connection):
            return True
        if entering is None or connection.source in self.host or connection.source.startswith("127."):
            return False
        return self._denies(explain.ingress, entering, connection)

    def _denies(
        self, walk: Callable[[Ruleset, str, Flow], explain.Walk | None], interface: str, connection: Connection
    ) -> bool:
        place = (
            walk, interface, connection.source, connection.destination, connection.protocol, connection.source_port,
            connection.destination_port, connection.icmp_type, connection.icmp_code, connection.translated,
        )
        if place not in self._known:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            found = walk(self.rules, interface, _flow(connection, connection.destination in self.host))
            self._known[place] = found is not None and found.verdict in DENIES
        return self._known[place]


def _flow(connection: Connection, to_host: bool) -> Flow:
    return Flow(
        connection.source, connection.destination, connection.protocol, connection.source_port,
        connection.destination_port, connection.icmp_type, connection.icmp_code, translated=connection.translated,
        to_host=to_host,
    )
