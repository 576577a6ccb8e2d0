"""What the loop looks after beside its passes: settings of the whole host, the gateway's route, and leftovers."""

from __future__ import annotations

from typing import Callable

import structlog

from calico_plugin.agent.endpoints import Endpoints, LocalEndpoint
from calico_plugin.dataplane import links, routes, sysctl
from calico_plugin.dataplane.netlink import Netlink
from calico_plugin.errors import DataplaneError
from calico_plugin.model.keys import ResourceKey
from calico_plugin.model.names import INTERFACE_PREFIX, TEMPORARY_PREFIX
from calico_plugin.observe.metrics import Metrics

# A link without endpoint: its endpoint may be on its way from etcd, or the driver about to delete it.
LINK_GRACE = 10.0
# An endpoint without link: longer than any driver call may take.
ENDPOINT_GRACE = 30.0


class HostSettings:
    """Forwarding, and the route that makes the kernel answer for the containers' gateway."""

    def __init__(self, netlink: Netlink, endpoints: Endpoints, node_address: Callable[[], str]) -> None:
        self._netlink, self._endpoints, self._node_address = netlink, endpoints, node_address
        self._told: set[str] = set()
        self._ipv6 = self._gateway_seen = False
        self._log = structlog.get_logger(part="host")

    def ensure_first(self) -> None:
        """With a new link: what may be needed for the first time."""
        if not self._gateway_seen:
            self.cover_gateway()
        if self._endpoints.has_ipv6 and not self._ipv6:
            self.ensure_forwarding()

    def ensure_forwarding(self) -> None:
        wanted = ["net/ipv4/ip_forward"]
        if self._endpoints.has_ipv6:
            # Only with a container that needs it: it makes the host deaf for router advertisements.
            wanted.append("net/ipv6/conf/all/forwarding")
            self._ipv6 = True
        for name in wanted:
            try:
                if sysctl.ensure(name, "1"):
                    self._log.info("forwarding was off and is on now", setting=name.replace("/", "."))
            except DataplaneError as error:
                if name not in self._told:
                    self._log.error("containers cannot be reached", error=str(error))
                self._told.add(name)

    def cover_gateway(self) -> None:
        """Proxy ARP answers for the gateway only while the host has a route there (a default route, normally)."""
        own = self._endpoints.indexes()
        if not own:
            return
        try:
            if not routes.gateway_covered(self._netlink, own):
                index = routes.uplink(self._netlink, self._node_address(), own)
                routes.cover_gateway(self._netlink, index)
                self._log.info("this host has no default route; added one for the containers' gateway", link=index)
            self._gateway_seen = True
        except DataplaneError as error:
            self._log.warning("the containers' gateway may not answer", error=str(error))


class Sweeper:
    """Links that no endpoint names go after a grace; endpoints whose link is gone or given back are told in `linkless`.

    About endpoints only Docker can judge (`docker_sync`).
    """

    def __init__(self, netlink: Netlink, endpoints: Endpoints, metrics: Metrics, clock: Callable[[], float]) -> None:
        self._netlink, self._endpoints, self._metrics, self._clock = netlink, endpoints, metrics, clock
        self._orphans: dict[str, float] = {}
        self._missing: dict[ResourceKey, float] = {}
        self._returned: frozenset[str] = frozenset()
        self.linkless: tuple[LocalEndpoint, ...] = ()
        self._log = structlog.get_logger(part="sweep")

    def look_for_returned(self) -> None:
        """Links whose container's end is in this namespace: Docker put it back, and nobody was there to be told.

        Between the making of a link and the start of its container that is so as well, hence the endpoints' grace.
        """
        try:
            back = links.listing(self._netlink, TEMPORARY_PREFIX)
        except DataplaneError:
            return
        self._returned = frozenset(INTERFACE_PREFIX + name.removeprefix(TEMPORARY_PREFIX) for name in back)

    def sweep(self) -> None:
        """Not before the first pass: until then every link looks like a leftover."""
        now = self._clock()
        self._sweep_links(now)
        without = [*self._endpoints.without_link(), *self._endpoints.behind(self._returned)]
        self._missing = {one.key: self._missing.get(one.key, now) for one in without}
        self.linkless = tuple(one for one in without if now - self._missing[one.key] >= ENDPOINT_GRACE)

    def _sweep_links(self, now: float) -> None:
        self._orphans = {name: self._orphans.get(name, now) for name in self._endpoints.unclaimed()}
        old = [self._endpoints.links[name] for name, since in self._orphans.items() if now - since >= LINK_GRACE]
        if not old:
            return
        for error in links.delete(self._netlink, old):
            self._log.warning("a leftover link stays", error=str(error))
        self._metrics.swept.labels("link").inc(len(old))
        self._log.info("removed links without endpoint", links=[link.name for link in old])
