"""Finds and frees what nobody will ask for again, in a thread of its own and slowly, never in the way of calls.

* Deletes that failed while etcd was away (the journal), as soon as it answers.
* Links that the driver's predecessor was killed over: without endpoint, and with no container at their other end.
* Reserved ports of the host that no endpoint publishes; and published ones that are not reserved, are.
* Addresses of this node that no endpoint has: given to a container that was never made (Docker forgets an IPv4
  address when the IPv6 one fails), whose release got lost, or reserved for a network whose creation failed. Each is
  freed only when it was given longer ago than a grace time, is in no endpoint and no network as etcd has them now,
  and with the sequence number that was seen: an address that was given anew meanwhile keeps its new owner.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Callable, Sequence

import structlog

from calico_plugin.dataplane.veth import Link
from calico_plugin.datastore.kv import KV
from calico_plugin.deadline import Deadline
from calico_plugin.driver.addresses import Addresses
from calico_plugin.driver.allocations import Allocation, Allocations
from calico_plugin.driver.endpoints import Endpoints
from calico_plugin.driver.journal import ENDPOINT, Entry, Journal
from calico_plugin.driver.links import Links
from calico_plugin.driver.publishing import Publishing
from calico_plugin.driver.view import View, addresses, endpoints_prefix
from calico_plugin.errors import CalicoError, Conflict, CorruptValue
from calico_plugin.model import codec, keys
from calico_plugin.model.docker import NetworkRecord
from calico_plugin.model.resources import WorkloadEndpoint
from calico_plugin.observe.log import bug

log = structlog.get_logger(part="janitor")

_PASS_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds. `grace`: how old an unused address is before it goes; `everywhere`: how often other hosts' blocks are
    looked at too.
    """

    grace: float = 60.0
    interval: float = 20.0
    everywhere: float = 600.0
    retry: float = 1.0
    slowest_retry: float = 5.0


class Janitor:
    def __init__(
        self,
        kv: KV,
        view: View,
        endpoints: Endpoints,
        given: Addresses,
        known: Allocations,
        journal: Journal,
        links: Links,
        found: Sequence[Link],
        publishing: Publishing,
        node: str,
        pace: Pace = Pace(),
        now: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
    ) -> None:
        self._kv, self._view, self._endpoints, self._given = kv, view, endpoints, given
        self._known, self._journal, self._node, self._pace, self._now = known, journal, node, pace, now
        self._links, self._found, self._publishing = links, tuple(found), publishing
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="janitor", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._journal.pending.set()
        self._thread.join(5.0)

    def remove_orphans(self) -> None:
        """Of the links that were there when we started; waits for the first complete list of endpoints. Raises
        DatastoreUnavailable.
        """
        if self._found:
            self._view.wait_synced(Deadline(_PASS_SECONDS))
            self._publishing.restore(Deadline(_PASS_SECONDS))
            kept = {endpoint.spec.interface_name for endpoint in self._view.endpoints()}
            for link in self._found:
                if link.name not in kept and not link.running:
                    log.info("removing a link without endpoint", link=link.name)
                    self._links.remove_name_later(link.name)
            self._found = ()

    def work_off(self) -> bool:
        """Do what the journal holds; False when something is left."""
        for entry in self._journal.entries():
            try:
                self._finish(entry)
            except Conflict as error:
                log.info("an address was given anew", address=entry.name, error=str(error))
            except CalicoError as error:
                log.debug("not yet", kind=entry.kind, name=entry.name, error=str(error))
                return False
            self._journal.remove(entry.kind, entry.name)
        self._journal.settle()
        return True

    def sweep(self, everywhere: bool) -> int:
        """Free the addresses of this node that nobody has; how many."""
        deadline = Deadline(_PASS_SECONDS)
        self._view.wait_synced(deadline)
        self._publishing.reconcile()
        candidates = [one for one in self._known.of_node(deadline, everywhere) if self._is_unused(one)]
        if not candidates:
            return 0
        # The view may lag: what is about to be freed is compared with etcd itself.
        in_use = self._in_use(deadline)
        return sum(self._free(one, deadline) for one in candidates if str(one.address) not in in_use)

    def _run(self) -> None:
        next_sweep, next_everywhere = time.monotonic() + self._pace.interval / 2, 0.0
        retry = self._pace.retry
        while not self._stop.is_set():
            self._journal.pending.wait(0.0 if self._found else max(0.0, next_sweep - time.monotonic()))
            if self._stop.is_set():
                return
            try:
                self.remove_orphans()
                if self._journal.pending.is_set():
                    retry = self._pace.retry if self.work_off() else min(retry * 2, self._pace.slowest_retry)
                    if self._journal.pending.is_set():
                        self._stop.wait(retry)
                if time.monotonic() >= next_sweep:
                    everywhere = time.monotonic() >= next_everywhere
                    next_sweep = time.monotonic() + self._pace.interval
                    self.sweep(everywhere)
                    if everywhere:
                        next_everywhere = time.monotonic() + self._pace.everywhere
            except CalicoError as error:
                log.info("a pass was given up", error=str(error))
            except Exception:
                bug(log, "a pass failed")
                self._stop.wait(self._pace.slowest_retry)

    def _finish(self, entry: Entry) -> None:
        deadline = Deadline(_PASS_SECONDS)
        if entry.kind == ENDPOINT:
            self._endpoints.delete(entry.name, deadline)
            log.info("deleted an endpoint that Docker has forgotten", endpoint=entry.name)
            return
        self._given.finish_release(entry.name, entry.since, deadline)
        log.info("gave an address back that Docker has forgotten", address=entry.name)

    def _is_unused(self, one: Allocation) -> bool:
        """By all that this process knows."""
        text = str(one.address)
        return (
            one.by_driver
            and (one.since is None or self._now() - one.since > timedelta(seconds=self._pace.grace))
            and not self._given.recent(text, self._pace.grace)
            and self._view.owner_of(text) is None
            and not any(text in record.reserved for record in self._view.networks())
        )

    def _in_use(self, deadline: Deadline) -> set[str]:
        """Addresses of endpoints and networks, as etcd has them now. What does not parse might hold any: then nothing
        is freed.
        """
        used: set[str] = set()
        for item in self._kv.list(endpoints_prefix(self._node), deadline).items:
            used.update(addresses(codec.decode(WorkloadEndpoint, item.key, item.value)))
        for item in self._kv.list(keys.NETWORKS, deadline).items:
            used.update(codec.decode(NetworkRecord, item.key, item.value).reserved)
        return used

    def _free(self, one: Allocation, deadline: Deadline) -> bool:
        try:
            self._given.free(one, deadline)
        except (Conflict, CorruptValue) as error:
            log.info("left alone", address=str(one.address), error=str(error))
            return False
        log.warning(
            "freed an address that nothing used", address=str(one.address), since=str(one.since), type=one.type
        )
        return True
