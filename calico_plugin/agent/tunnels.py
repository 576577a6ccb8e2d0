"""Encapsulated pools on this host: follows the cluster, keeps the kernel in step (owned by the loop's thread).

Without an encapsulated pool it costs nothing. With one, a container elsewhere only matters when its address lies
outside the blocks of its own node (a borrowed one): then it needs a route of its own.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Callable, Mapping

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


@dataclass(frozen=True, slots=True)
class Place:
    """Where a container is: its node, and its addresses in encapsulated pools, each with the block around it."""

    node: str
    held: tuple[tuple[str, str], ...]


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
        self._places: dict[ResourceKey, Place] = {}
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
        elif update.key.kind == "WorkloadEndpoint" and self._active:
            before, now = self._places.pop(update.key, None), self._place(update.key, update.new)
            if now is not None:
                self._places[update.key] = now
            if before != now and any(place is not None and self._borrowed_of(place) for place in (before, now)):
                self._changed = True

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
        self._affinities = snapshot.affinities
        pools = tunnels.pools(snapshot) if self._enabled else ()
        if pools != self._pools:
            self._pools = pools
            found = ((key, self._place(key, one)) for key, one in view.kind("WorkloadEndpoint").items())
            self._places = {key: place for key, place in found if place is not None}
        self._active = bool(pools)
        wanted = tunnels.plan(snapshot, self._node, self._borrowed()) if self._active else Tunnels()
        if wanted.problems != self._impossible:
            self._impossible, self._planned = wanted.problems, self._clock()
        self._table.want(wanted)
        self._changed = False
        self._metrics.tunnel_routes.set(len(wanted.routes))

    def _place(self, key: ResourceKey, endpoint: Resource | Invalid | None) -> Place | None:
        """Of a container's addresses, those of encapsulated pools; None when it has none."""
        if not self._pools or not isinstance(endpoint, WorkloadEndpoint):
            return None
        addresses = (tunnels.bare(text.partition("/")[0]) for text in endpoint.spec.ip_networks)
        found = ((address, self._block_of(address)) for address in addresses)
        held = tuple((address, block) for address, block in found if block is not None)
        return Place(names.split_workload_endpoint(key.name)[0], held) if held else None

    def _block_of(self, address: str) -> str | None:
        """The block in an encapsulated pool that an address belongs to."""
        return next((block for pool in self._pools if (block := pool.block_of(address)) is not None), None)

    def _borrowed(self) -> dict[str, str]:
        """Addresses of containers elsewhere that their node's blocks do not cover, unless a container here has them."""
        there: dict[str, str] = {}
        here: set[str] = set()
        for place in self._places.values():
            if place.node == self._node:
                here.update(address for address, _ in place.held)
            else:
                there.update((address, place.node) for address in self._borrowed_of(place))
        return {address: node for address, node in there.items() if address not in here}

    def _borrowed_of(self, place: Place) -> list[str]:
        return [address for address, block in place.held if (place.node, block) not in self._affinities]

    def _tell(self, problems: tuple[str, ...]) -> None:
        if problems == self._told:
            return
        for problem in problems:
            if problem not in (self._told or ()):
                self._log.warning("encapsulation does not work as configured", problem=problem)
        self._told = problems
        self._metrics.tunnel_problems.set(len(problems))
        self._problems.tell(ENCAPSULATION, problems)
