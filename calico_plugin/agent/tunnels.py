"""Encapsulated pools on this host: follows the cluster, keeps the kernel in step (owned by the loop's thread).

Without an encapsulated pool it costs nothing. With one, a container elsewhere only matters when its address lies
outside the blocks of its own node (a borrowed one): then it needs a route of its own.
"""

from __future__ import annotations

import time
from ipaddress import ip_interface
from typing import Callable, Iterable, Iterator, Mapping

import structlog

from calico_plugin.agent.view import AffinityUpdate, Update, View
from calico_plugin.dataplane.netlink import Netlink
from calico_plugin.dataplane.tunnels import TunnelTable
from calico_plugin.model import names
from calico_plugin.model.codec import Invalid
from calico_plugin.model.ipam import Affinity
from calico_plugin.model.keys import ResourceKey
from calico_plugin.model.resources import Resource, WorkloadEndpoint
from calico_plugin.model.tunnels import Tunnels
from calico_plugin.observe.metrics import Metrics
from calico_plugin.observe.problems import ENCAPSULATION, Problems
from calico_plugin.routing import tunnels

KINDS = ("Node", "IPPool", "FelixConfiguration")
# Seconds before what is missing counts as a problem.
PATIENCE = 5.0


class Encapsulation:
    """`on_update` for everything that the view tells, then `apply` while `dirty`. Not `enabled` (a node for policy
    only): whatever an earlier agent made is taken away, and nothing is made.
    """

    def __init__(
        self,
        node: str,
        netlink: Netlink,
        metrics: Metrics,
        problems: Problems,
        enabled: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._node, self._metrics, self._problems, self._clock = node, metrics, problems, clock
        self._enabled, self._planned = enabled, clock()
        self._table = TunnelTable(netlink)
        self._changed = True
        self._active = False
        self._told: tuple[str, ...] | None = None
        self._impossible: tuple[str, ...] = ()
        self._pools: tuple[tunnels.Pool, ...] = ()
        self._affinities: Mapping[tuple[str, str], Affinity] = {}
        self._log = structlog.get_logger(part="encapsulation")

    @property
    def dirty(self) -> bool:
        return self._changed or self._table.pending

    def on_update(self, update: Update) -> None:
        if isinstance(update, AffinityUpdate):
            self._changed = self._changed or self._active
        elif update.key.kind in KINDS:
            self._changed = self._changed or self._active or update.key.kind == "IPPool"
        elif update.key.kind == "WorkloadEndpoint" and self._active and not self._changed:
            moved = _addresses(update.key, update.old) != _addresses(update.key, update.new)
            self._changed = moved and self._concerns(update.key, (update.old, update.new))

    def on_link(self, body: bytes) -> None:
        self._table.on_link(body)

    def on_route(self, kind: int, body: bytes) -> None:
        self._table.on_route(kind, body)

    def look(self) -> None:
        """Others may have changed what we made: look at the next pass."""
        if self._active:
            self._table.look()

    def apply(self, view: View) -> list[str]:
        """Sentences about what failed and is to be tried again."""
        if self._changed:
            self._plan(view)
        errors = self._table.apply() if self._table.pending else []
        # What the plan lacks may be on its way, such as an address that calico-node reserves for a new pool.
        late = self._impossible if self._clock() - self._planned > PATIENCE else ()
        self._tell((*late, *self._table.problems))
        return errors

    def _plan(self, view: View) -> None:
        snapshot = view.snapshot(KINDS)
        self._pools = tunnels.pools(snapshot) if self._enabled else ()
        self._affinities = snapshot.affinities
        self._active = bool(self._pools)
        wanted = tunnels.plan(snapshot, self._node, dict(self._borrowed(view))) if self._active else Tunnels()
        if wanted.problems != self._impossible:
            self._impossible, self._planned = wanted.problems, self._clock()
        self._table.want(wanted)
        self._changed = False
        self._metrics.tunnel_routes.set(len(wanted.routes))

    def _borrowed(self, view: View) -> Iterator[tuple[str, str]]:
        """Addresses of containers elsewhere that their node's blocks do not cover, unless a container here has them."""
        here: set[str] = set()
        there: dict[str, str] = {}
        for key, endpoint in view.kind("WorkloadEndpoint").items():
            node, addresses = _addresses(key, endpoint)
            if node == self._node:
                here.update(addresses)
                continue
            there.update((address, node) for address in addresses if self._is_borrowed(address, node))
        return ((address, node) for address, node in there.items() if address not in here)

    def _is_borrowed(self, address: str, node: str) -> bool:
        block = self._block_of(address)
        return block is not None and (node, block) not in self._affinities

    def _block_of(self, address: str) -> str | None:
        """The block in an encapsulated pool that an address belongs to."""
        parsed = ip_interface(address).ip
        for pool in self._pools:
            if parsed.version == pool.network.version and parsed in pool.network:
                return pool.block_of(address)
        return None

    def _concerns(self, key: ResourceKey, versions: Iterable[Resource | Invalid | None]) -> bool:
        for version in versions:
            node, addresses = _addresses(key, version)
            if any(self._is_borrowed(address, node) for address in addresses):
                return True
        return False

    def _tell(self, problems: tuple[str, ...]) -> None:
        if problems == self._told:
            return
        for problem in problems:
            if problem not in (self._told or ()):
                self._log.warning("encapsulation does not work as configured", problem=problem)
        self._told = problems
        self._metrics.tunnel_problems.set(len(problems))
        self._problems.tell(ENCAPSULATION, problems)


def _addresses(key: ResourceKey, endpoint: Resource | Invalid | None) -> tuple[str, frozenset[str]]:
    """Node and bare addresses of a container; none for one that is absent or broken."""
    if not isinstance(endpoint, WorkloadEndpoint):
        return "", frozenset()
    node = names.split_workload_endpoint(key.name)[0]
    found = set()
    for text in endpoint.spec.ip_networks:
        try:
            found.add(str(ip_interface(text).ip))
        except ValueError:
            continue
    return node, frozenset(found)
