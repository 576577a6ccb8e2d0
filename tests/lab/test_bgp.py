"""BGP as an operator sets it up with `calicoctl apply`: four nodes that run the product, and a router of another AS.

The machines have no Docker: a block of each node comes from a call to its driver. What each setting does to BIRD in
detail is in tests/kernel; this is the way from a manifest to a route on another machine.
"""

from __future__ import annotations

import json
from typing import Iterator

import pytest

from tests.lab import state
from tests.lab.lab import ETCD, FABRIC, Lab
from tests.lab.machine import Machine
from tests.lab.services import CalicoNode, ask_driver
from tests.lab.spec import LabSpec
from tests.lab.wait import wait_for

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]
NODES = ("host1", "host2", "host3", "host4")
REFLECTOR, ROUTER = "host4", "host5"
AS, ROUTER_AS = 64999, 65010
PREFIX = "apiVersion: projectcalico.org/v3\n"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """All machines; the four nodes in a mesh, each with a block."""
    own = state.claim_free("pytest-bgp")
    made = Lab(LabSpec(own.name, hosts=5))
    try:
        for name in (FABRIC, ETCD, *made.hosts):
            made.boot(name)
        made.etcd.start()
        for name in NODES:
            made.node(name).run(CALICO_LIBNETWORK_SCOPE="local")
        yield made
    finally:
        state.clear(own.name, keep_logs=False)


@pytest.fixture(scope="module")
def blocks(lab: Lab) -> dict[str, str]:
    """Node -> the block that it has."""
    for name in NODES:
        status, pool = ask_driver(lab[name], "IpamDriver.RequestPool", {"AddressSpace": "CalicoLocalAddressSpace"})
        assert status == 200
        assert ask_driver(lab[name], "IpamDriver.RequestAddress", {"PoolID": pool["PoolID"]})[0] == 200
    keys = lab.etcd.keys("/calico/ipam/v2/host/")
    found = {key.split("/")[5]: key.rpartition("/")[2].replace("-", "/") for key in keys if "/ipv4/" in key}
    assert set(found) == set(NODES)
    return found


def apply(node: CalicoNode, *documents: str) -> str:
    """calicoctl apply of manifests."""
    text = "---\n".join(PREFIX + document for document in documents)
    return node.machine.run("calicoctl", "apply", "-f", "-", env=node.environment(), stdin=text.encode()).stdout


def address(lab: Lab, host: str) -> str:
    return str(lab.spec.address(host).ip)


def gateways(machine: Machine) -> dict[str, str]:
    """Destination -> next hop of BIRD's routes."""
    routes = json.loads(machine.run("ip", "-j", "route", "show", "proto", "bird").stdout)
    return {route["dst"]: route["gateway"] for route in routes if "gateway" in route}


def all_reach_all(lab: Lab, blocks: dict[str, str]) -> bool:
    """Whether each node has a route to each other's block, straight to the node that has it."""
    wanted = {block: address(lab, name) for name, block in blocks.items()}
    own = {name: (block, wanted[block]) for name, block in blocks.items()}
    return all(wanted.items() <= {*gateways(lab[name]).items(), own[name]} for name in NODES)


def kinds(node: CalicoNode) -> dict[str, str]:
    """Peer -> type and state, as `node status` has them."""
    peers = json.loads(node.ctl("node", "status", "-o", "json"))["status"]["bgp"].get("peersV4", [])
    return {peer["peerIP"]: f"{peer['type']} {peer['state']}" for peer in peers}


def test_mesh(lab: Lab, blocks: dict[str, str]) -> None:
    """Nothing configured: everybody with everybody."""
    wait_for("the routes", lambda: all_reach_all(lab, blocks), 60, 0.5)
    others = {address(lab, name): "NodeMesh Established" for name in NODES[1:]}
    wait_for("the sessions", lambda: kinds(lab.node("host1")) == others, 30, 0.5)


def test_reflector(lab: Lab, blocks: dict[str, str]) -> None:
    """Another AS, no mesh, one reflector, one BGPPeer: each client has one session, and the routes are the same."""
    node = lab.node("host1")
    node.ctl("patch", "node", REFLECTOR, "-p", '{"spec": {"bgp": {"routeReflectorClusterID": "244.0.0.1"}}}')
    node.ctl("label", "nodes", REFLECTOR, "reflector=yes")
    apply(
        node,
        "kind: BGPConfiguration\nmetadata: {name: default}\n"
        f"spec: {{asNumber: {AS}, nodeToNodeMeshEnabled: false}}\n",
        "kind: BGPPeer\nmetadata: {name: clients}\n"
        "spec: {nodeSelector: '!has(reflector)', peerSelector: has(reflector)}\n",
    )
    one = {address(lab, REFLECTOR): "NodePeer Established"}
    for name in NODES[:3]:
        wait_for(f"the session of {name}", lambda: kinds(lab.node(name)) == one, 60, 0.5)  # noqa: B023
    wait_for("the routes", lambda: all_reach_all(lab, blocks), 60, 0.5)


