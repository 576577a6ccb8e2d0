"""Devices, ends and routes of encapsulated pools, for whole scenarios."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from calico_plugin.model import names
from calico_plugin.model.ipam import Affinity
from calico_plugin.model.resources import FelixConfiguration, IPPool, Metadata, Node, Resource
from calico_plugin.model.resources.ipam import IPPoolSpec
from calico_plugin.model.snapshot import Snapshot
from calico_plugin.model.tunnels import IPIP, VXLAN, Device, Peer, TunnelRoute, Tunnels
from calico_plugin.routing.tunnels import plan
from tests.kernel.birdlab import node, snapshot

HOSTS = {"a": "10.9.1.1/24", "b": "10.9.1.2/24", "c": "10.9.2.3/24"}
ENDS = {"a": "10.1.0.1", "b": "10.1.0.65", "c": "10.1.0.129"}
BLOCKS = {"a": ["10.1.0.0/26"], "b": ["10.1.0.64/26"], "c": ["10.1.0.128/26"]}


def pool(cidr: str = "10.1.0.0/16", **spec: Any) -> IPPool:
    return IPPool(metadata=Metadata(name=names.cidr_name(cidr)), spec=IPPoolSpec(cidr=cidr, **spec))


def host(name: str, **more: str) -> Node:
    made = node(name, HOSTS[name])
    return replace(made, spec=replace(made.spec, ipv4_vxlan_tunnel_addr=ENDS[name], **more))


def view(*objects: Resource, blocks: dict[str, list[str]] | None = None) -> Snapshot:
    return snapshot([*(host(name) for name in HOSTS), *objects], BLOCKS if blocks is None else blocks)


def through(name: str) -> TunnelRoute:
    return TunnelRoute(ENDS[name], "vxlan.calico")


def test_always() -> None:
    """A device, an end for each other node, its block through the tunnel, the own one nowhere."""
    found = plan(view(pool(vxlan_mode="Always")), "a")
    mac = names.tunnel_mac("a", 4)
    assert found.devices == (Device("vxlan.calico", VXLAN, 4, "10.9.1.1", "10.1.0.1", mac, 0, 4096, 4789),)
    assert found.peers == tuple(
        Peer("vxlan.calico", ENDS[name], names.tunnel_mac(name, 4), HOSTS[name].removesuffix("/24")) for name in "bc"
    )
    assert found.routes == {
        "10.1.0.0/26": TunnelRoute(),
        "10.1.0.64/26": through("b"),
        "10.1.0.128/26": through("c"),
    }
    assert found.problems == ()


def test_cross_subnet_is_plain_where_it_can_be() -> None:
    """The node of our own subnet is reached as without a tunnel."""
    found = plan(view(pool(vxlan_mode="CrossSubnet")), "a")
    assert found.routes["10.1.0.64/26"] == TunnelRoute("10.9.1.2") and found.routes["10.1.0.128/26"] == through("c")


def test_plain_pools_are_nothing_to_us() -> None:
    """Their routes are BIRD's, also beside a pool that wraps."""
    assert plan(view(pool()), "a") == Tunnels()
    found = plan(view(pool(), pool("10.2.0.0/16", vxlan_mode="Always")), "a")
    assert found.routes.keys() == set() or all("10.1.0." in cidr and "/32" in cidr for cidr in found.routes)
    assert [one.name for one in found.devices] == ["vxlan.calico"]


def test_what_is_missing_is_left_out() -> None:
    """Own tunnel address: told; another's, or its whole Node: no route there. Plain routes need neither."""
    bare = [replace(host(name), spec=replace(host(name).spec, ipv4_vxlan_tunnel_addr="")) for name in "ab"]
    found = plan(snapshot([*bare, host("c"), pool(vxlan_mode="CrossSubnet")], BLOCKS), "a")
    assert found.devices == () and "no tunnel address yet" in found.problems[0]
    assert found.routes == {"10.1.0.0/26": TunnelRoute(), "10.1.0.64/26": TunnelRoute("10.9.1.2")}
    found = plan(snapshot([bare[1], host("c"), pool(vxlan_mode="Always")], BLOCKS), "c")
    assert found.routes == {"10.1.0.128/26": TunnelRoute()} and found.peers == ()
    nameless = plan(snapshot([host("c"), pool(vxlan_mode="Always")], BLOCKS), "a")
    assert nameless.problems == ("VXLAN pools of IPv4: node a has no IPv4 address",)


