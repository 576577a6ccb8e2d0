"""Other ends of the hosts' tunnels: a host endpoint lets wrapped packets of the cluster's own nodes through before any
policy, else policy for hosts would cut off all containers (policy 4.1). What is inside is policed where it comes out.
"""

from __future__ import annotations

from ipaddress import ip_interface
from typing import Iterable

from calico_plugin.model.desired import AddressSet, SetType
from calico_plugin.model.keys import ResourceKey
from calico_plugin.model.resources import IPPool, Node

NAMES = {4: "tunnel-ends4", 6: "tunnel-ends6"}


class TunnelEnds:
    """Addresses of all nodes, of the IP versions in which a pool uses VXLAN."""

    def __init__(self) -> None:
        self._nodes: dict[ResourceKey, frozenset[str]] = {}
        self._versions: frozenset[int] = frozenset()

    def set_node(self, key: ResourceKey, node: object) -> bool:
        """Whether anything changed; anything but a Node takes it away."""
        before = self._nodes.pop(key, frozenset())
        now = _addresses(node) if isinstance(node, Node) else frozenset()
        if now:
            self._nodes[key] = now
        return before != now

    def set_pools(self, pools: Iterable[IPPool]) -> bool:
        """Whether anything changed."""
        before = self._versions
        self._versions = frozenset(pool.spec.version for pool in pools if pool.spec.vxlan_mode not in ("", "Never"))
        return before != self._versions

    def sets(self) -> dict[int, AddressSet]:
        """By IP version; none where no pool uses VXLAN."""
        everyone = self.everyone()
        return {
            version: AddressSet(NAMES[version], SetType[f"IPV{version}"], everyone[version])
            for version in sorted(self._versions)
        }

    def everyone(self) -> dict[int, frozenset[str]]:
        """Addresses of all nodes, by IP version."""
        listed = [address for addresses in self._nodes.values() for address in addresses]
        six = frozenset(address for address in listed if ":" in address)
        return {4: frozenset(listed) - six, 6: six}


def _addresses(node: Node) -> frozenset[str]:
    bgp = node.spec.bgp
    found = set()
    for text in (bgp.ipv4_address, bgp.ipv6_address) if bgp else ():
        try:
            found.add(str(ip_interface(text).ip))
        except ValueError:
            continue
    return frozenset(found)
