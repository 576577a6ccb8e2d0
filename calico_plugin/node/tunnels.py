"""Addresses of this node's tunnel devices: reserved in an encapsulating pool, told in the Node, given back when no pool
needs them (node-and-cli 1.7).

calico-node does this, once at a start and again whenever a pool or the own Node changes, because it gives addresses:
the agent only reads them from the Node. Each has a handle and attributes that say what it is, so it is never taken for
a leak. Every step may be repeated: a reservation that was made but not yet told is found again by its handle.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any, Sequence

import structlog
from msgspec.structs import replace

from calico_plugin.datastore.kv import KV
from calico_plugin.datastore.store import Store
from calico_plugin.datastore.watch import Broken, Changes, Watch
from calico_plugin.deadline import Deadline
from calico_plugin.errors import AlreadyExists, CalicoError, Conflict, NotFound, PoolExhausted
from calico_plugin.ipam import Allocator
from calico_plugin.model import keys, names
from calico_plugin.model.codec import Stored
from calico_plugin.model.resources import IPPool, Node
from calico_plugin.model.resources.node import NodeBGPSpec, NodeSpec
from calico_plugin.node.follower import Follower
from calico_plugin.observe.log import bug
from calico_plugin.policy import selector
from calico_plugin.routing.tunnels import encapsulation

log: Any = structlog.get_logger(part="tunnels")

STEP_SECONDS = 20.0
_TRIES = 10
_AGAIN_SECONDS, _LONGEST_SECONDS, _EVERY_SECONDS = 1.0, 30.0, 300.0


@dataclass(frozen=True, slots=True)
class Tunnel:
    """One kind of tunnel: which pools need it, and how its address is marked in IPAM."""

    kind: str
    version: int
    handle_prefix: str
    type: str

    def handle(self, node: str) -> str:
        return f"{self.handle_prefix}-{node}"

    def attributes(self, node: str) -> dict[str, str]:
        return {"node": node, "type": self.type}

    def needs(self, pool: IPPool) -> bool:
        found = encapsulation(pool.spec)
        return found is not None and found[0] == self.kind and pool.spec.version == self.version


TUNNELS = (
    Tunnel("ipip", 4, "ipip-tunnel-addr", "ipipTunnelAddress"),
    Tunnel("vxlan", 4, "vxlan-tunnel-addr", "vxlanTunnelAddress"),
    Tunnel("vxlan", 6, "vxlan-v6-tunnel-addr", "vxlanV6TunnelAddress"),
)


def told(spec: NodeSpec, tunnel: Tunnel) -> str:
    """The tunnel's address as the Node has it."""
    if tunnel.kind == "ipip":
        return spec.bgp.ipv4_ipip_tunnel_addr if spec.bgp else ""
    return spec.ipv4_vxlan_tunnel_addr if tunnel.version == 4 else spec.ipv6_vxlan_tunnel_addr


def telling(spec: NodeSpec, tunnel: Tunnel, address: str, node: str) -> NodeSpec:
    """The spec with the tunnel's address in it ("": none), and the MAC that goes with it."""
    if tunnel.kind == "ipip":
        if spec.bgp is None and not address:
            return spec
        bgp = replace(spec.bgp or NodeBGPSpec(), ipv4_ipip_tunnel_addr=address)
        return replace(spec, bgp=None if bgp == NodeBGPSpec() else bgp)
    if tunnel.version == 4:
        mac = (spec.vxlan_tunnel_mac_addr or names.tunnel_mac(node, 4)) if address else ""
        return replace(spec, ipv4_vxlan_tunnel_addr=address, vxlan_tunnel_mac_addr=mac)
    mac = (spec.vxlan_tunnel_mac_addr_v6 or names.tunnel_mac(node, 6)) if address else ""
    return replace(spec, ipv6_vxlan_tunnel_addr=address, vxlan_tunnel_mac_addr_v6=mac)


def reserve(kv: KV, node: str, deadline: Deadline) -> None:
    """Bring reservations and Node in step with the pools. Raises CalicoError.

    Another writer of the Node in between: look again, decide again.
    """
    store = Store(kv)
    for attempt in range(_TRIES):
        try:
            return _reserve(kv, store, node, deadline)
        except (Conflict, AlreadyExists):
            if attempt == _TRIES - 1:
                raise


def _reserve(kv: KV, store: Store, node: str, deadline: Deadline) -> None:
    stored = store.resources(Node).find(node, deadline)
    if stored is None:
        return  # a node that is deleted while it runs is written anew by its next start
    pools = [one.value for one in store.resources(IPPool).list(deadline).items]
    allocator = Allocator(kv, lambda text, labels: selector.parse(text).match(labels))
    spec = stored.value.spec
    for tunnel in TUNNELS:
        address = _Reservation(allocator, node, stored, tunnel, deadline).settle(_wanted(pools, tunnel, stored.value))
        spec = telling(spec, tunnel, address, node)
    if spec != stored.value.spec:
        store.resources(Node).update(stored, replace(stored.value, spec=spec), deadline)