def test_blocks_that_are_not_ours_yet_or_no_more() -> None:
    """Pending and deleted affinities count for nobody; a block of one address has no blackhole."""
    base = view(pool(vxlan_mode="Always"), blocks={"a": ["10.1.9.1/32"]})
    states = {
        ("b", "10.1.1.0/26"): Affinity(state="pending"),
        ("c", "10.1.2.0/26"): Affinity(state="confirmed", deleted=True),
        ("b", "10.1.3.0/26"): Affinity(state=""),
    }
    found = plan(replace_affinities(base, {**base.affinities, **states}), "a").routes
    assert {cidr for cidr in found if not cidr.endswith("/32")} == {"10.1.3.0/26"} and "10.1.9.1/32" not in found


def replace_affinities(base: Snapshot, affinities: Any) -> Snapshot:
    return Snapshot(resources=base.resources, affinities=affinities)


def test_borrowed_addresses() -> None:
    """An address outside its node's blocks has a route of its own, a tunnel's address too; covered ones have none."""
    found = plan(view(pool(vxlan_mode="Always")), "a", {"10.1.0.99": "c", "10.1.0.130": "c", "10.1.0.70": "a"}).routes
    assert found["10.1.0.99/32"] == through("c")
    assert not {"10.1.0.130/32", "10.1.0.70/32"} & found.keys()
    lent = plan(view(pool(vxlan_mode="Always"), blocks={"a": BLOCKS["a"], "b": ["10.1.0.64/26", "10.1.0.128/26"]}), "a")
    assert lent.routes["10.1.0.129/32"] == through("c")


def test_settings_of_felix() -> None:
    """MTU, number and port come from FelixConfiguration, the node's own first; nonsense is passed over."""
    default = FelixConfiguration(
        metadata=Metadata(name="default"), spec={"vxlanMTU": 1400, "vxlanPort": 8472, "vxlanVNI": "x"}
    )
    own = FelixConfiguration(metadata=Metadata(name="node.a"), spec={"vxlanMTU": 1390})
    (device,) = plan(view(pool(vxlan_mode="Always"), default, own), "a").devices
    assert (device.mtu, device.port, device.vni) == (1390, 8472, 4096)


def test_ipip() -> None:
    """Routes lead to the nodes' own addresses through tunl0; no ends are needed."""
    nodes = []
    for name in HOSTS:
        made = node(name, HOSTS[name], ipv4_ipip_tunnel_addr=ENDS[name])
        nodes.append(made)
    found = plan(snapshot([*nodes, pool(ipip_mode="CrossSubnet")], BLOCKS), "a")
    assert found.devices == (Device("tunl0", IPIP, 4, "10.9.1.1", "10.1.0.1"),) and found.peers == ()
    assert found.routes["10.1.0.128/26"] == TunnelRoute("10.9.2.3", "tunl0")
    assert found.routes["10.1.0.64/26"] == TunnelRoute("10.9.1.2")
    assert found.devices[0].overhead == 20


def test_ipv6() -> None:
    """A device of its own over the IPv6 addresses."""
    ends = {"a": "fd66::1", "b": "fd66::41"}
    nodes = []
    for number, name in enumerate("ab", 1):
        made = node(name, "", f"fd09::{number}/64")
        nodes.append(replace(made, spec=replace(made.spec, ipv6_vxlan_tunnel_addr=ends[name])))
    found = plan(snapshot([*nodes, pool("fd66::/64", vxlan_mode="Always")], {"b": ["fd66::40/122"]}), "a")
    (device,) = found.devices
    assert (device.name, device.local, device.mac) == ("vxlan-v6.calico", "fd09::1", names.tunnel_mac("a", 6))
    assert device.overhead == 70 and found.routes["fd66::40/122"] == TunnelRoute("fd66::41", "vxlan-v6.calico")


@pytest.mark.parametrize("given, used", [("02:00:00:00:00:0A", "02:00:00:00:00:0a"), ("nonsense", "")])
def test_mac_of_the_node(given: str, used: str) -> None:
    """What the Node says counts when it is a MAC; else everybody works out the same one."""
    nodes = [host("a"), host("b", vxlan_tunnel_mac_addr=given)]
    (peer,) = plan(snapshot([*nodes, pool(vxlan_mode="Always")], BLOCKS), "a").peers
    assert peer.mac == (used or names.tunnel_mac("b", 4))
    assert names.tunnel_mac("b", 4).startswith("66:") and names.tunnel_mac("b", 4) != names.tunnel_mac("b", 6)
