"""Addresses of tunnel devices: reserved, told in the Node, kept, moved, given back."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from calico_plugin.datastore.kv import KV
from calico_plugin.datastore.store import Store
from calico_plugin.deadline import Deadline
from calico_plugin.errors import NotFound
from calico_plugin.ipam import Allocator
from calico_plugin.model import names
from calico_plugin.model.resources import IPPool, Metadata, Node
from calico_plugin.model.resources.ipam import IPPoolSpec
from calico_plugin.model.resources.node import NodeBGPSpec, NodeSpec
from calico_plugin.node.tunnels import reserve
from calico_plugin.policy import selector

NODE, HANDLE = "h1", "vxlan-tunnel-addr-h1"


class Cluster:
    """One node, and pools by CIDR."""

    def __init__(self, kv: KV) -> None:
        self.kv, self.store = kv, Store(kv)
        self.allocator = Allocator(kv, lambda text, labels: selector.parse(text).match(labels))
        bgp = NodeBGPSpec(ipv4_address="10.9.0.1/24", ipv6_address="fd09::1/64")
        node = Node(metadata=Metadata(name=NODE, labels={"rack": "r1"}), spec=NodeSpec(bgp=bgp))
        self.store.resources(Node).create(node, Deadline(5))

    def pool(self, cidr: str, **spec: object) -> None:
        wanted = IPPool(
            metadata=Metadata(name=names.cidr_name(cidr)), spec=IPPoolSpec(cidr=cidr, **spec)  # type: ignore[arg-type]
        )
        stored = self.store.resources(IPPool).find(wanted.name, Deadline(5))
        if stored is None:
            self.store.resources(IPPool).create(wanted, Deadline(5))
        else:
            self.store.resources(IPPool).update(stored, replace(stored.value, spec=wanted.spec), Deadline(5))

    def settle(self) -> NodeSpec:
        reserve(self.kv, NODE, Deadline(10))
        return self.spec

    @property
    def spec(self) -> NodeSpec:
        return self.store.resources(Node).get(NODE, Deadline(5)).value.spec

    def tell(self, **members: str) -> None:
        stored = self.store.resources(Node).get(NODE, Deadline(5))
        changed = replace(stored.value, spec=replace(stored.value.spec, **members))
        self.store.resources(Node).update(stored, changed, Deadline(5))

    def held(self, handle: str = HANDLE) -> list[str]:
        try:
            return [str(one) for one in self.allocator.ips_by_handle(handle, Deadline(5))]
        except NotFound:
            return []


@pytest.fixture
def cluster(any_kv: KV) -> Cluster:
    return Cluster(any_kv)


def test_reserved_told_and_kept(cluster: Cluster) -> None:
    """An address with handle and attributes; the MAC beside it; the next look changes nothing."""
    cluster.pool("10.1.0.0/24", vxlan_mode="CrossSubnet")
    spec = cluster.settle()
    assert spec.ipv4_vxlan_tunnel_addr.startswith("10.1.0.") and cluster.held() == [spec.ipv4_vxlan_tunnel_addr]
    assert spec.vxlan_tunnel_mac_addr == names.tunnel_mac(NODE, 4)
    found = cluster.allocator.attributes_of(spec.ipv4_vxlan_tunnel_addr, Deadline(5))
    assert found.attributes == {"node": NODE, "type": "vxlanTunnelAddress"}
    before = cluster.store.resources(Node).get(NODE, Deadline(5)).revision
    assert cluster.settle() == spec
    assert cluster.store.resources(Node).get(NODE, Deadline(5)).revision == before


def test_no_pool_needs_one(cluster: Cluster) -> None:
    """Plain, disabled, other nodes' and workload-only pools ask for none; one that ceases to, gives it back."""
    cluster.pool("10.1.0.0/24")
    cluster.pool("10.2.0.0/24", vxlan_mode="Always", disabled=True)
    cluster.pool("10.3.0.0/24", vxlan_mode="Always", node_selector="rack == 'r2'")
    cluster.pool("10.4.0.0/24", vxlan_mode="Always", allowed_uses=("Workload",))
    before = cluster.spec
    assert cluster.settle() == before
    cluster.pool("10.1.0.0/24", vxlan_mode="Always")
    assert cluster.settle().ipv4_vxlan_tunnel_addr
    cluster.pool("10.1.0.0/24")
    assert cluster.settle() == before and cluster.held() == []