def test_external_router(lab: Lab, blocks: dict[str, str]) -> None:
    """eBGP with a password from the reflector: what the router tells reaches all nodes, as far as a filter lets it; our
    blocks reach the router with communities."""
    router, node = lab[ROUTER], lab.node("host1")
    lab[REFLECTOR].shell("mkdir -p /etc/calico/secrets/bgp && echo rack >/etc/calico/secrets/bgp/router")
    start_router(lab)
    apply(
        node,
        "kind: BGPConfiguration\nmetadata: {name: default}\n"
        f"spec:\n  asNumber: {AS}\n  nodeToNodeMeshEnabled: false\n"
        "  communities: [{name: rack, value: '64999:7'}]\n"
        "  prefixAdvertisements: [{cidr: 192.168.0.0/16, communities: [rack]}]\n",
        "kind: BGPFilter\nmetadata: {name: no-default}\n"
        "spec: {importV4: [{action: Reject, cidr: 0.0.0.0/0, matchOperator: Equal}]}\n",
        "kind: BGPFilter\nmetadata: {name: tell-outside}\nspec:\n  exportV4:\n"
        "  - {action: Accept, cidr: 10.0.0.0/8, matchOperator: In, source: RemotePeers}\n",
        "kind: BGPPeer\nmetadata: {name: clients}\nspec:\n  nodeSelector: '!has(reflector)'\n"
        "  peerSelector: has(reflector)\n  filters: [tell-outside]\n",
        f"kind: BGPPeer\nmetadata: {{name: router}}\nspec:\n  node: {REFLECTOR}\n  peerIP: {address(lab, ROUTER)}\n"
        f"  asNumber: {ROUTER_AS}\n  filters: [no-default]\n  keepaliveTime: 9s\n"
        "  password: {secretKeyRef: {name: bgp, key: router}}\n",
    )
    for name in NODES[:3]:
        way = address(lab, ROUTER)
        wait_for("its network", lambda: gateways(lab[name]).get("10.77.0.0/16") == way, 90, 0.5)  # noqa: B023
        assert "default" not in gateways(lab[name])
    told = wait_for("our blocks", lambda: all_told(router, blocks), 60, 0.5)
    assert told.count("(64999,7)") == len(NODES)


def start_router(lab: Lab) -> None:
    """A BIRD that is not ours, with two networks to tell."""
    text = f"""log stderr all;
router id {address(lab, ROUTER)};
protocol device {{}}
protocol static {{ ipv4; route 0.0.0.0/0 blackhole; route 10.77.0.0/16 blackhole; }}
protocol bgp fabric {{
  local {address(lab, ROUTER)} as {ROUTER_AS};
  neighbor {address(lab, REFLECTOR)} as {AS};
  multihop; password "rack";
  ipv4 {{ import all; export where source = RTS_STATIC; }};
}}
"""
    lab[ROUTER].run("sh", "-c", "cat >/run/router.conf", stdin=text.encode())
    lab[ROUTER].spawn("router.log", "bird", "-f", "-c", "/run/router.conf", "-s", "/run/router.ctl")


def all_told(router: Machine, blocks: dict[str, str]) -> str:
    """What the router knows, once that is all blocks."""
    said = router.run("birdc", "-s", "/run/router.ctl", "show", "route", "all").stdout
    return said if all(block in said for block in blocks.values()) else ""


def test_bad_peer_is_named_and_costs_nothing(lab: Lab, blocks: dict[str, str]) -> None:
    """BIRD refuses a keepalive time above the hold time: that peer alone is missing, and told by status and metric."""
    node = lab.node("host1")
    apply(node, "kind: BGPPeer\nmetadata: {name: bad}\n"
                "spec: {node: host1, peerIP: 172.20.62.200, asNumber: 65001, keepaliveTime: 300s}\n")
    said = wait_for("the word of it", lambda: named(node), 30, 0.5)
    assert "BGPPeer(bad)" in said and "Keepalive time" in said
    assert 'calico_bird_left_out{what="BGPPeer(bad)"} 1.0' in metrics(lab, "host1")
    assert all_reach_all(lab, blocks)
    node.ctl("delete", "bgppeer", "bad")
    wait_for("its end", lambda: not named(node), 30, 0.5)


def named(node: CalicoNode) -> str:
    """What `node status` says is not in force."""
    return node.ctl("node", "status").partition("Not in force as configured:")[2]


def metrics(lab: Lab, host: str) -> str:
    code = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:9091/metrics').read().decode())"
    return lab[host].run("/usr/bin/python3", "-c", code).stdout


def test_back_to_the_mesh(lab: Lab, blocks: dict[str, str]) -> None:
    """The reflector becomes a node like the others; what the router told is gone."""
    node = lab.node("host1")
    node.ctl("delete", "bgppeer", "router", "clients")
    node.ctl("patch", "node", REFLECTOR, "-p", '{"spec": {"bgp": {"routeReflectorClusterID": ""}}}')
    node.ctl("patch", "bgpconfiguration", "default", "-p", '{"spec": {"nodeToNodeMeshEnabled": true}}')
    others = {address(lab, name): "NodeMesh Established" for name in NODES[1:]}
    wait_for("the mesh", lambda: kinds(node) == others, 60, 0.5)
    wait_for("the routes", lambda: all_reach_all(lab, blocks), 60, 0.5)
    assert "10.77.0.0/16" not in gateways(lab["host1"])
