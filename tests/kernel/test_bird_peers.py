"""Explicit peers on real BIRDs: a router that is not ours, with password, hop limit and filters; IPv6-only nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Iterator

import pytest

from calico_plugin.model.resources import BGPConfiguration, BGPFilter, BGPPeer, IPPool, Metadata
from calico_plugin.model.resources.bgp import (
    BGPConfigurationSpec,
    BGPFilterRule,
    BGPFilterSpec,
    BGPPassword,
    BGPPeerSpec,
    Community,
    PrefixAdvertisement,
    PrefixLength,
    SecretKeyRef,
)
from calico_plugin.model.resources.ipam import IPPoolSpec
from calico_plugin.routing import bird
from calico_plugin.routing.apply import CONF_NAME, load
from tests.kernel.birdlab import Fabric, node, snapshot, wait_for

pytestmark = pytest.mark.root

POOL = IPPool(metadata=Metadata(name="four"), spec=IPPoolSpec(cidr="192.168.0.0/16"))
# A rack's switch: tells a default route, one network that is wanted and one that is too long.
SWITCH = """
log stderr all;
router id 10.192.0.254;
protocol device {}
protocol static { ipv4; route 0.0.0.0/0 blackhole; route 10.1.0.0/16 blackhole; route 10.2.0.0/28 blackhole; }
protocol bgp node {
  local 10.192.0.254 as 65010;
  neighbor 10.192.0.1 as 64512;
  password "s3cret";
  ttl security on;
  multihop 1;
  ipv4 { import all; export where source = RTS_STATIC; };
}
"""


@pytest.fixture
def fabric(tmp_path: Path) -> Iterator[Fabric]:
    with Fabric(tmp_path) as made:
        yield made


def test_switch_with_password_filters_and_communities(fabric: Fabric) -> None:
    """The filters decide what comes in; the own block goes out with communities; a wrong password keeps all down."""
    tor = BGPPeer(
        metadata=Metadata(name="tor"),
        spec=BGPPeerSpec(
            node="a",
            peer_ip="10.192.0.254",
            as_number=65010,
            ttl_security=1,
            filters=("short-only",),
            keepalive_time="5s",
            password=BGPPassword(secret_key_ref=SecretKeyRef(name="bgp", key="tor")),
        ),
    )
    short_only = BGPFilter(
        metadata=Metadata(name="short-only"),
        spec=BGPFilterSpec(
            import_v4=(
                BGPFilterRule(action="Reject", cidr="0.0.0.0/0", match_operator="Equal"),
                BGPFilterRule(
                    action="Accept", cidr="10.0.0.0/8", match_operator="In", prefix_length=PrefixLength(max=24)
                ),
                BGPFilterRule(action="Reject"),
            ),
            export_v4=(BGPFilterRule(action="Reject", cidr="192.168.9.0/24", match_operator="In"),),
        ),
    )
    communities = BGPConfiguration(
        metadata=Metadata(name="default"),
        spec=BGPConfigurationSpec(
            communities=(Community(name="rack", value="64512:7"),),
            prefix_advertisements=(PrefixAdvertisement(cidr="192.168.0.0/16", communities=("rack", "64512:1:2")),),
        ),
    )
    view = snapshot(
        [POOL, node("a", "10.192.0.1/24"), tor, short_only, communities], {"a": ["192.168.1.0/26", "192.168.9.0/26"]}
    )
    a, switch = fabric.host("a", "10.192.0.1/24"), fabric.host("switch", "10.192.0.254/24")
    (switch.run_dir / CONF_NAME).write_text(SWITCH)
    switch.start_bird()
    load(bird.render(view, "a", secret=lambda name, key: "wrong").text, a.run_dir)
    a.start_bird()
    wait_for("a try", lambda: "Global" not in a.states() and list(a.states()) == ["Node_10_192_0_254"])
    assert not a.states()["Node_10_192_0_254"]

    load(bird.render(view, "a", secret=lambda name, key: "s3cret").text, a.run_dir)
    wait_for("the session", lambda: a.states()["Node_10_192_0_254"], 40)
    wait_for("the switch's network", lambda: "10.1.0.0/16" in a.routes())
    assert "10.2.0.0/28" not in a.routes() and "default" not in a.routes()
    wait_for("our block at the switch", lambda: any("192.168.1.0/26" in line for line in switch.client.routes()))
    told = "\n".join(switch.client.routes("all"))
    assert "192.168.9.0/26" not in told and "(64512,7)" in told and "(64512, 1, 2)" in told


def test_nodes_with_ipv6_only(fabric: Fabric) -> None:
    """The router id is made of the node's name, and blocks cross."""
    six = IPPool(metadata=Metadata(name="six"), spec=IPPoolSpec(cidr="fd80::/48"))
    view = snapshot(
        [six, node("a", "", "fd00:192::1/64"), node("b", "", "fd00:192::2/64")], {"a": ["fd80::1:0/122"]}
    )
    a, b = fabric.host("a", "fd00:192::1/64"), fabric.host("b", "fd00:192::2/64")
    for host, name in ((a, "a"), (b, "b")):
        load(bird.render(view, name).text, host.run_dir)
        host.start_bird()
    wait_for("a's block on b", lambda: "fd80::1:0/122" in b.routes(6))
    assert a.client.status().router_id != b.client.status().router_id


def test_other_port_and_node_that_leaves(fabric: Fabric) -> None:
    """A cluster on another port; when a node is deleted its session and routes go, the others stay."""
    spec = BGPConfigurationSpec(listen_port=1790, bind_mode="NodeIP")
    moved = BGPConfiguration(metadata=Metadata(name="default"), spec=spec)
    names = {"a": "10.192.0.1", "b": "10.192.0.2", "c": "10.192.0.3"}
    nodes = {name: node(name, f"{address}/24") for name, address in names.items()}
    blocks = {name: [f"192.168.{number}.0/26"] for number, name in enumerate(names)}
    view = snapshot([POOL, moved, *nodes.values()], blocks)
    hosts = {name: fabric.host(name, f"{address}/24") for name, address in names.items()}
    for name, host in hosts.items():
        load(bird.render(view, name).text, host.run_dir)
        host.start_bird()
    for host in hosts.values():
        wait_for("the mesh", lambda host=host: list(host.states().values()) == [True, True])
    a = hosts["a"]
    assert "10.192.0.1:1790" in a.run("ss", "-tlnH")
    wait_for("both blocks", lambda: {"192.168.1.0/26", "192.168.2.0/26"} <= set(a.routes()))
    without = snapshot([POOL, moved, nodes["a"], nodes["b"]], {"a": blocks["a"], "b": blocks["b"]})
    load(bird.render(without, "a").text, a.run_dir)
    wait_for("the end of c's route", lambda: "192.168.2.0/26" not in a.routes())
    assert a.states() == {"Mesh_10_192_0_2": True} and "192.168.1.0/26" in a.routes()
