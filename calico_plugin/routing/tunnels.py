"""Snapshot + node -> tunnel devices, their ends on other nodes, and routes of encapsulated pools; pure.

Stock BIRD cannot say "through that tunnel", so it leaves these pools alone and the agent has their routes (node-and-cli
2.7): a block of another node through the tunnel, or plainly when the pool is CrossSubnet and the node is in our own
subnet; an own block as a blackhole, which the routes of our containers beat. A tunnel needs an address of its own
inside the pool on both sides; calico-node reserves it. A node that has none yet is only left out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import Any, Iterable, Iterator, Mapping

from calico_plugin.model import names
from calico_plugin.model.keys import ResourceKey
from calico_plugin.model.resources import FelixConfiguration, IPPool, Node
from calico_plugin.model.resources.ipam import IPPoolSpec
from calico_plugin.model.snapshot import Snapshot
from calico_plugin.model.tunnels import IPIP, VXLAN, Device, Peer, TunnelRoute, Tunnels

VNI, PORT = 4096, 4789
_HOST_LENGTH = {4: 32, 6: 128}
_MAC = "[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}"


@dataclass(frozen=True, slots=True)
class Range:
    """A network as numbers: ten thousands of them are compared at each change of the cluster."""

    version: int
    first: int
    last: int

    def holds(self, other: Range) -> bool:
        return self.version == other.version and self.first <= other.first and other.last <= self.last


@dataclass(frozen=True, slots=True)
class Pool:
    """An encapsulated pool. `kind` is VXLAN or IPIP; `cross_subnet`: only towards other subnets."""

    name: str
    range: Range
    kind: str
    cross_subnet: bool
    block_size: int

    @property
    def version(self) -> int:
        return self.range.version

    def block_of(self, address: str) -> str | None:
        """CIDR of the block that an address of this pool belongs to; None for other addresses."""
        found = _range(address)
        if found is None or not self.range.holds(found):
            return None
        return str(ip_network((address, self.block_size), strict=False))


@dataclass(frozen=True, slots=True)
class End:
    """A node as tunnels see it: its own address, its subnet, and (address, MAC) of its tunnel devices."""

    name: str
    host: str
    place: Range
    subnet: Range
    vxlan: tuple[str, str]
    ipip: str

    def address(self, kind: str) -> str:
        return self.vxlan[0] if kind == VXLAN else self.ipip


def pools(snapshot: Snapshot) -> tuple[Pool, ...]:
    """The encapsulated pools, disabled ones too: these give no new addresses, but their containers live on."""
    found = []
    for pool in snapshot.kind("IPPool").values():
        if isinstance(pool, IPPool) and (mode := encapsulation(pool.spec)) is not None:
            found_range = _range(pool.spec.cidr)
            if found_range is not None:
                found.append(Pool(pool.name, found_range, *mode, pool.spec.effective_block_size))
    return tuple(sorted(found, key=lambda one: (one.version, one.range.first)))


def encapsulation(spec: IPPoolSpec) -> tuple[str, bool] | None:
    """(kind, whether only across subnets) of a pool; None for a plain one."""
    for kind, mode in ((VXLAN, spec.vxlan_mode), (IPIP, spec.ipip_mode)):
        if mode not in ("", "Never"):
            return kind, mode == "CrossSubnet"
    return None


def plan(snapshot: Snapshot, node_name: str, borrowed: Mapping[str, str] | None = None) -> Tunnels:
    """What `node_name` needs. `borrowed`: address (bare) of a container outside its own node's blocks -> that node."""
    encapsulated = pools(snapshot)
    if not encapsulated:
        return Tunnels()
    planner = _Planner(snapshot, node_name, encapsulated)
    return planner.plan(borrowed or {})


