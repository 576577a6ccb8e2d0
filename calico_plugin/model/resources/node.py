"""Node (datamodel 5.1)."""

from __future__ import annotations

from typing import Any

from msgspec import field

from calico_plugin.model.resources.meta import ASNumber, Resource, Value


class NodeBGPSpec(Value, frozen=True, kw_only=True):
    """Addresses carry the host's prefix length and keep their host bits."""

    as_number: ASNumber | None = None
    ipv4_address: str = ""
    ipv6_address: str = ""
    ipv4_ipip_tunnel_addr: str = field(name="ipv4IPIPTunnelAddr", default="")
    route_reflector_cluster_id: str = field(name="routeReflectorClusterID", default="")


class NodeInterface(Value, frozen=True, kw_only=True):
    name: str = ""
    addresses: tuple[str, ...] = ()


class OrchRef(Value, frozen=True, kw_only=True):
    node_name: str = ""
    orchestrator: str = ""


class NodeSpec(Value, frozen=True, kw_only=True):
    """`bgp` is never stored as an empty object."""

    bgp: NodeBGPSpec | None = None
    ipv4_vxlan_tunnel_addr: str = field(name="ipv4VXLANTunnelAddr", default="")
    vxlan_tunnel_mac_addr: str = field(name="vxlanTunnelMACAddr", default="")
    ipv6_vxlan_tunnel_addr: str = field(name="ipv6VXLANTunnelAddr", default="")
    vxlan_tunnel_mac_addr_v6: str = field(name="vxlanTunnelMACAddrV6", default="")
    orch_refs: tuple[OrchRef, ...] = ()
    wireguard: dict[str, Any] | None = None
    addresses: tuple[dict[str, Any], ...] = ()
    interfaces: tuple[NodeInterface, ...] = ()


class Node(Resource, frozen=True, kw_only=True):
    kind: str = "Node"
    spec: NodeSpec = NodeSpec()
    status: dict[str, Any] = {}