def test_moves_with_the_pool(cluster: Cluster) -> None:
    """When its pool left the set the old address goes and one of a pool of the set comes."""
    cluster.pool("10.1.0.0/24", vxlan_mode="Always")
    assert cluster.settle().ipv4_vxlan_tunnel_addr.startswith("10.1.0.")
    cluster.pool("10.1.0.0/24")
    cluster.pool("10.2.0.0/24", vxlan_mode="Always")
    spec = cluster.settle()
    assert spec.ipv4_vxlan_tunnel_addr.startswith("10.2.0.") and cluster.held() == [spec.ipv4_vxlan_tunnel_addr]


def test_reservation_that_was_not_told(cluster: Cluster) -> None:
    """A crash between reserving and telling: the reserved one is told, no second is taken."""
    cluster.pool("10.1.0.0/24", vxlan_mode="Always")
    first = cluster.settle().ipv4_vxlan_tunnel_addr
    cluster.tell(ipv4_vxlan_tunnel_addr="", vxlan_tunnel_mac_addr="")
    assert cluster.settle().ipv4_vxlan_tunnel_addr == first and cluster.held() == [first]


def test_told_address_that_nobody_has(cluster: Cluster) -> None:
    """It is reserved, since the others know it; one that a container has got is given up."""
    cluster.pool("10.1.0.0/24", vxlan_mode="Always")
    cluster.tell(ipv4_vxlan_tunnel_addr="10.1.0.77")
    assert cluster.settle().ipv4_vxlan_tunnel_addr == "10.1.0.77" and cluster.held() == ["10.1.0.77"]
    cluster.allocator.release_by_handle(HANDLE, Deadline(5))
    cluster.allocator.assign("10.1.0.77", NODE, deadline=Deadline(5), attributes={"node": NODE})
    spec = cluster.settle()
    assert spec.ipv4_vxlan_tunnel_addr not in ("", "10.1.0.77") and cluster.held() == [spec.ipv4_vxlan_tunnel_addr]
    assert cluster.allocator.attributes_of("10.1.0.77", Deadline(5)).handle is None


def test_all_kinds(cluster: Cluster) -> None:
    """IPIP, VXLAN and VXLAN of IPv6 have one each, told in their own fields; a MAC that is set stays."""
    cluster.pool("10.1.0.0/24", vxlan_mode="Always")
    cluster.pool("10.2.0.0/24", ipip_mode="CrossSubnet")
    cluster.pool("fd66::/64", vxlan_mode="Always")
    cluster.tell(vxlan_tunnel_mac_addr="02:00:00:00:00:07")
    spec = cluster.settle()
    assert spec.bgp is not None and spec.bgp.ipv4_ipip_tunnel_addr.startswith("10.2.0.")
    assert spec.ipv6_vxlan_tunnel_addr.startswith("fd66::")
    assert spec.vxlan_tunnel_mac_addr == "02:00:00:00:00:07" and spec.vxlan_tunnel_mac_addr_v6
    assert cluster.held("ipip-tunnel-addr-h1") == [spec.bgp.ipv4_ipip_tunnel_addr]
    assert cluster.held("vxlan-v6-tunnel-addr-h1") == [spec.ipv6_vxlan_tunnel_addr]


def test_deleted_node_gets_nothing(cluster: Cluster) -> None:
    """A Node that was deleted while its host runs is not made anew here."""
    cluster.pool("10.1.0.0/24", vxlan_mode="Always")
    cluster.store.resources(Node).delete(NODE, Deadline(5))
    reserve(cluster.kv, NODE, Deadline(5))
    assert cluster.held() == [] and cluster.store.resources(Node).find(NODE, Deadline(5)) is None