def _wanted(pools: Sequence[IPPool], tunnel: Tunnel, node: Node) -> list[str]:
    """CIDRs of the pools from which the tunnel's address may be."""
    return sorted(
        pool.spec.cidr
        for pool in pools
        if tunnel.needs(pool)
        and not pool.spec.disabled
        and "Tunnel" in pool.spec.effective_uses
        and _selects(pool, node)
    )


def _selects(pool: IPPool, node: Node) -> bool:
    try:
        return selector.parse(pool.spec.node_selector or "all()").match(node.labels)
    except selector.SelectorError:
        return False


class _Reservation:
    """One tunnel's address."""

    def __init__(
        self, allocator: Allocator, node: str, stored: Stored[Node], tunnel: Tunnel, deadline: Deadline
    ) -> None:
        self._allocator, self._node, self._tunnel, self._deadline = allocator, node, tunnel, deadline
        self._told = told(stored.value.spec, tunnel)
        self._handle = tunnel.handle(node)

    def settle(self, pools: Sequence[str]) -> str:
        """The address that the Node shall tell; "" when no pool needs one, or none has one left."""
        kept, surplus = self._held(pools)
        for address in surplus:
            log.info("Tunnel address released", address=address, type=self._tunnel.type)
        if surplus:
            self._allocator.release(surplus, self._deadline)
        if not pools:
            return ""
        if kept:
            log.debug("Tunnel address is still valid", address=kept, type=self._tunnel.type)
            return kept
        return self._take_told(pools) or self._take_any(pools)

    def _held(self, pools: Sequence[str]) -> tuple[str, list[str]]:
        """What our handle holds: the one to keep (the told one first), and the others."""
        try:
            found = [str(one) for one in self._allocator.ips_by_handle(self._handle, self._deadline)]
        except NotFound:
            return "", []
        good = [one for one in found if _inside(one, pools)]
        kept = self._told if self._told in good else (good[0] if good else "")
        return kept, [one for one in found if one != kept]

    def _take_told(self, pools: Sequence[str]) -> str:
        """Take the address that the Node tells but nobody has reserved: the others know it already."""
        if not self._told or not _inside(self._told, pools):
            return ""
        try:
            self._allocator.assign(
                self._told,
                self._node,
                deadline=self._deadline,
                use="Tunnel",
                handle=self._handle,
                attributes=self._tunnel.attributes(self._node),
            )
        except CalicoError as error:
            log.warning("The tunnel address is not ours any more", address=self._told, reason=str(error))
            return ""
        return self._told

    def _take_any(self, pools: Sequence[str]) -> str:
        try:
            assigned = self._allocator.auto_assign(
                self._node,
                version=self._tunnel.version,
                deadline=self._deadline,
                use="Tunnel",
                handle=self._handle,
                attributes=self._tunnel.attributes(self._node),
                pools=pools,
            )
        except PoolExhausted as error:
            log.error("No tunnel address: containers of these pools cannot reach other hosts", reason=str(error))
            return ""
        address = str(assigned.addresses[0].ip)
        log.info(f"Assigned tunnel address {address}", type=self._tunnel.type, pools=",".join(pools))
        return address


def _inside(address: str, pools: Sequence[str]) -> bool:
    return any(ip_address(address) in ip_network(cidr, strict=False) for cidr in pools)


class Keeper(Follower):
    """Keeps the reservations right while calico-node runs: at once after a change of a pool or of the own Node, and
    now and then.
    """

    def __init__(self, kv: KV, node: str) -> None:
        self._kv, self._node = kv, node
        super().__init__(Watch(kv, (keys.kind_prefix("IPPool"), keys.kind_prefix("Node"))), "tunnel-addresses")

    def _work(self) -> None:
        failures = 0
        while not self._closing.is_set():
            try:
                reserve(self._kv, self._node, Deadline(STEP_SECONDS))
                failures = 0
            except CalicoError as error:
                (log.debug if failures else log.warning)("Tunnel addresses could not be settled", reason=str(error))
                failures += 1
            except Exception:
                bug(log, "tunnel addresses: a step failed")
                failures += 1
            pause = min(_LONGEST_SECONDS, _AGAIN_SECONDS * 2 ** min(failures - 1, 16)) if failures else _EVERY_SECONDS
            self._wake.wait(pause)
            self._wake.clear()

    def _follow(self) -> None:
        own = keys.resource("Node", self._node)
        pools = keys.kind_prefix("IPPool")
        for event in self._watch:
            if isinstance(event, Broken):
                continue
            changed = [change.key for change in event.changes] if isinstance(event, Changes) else [own]
            if any(key == own or key.startswith(pools) for key in changed):
                self._wake.set()