class _Planner:
    """One computation for one node."""

    def __init__(self, snapshot: Snapshot, me: str, encapsulated: tuple[Pool, ...]) -> None:
        self._snapshot, self._me, self._pools = snapshot, me, encapsulated
        nodes = [node for node in snapshot.kind("Node").values() if isinstance(node, Node)]
        self._ends = {
            version: {end.name: end for node in nodes if (end := _end(node, version)) is not None} for version in (4, 6)
        }
        self._felix = _felix(snapshot, me)
        self._problems: list[str] = []

    def plan(self, borrowed: Mapping[str, str]) -> Tunnels:
        devices = tuple(self._devices())
        ready = {(one.kind, one.version) for one in devices}
        routes = dict(self._routes(ready, borrowed))
        return Tunnels(devices, tuple(self._peers(devices)), routes, tuple(self._problems))

    def _devices(self) -> Iterator[Device]:
        for kind, version in sorted({(pool.kind, pool.version) for pool in self._pools}):
            own = self._ends[version].get(self._me)
            if own is None:
                self._problems.append(f"{_what(kind, version)}: node {self._me} has no IPv{version} address")
            elif not own.address(kind):
                self._problems.append(
                    f"{_what(kind, version)}: node {self._me} has no tunnel address yet; calico-node reserves one"
                )
            elif kind == VXLAN:
                yield self._vxlan(own, version)
            else:
                mtu = _number(self._felix, "ipipMTU", 0)
                yield Device(names.IPIP_DEVICE, IPIP, 4, own.host, own.ipip, mtu=mtu)

    def _vxlan(self, own: End, version: int) -> Device:
        return Device(
            name=names.VXLAN_DEVICES[version],
            kind=VXLAN,
            version=version,
            local=own.host,
            address=own.vxlan[0],
            mac=own.vxlan[1],
            mtu=_number(self._felix, "vxlanMTU" if version == 4 else "vxlanMTUV6", 0),
            vni=_number(self._felix, "vxlanVNI", VNI),
            port=_number(self._felix, "vxlanPort", PORT),
        )

    def _peers(self, devices: Iterable[Device]) -> Iterator[Peer]:
        for device in devices:
            if device.kind != VXLAN:
                continue
            for end in sorted(self._ends[device.version].values(), key=lambda one: one.name):
                if end.name != self._me and end.vxlan[0]:
                    yield Peer(device.name, *end.vxlan, end.host)

    def _routes(self, ready: set[tuple[str, int]], borrowed: Mapping[str, str]) -> Iterator[tuple[str, TunnelRoute]]:
        affinities = self._snapshot.affinities
        for (host, cidr), affinity in affinities.items():
            if affinity.state not in ("", "confirmed") or affinity.deleted:
                continue
            pool = self._pool_of(cidr)
            if pool is None:
                continue
            if host != self._me:
                yield from self._remote(cidr, host, pool, ready)
            elif not cidr.endswith(f"/{_HOST_LENGTH[pool.version]}"):
                yield cidr, TunnelRoute()
        for address, host in (*self._tunnel_ends(), *borrowed.items()):
            pool = self._pool_of(address)
            if pool is None or host == self._me:
                continue
            if (host, pool.block_of(address)) not in affinities:
                yield from self._remote(f"{address}/{_HOST_LENGTH[pool.version]}", host, pool, ready)

    def _remote(
        self, cidr: str, host: str, pool: Pool, ready: set[tuple[str, int]]
    ) -> Iterator[tuple[str, TunnelRoute]]:
        there, own = self._ends[pool.version].get(host), self._ends[pool.version].get(self._me)
        if there is None or own is None:
            return
        if pool.cross_subnet and own.subnet.holds(there.place):
            yield cidr, TunnelRoute(there.host)
        elif (pool.kind, pool.version) not in ready or not there.address(pool.kind):
            return
        elif pool.kind == VXLAN:
            yield cidr, TunnelRoute(there.vxlan[0], names.VXLAN_DEVICES[pool.version])
        else:
            yield cidr, TunnelRoute(there.host, names.IPIP_DEVICE)

    def _tunnel_ends(self) -> Iterator[tuple[str, str]]:
        """Addresses of tunnel devices may lie in a block of another node as well."""
        for ends in self._ends.values():
            for end in ends.values():
                yield from ((address, end.name) for address in (end.vxlan[0], end.ipip) if address)

    def _pool_of(self, cidr: str) -> Pool | None:
        found = _range(cidr)
        if found is None:
            return None
        return next((pool for pool in self._pools if pool.range.holds(found)), None)


def _what(kind: str, version: int) -> str:
    return f"{'VXLAN' if kind == VXLAN else 'IPIP'} pools of IPv{version}"


def _end(node: Node, version: int) -> End | None:
    """The node's side; None when it has no (valid) address of that IP version."""
    bgp, spec = node.spec.bgp, node.spec
    text = (bgp.ipv4_address if version == 4 else bgp.ipv6_address) if bgp else ""
    host = text.partition("/")[0]
    place, subnet = _range(host), _range(text)
    if place is None or subnet is None or place.version != version:
        return None
    address = spec.ipv4_vxlan_tunnel_addr if version == 4 else spec.ipv6_vxlan_tunnel_addr
    mac = spec.vxlan_tunnel_mac_addr if version == 4 else spec.vxlan_tunnel_mac_addr_v6
    ipip = bgp.ipv4_ipip_tunnel_addr if bgp and version == 4 else ""
    mac = mac.lower() if re.fullmatch(_MAC, mac) else names.tunnel_mac(node.name, version)
    return End(node.name, bare(host), place, subnet, (bare(address), mac), bare(ipip))


@lru_cache(maxsize=1 << 16)
def bare(text: str) -> str:
    """An address in its usual form; "" for what is none."""
    try:
        return str(ip_address(text))
    except ValueError:
        return ""


@lru_cache(maxsize=1 << 17)
def _range(text: str) -> Range | None:
    try:
        found = ip_network(text, strict=False)
    except ValueError:
        return None
    return Range(found.version, int(found.network_address), int(found.broadcast_address))


def _felix(snapshot: Snapshot, node_name: str) -> dict[str, Any]:
    """Members of FelixConfiguration, the node's own over the cluster's."""
    members: dict[str, Any] = {}
    for name in ("default", f"node.{node_name}"):
        found = snapshot.kind("FelixConfiguration").get(ResourceKey("FelixConfiguration", name))
        if isinstance(found, FelixConfiguration):
            members.update(found.spec)
    return members


def _number(members: Mapping[str, Any], name: str, default: int) -> int:
    """A whole number above 0, else the default."""
    value = members.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else default
