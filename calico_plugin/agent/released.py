"""Forgets the connections of addresses that left this host, in a thread of its own.

A look into the kernel's table costs milliseconds whatever it finds, so addresses are collected for a moment; an
endpoint that is given one of them meanwhile waits, and `hurry` ends the collecting.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Callable, Collection

import structlog

from calico_plugin.agent.worker import Worker
from calico_plugin.errors import DataplaneError
from calico_plugin.observe.metrics import Metrics

COLLECT_SECONDS = 0.5
_TRIES = 3


@dataclass(frozen=True, slots=True)
class Forgotten:
    """Told to the loop: these addresses may be used again."""

    addresses: frozenset[str]


class Released:
    """`forget` deletes the entries of addresses (dataplane.conntrack).

    `tell` is called in the thread with each Forgotten.
    """

    def __init__(
        self,
        forget: Callable[[Collection[str]], int],
        tell: Callable[[Forgotten], None],
        metrics: Metrics,
        collect_seconds: float = COLLECT_SECONDS,
    ) -> None:
        self._forget, self._tell, self._metrics, self._collect_seconds = forget, tell, metrics, collect_seconds
        self._lock = threading.Lock()
        self._waiting: set[str] = set()
        self._hurry = threading.Event()
        self._log = structlog.get_logger(part="conntrack")
        self.worker = Worker("conntrack", self._step)

    def submit(self, addresses: Collection[str]) -> None:
        with self._lock:
            self._waiting.update(addresses)
        self.worker.wake()

    def hurry(self) -> None:
        """Somebody waits for one of them."""
        self._hurry.set()

    def stop(self) -> None:
        self.worker.stop()
        self._hurry.set()

    def _step(self) -> None:
        self._hurry.wait(self._collect_seconds)
        self._hurry.clear()
        with self._lock:
            addresses, self._waiting = frozenset(self._waiting), set()
        if not addresses:
            return
        with self._metrics.conntrack_seconds.time():
            deleted = self._tried(addresses)
        self._tell(Forgotten(addresses))
        if deleted:
            self._log.info("forgot connections of released addresses", connections=deleted, addresses=len(addresses))

    def _tried(self, addresses: frozenset[str]) -> int:
        for attempt in range(_TRIES):
            try:
                return self._forget(addresses)
            except DataplaneError as error:
                # To hold the addresses back for ever would be worse than an old connection that goes on.
                self._log.error("connections of released addresses remain", error=str(error), attempt=attempt + 1)
                time.sleep(0.05 * 2**attempt)
        return 0
