"""BIRD's configuration for whole scenarios, byte for byte; `make golden` writes the expectations anew."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

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
from calico_plugin.model.snapshot import Snapshot
from calico_plugin.routing import bird
from tests.kernel.birdlab import node, snapshot

GOLDEN = Path(__file__).parents[2] / "golden"


def pool(name: str, cidr: str, **spec: object) -> IPPool:
    return IPPool(metadata=Metadata(name=name), spec=IPPoolSpec(cidr=cidr, **spec))  # type: ignore[arg-type]


def rule(action: str, cidr: str, operator: str, **more: object) -> BGPFilterRule:
    return BGPFilterRule(action=action, cidr=cidr, match_operator=operator, **more)  # type: ignore[arg-type]


POOLS = (
    pool("four", "192.168.0.0/16"),
    pool("six", "fd80::/48"),
    pool("tunnel", "10.244.0.0/16", ipip_mode="CrossSubnet"),
    pool("quiet", "10.50.0.0/16", disable_bgp_export=True),
    pool("off", "10.60.0.0/16", disabled=True),
)
NODES = (
    node("a", "10.192.0.1/24", "fd00:192::1/64"),
    node("b", "10.192.0.2/24", "fd00:192::2/64"),
    node("c", "10.192.0.10/24", as_number=65001),
)
BLOCKS = {
    "a": ["192.168.1.0/26", "10.244.3.0/26", "192.168.200.7/32", "fd80::1:0/122"],
    "b": ["192.168.2.0/26"],
}
EVERYTHING = (
    BGPConfiguration(
        metadata=Metadata(name="default"),
        spec=BGPConfigurationSpec(
            as_number=64999,
            listen_port=1790,
            log_severity_screen="Debug",
            ignored_interfaces=("virt*",),
            bind_mode="NodeIP",
            node_mesh_max_restart_time="90s",
            communities=(Community(name="nice", value="64999:120"),),
            prefix_advertisements=(PrefixAdvertisement(cidr="192.168.128.0/17", communities=("nice", "64999:1:2")),),
        ),
    ),
    BGPConfiguration(metadata=Metadata(name="node.b"), spec=BGPConfigurationSpec(listen_port=1791)),
    BGPPeer(
        metadata=Metadata(name="tor"),
        spec=BGPPeerSpec(
            peer_ip="10.192.0.254",
            as_number=65010,
            ttl_security=1,
            filters=("tor-in",),
            password=BGPPassword(secret_key_ref=SecretKeyRef(name="bgp", key="tor")),
            max_restart_time="5m",
            keepalive_time="20s",
            next_hop_mode="Keep",
            num_allowed_local_as_numbers=1,
            reachable_by="10.192.0.253",
        ),
    ),
    BGPPeer(
        metadata=Metadata(name="external-six"),
        spec=BGPPeerSpec(node="a", peer_ip="[fd00:192::fe]:1792", as_number=65011, source_address="None"),
    ),
    BGPPeer(metadata=Metadata(name="elsewhere"), spec=BGPPeerSpec(node="b", peer_ip="10.9.9.9", as_number=1)),
    BGPFilter(
        metadata=Metadata(name="tor-in"),
        spec=BGPFilterSpec(
            import_v4=(
                rule("Reject", "0.0.0.0/0", "Equal"),
                rule("Accept", "10.0.0.0/8", "In", prefix_length=PrefixLength(min=16, max=24), interface="eth*"),
                BGPFilterRule(action="Reject", source="RemotePeers", peer_type="eBGP"),
            ),
            export_v4=(rule("Reject", "192.168.99.0/24", "NotIn"),),
        ),
    ),
)
SCENARIOS = {
    "mesh": (snapshot([*POOLS, *NODES], BLOCKS), "a"),
    "everything": (snapshot([*POOLS, *NODES, *EVERYTHING], BLOCKS), "a"),
    "empty": (Snapshot(), "a"),
}


def rendered(name: str) -> bird.Rendered:
    view, here = SCENARIOS[name]
    return bird.render(view, here, secret=lambda name, key: "s3cret" if (name, key) == ("bgp", "tor") else None)


@pytest.mark.parametrize("name", SCENARIOS)
def test_golden_bird_conf(name: str, tmp_path: Path) -> None:
    """The configuration is the expected one, and BIRD's own parser takes it."""
    found = rendered(name)
    assert found.problems == ()
    expected = GOLDEN / f"bird-{name}.conf"
    if os.environ.get("UPDATE_GOLDEN"):
        expected.write_text(found.text)
    assert found.text == expected.read_text()
    if shutil.which("bird", path=f"{os.environ['PATH']}:/usr/sbin"):
        path = tmp_path / "bird.conf"
        path.write_text(found.text)
        done = subprocess.run(["/usr/sbin/bird", "-p", "-c", str(path)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_order_of_the_input_does_not_matter() -> None:
    """Resources and blocks in another order give the same bytes, so nothing is reloaded."""
    view, here = SCENARIOS["mesh"]
    turned = Snapshot(
        resources={kind: dict(reversed(found.items())) for kind, found in reversed(view.resources.items())},
        affinities=dict(reversed(view.affinities.items())),
    )
    assert bird.render(turned, here).text == bird.render(view, here).text
