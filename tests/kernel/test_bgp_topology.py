"""Four nodes and an external router, all real BIRDs: what operators configure, seen at the other end.

`a`, `b` and `c` are plain nodes, `rr` can be a reflector; `tor` is a router of another AS that is not ours and speaks
IPv4 and IPv6 with `rr`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Mapping

import pytest
from msgspec.structs import replace

from calico_plugin.agent.bird import selects
from calico_plugin.model.resources import BGPConfiguration, BGPFilter, BGPPeer, IPPool, Metadata, Node, Resource
from calico_plugin.model.resources.bgp import (
    BGPConfigurationSpec,
    BGPFilterRule,
    BGPFilterSpec,
    BGPPassword,
    BGPPeerSpec,
    Community,
    PrefixAdvertisement,
    SecretKeyRef,
)
from calico_plugin.model.resources.ipam import IPPoolSpec
from calico_plugin.routing import bird
from calico_plugin.routing.apply import CONF_NAME, load
from tests.kernel.birdlab import Fabric, Host, node, snapshot, wait_for

pytestmark = pytest.mark.root

NUMBERS = {"a": 1, "b": 2, "c": 3, "rr": 10}
BLOCKS = {name: [f"192.168.{number}.0/26", f"fd80::{number}:0/122"] for name, number in NUMBERS.items()}
POOLS = (
    IPPool(metadata=Metadata(name="four"), spec=IPPoolSpec(cidr="192.168.0.0/16")),
    IPPool(metadata=Metadata(name="six"), spec=IPPoolSpec(cidr="fd80::/48")),
)
AS, TOR_AS = 64999, 65010
TOR = f"""
log stderr all;
router id 10.192.0.254;
protocol device {{}}
protocol static four {{ ipv4; route 0.0.0.0/0 blackhole; route 10.1.0.0/16 blackhole; }}
protocol static six {{ ipv6; route fd01::/64 blackhole; }}
protocol bgp rr4 {{
  local 10.192.0.254 as {TOR_AS};
  neighbor 10.192.0.10 port 1790 as {AS};
  multihop;
  graceful restart on;
  password "rack";
  ipv4 {{ import all; export where source = RTS_STATIC; }};
}}
protocol bgp rr6 {{
  local fd00:192::254 as {TOR_AS};
  neighbor fd00:192::10 port 1790 as {AS};
  multihop;
  password "rack";
  ipv6 {{ import all; export where source = RTS_STATIC; }};
}}
"""


def nodes(reflector: str = "244.0.0.1") -> list[Node]:
    made = [node(name, f"10.192.0.{n}/24", f"fd00:192::{n:x}/64") for name, n in NUMBERS.items() if name != "rr"]
    made.append(
        node("rr", "10.192.0.10/24", "fd00:192::10/64", {"reflector": "yes"}, route_reflector_cluster_id=reflector)
    )
    return made


def configuration(name: str = "default", **spec: object) -> BGPConfiguration:
    return BGPConfiguration(
        metadata=Metadata(name=name), spec=BGPConfigurationSpec(**spec)  # type: ignore[arg-type]
    )


def peer(name: str, **spec: object) -> BGPPeer:
    return BGPPeer(metadata=Metadata(name=name), spec=BGPPeerSpec(**spec))  # type: ignore[arg-type]


SECRETS = {("bgp", "tor"): "rack", ("bgp", "mesh"): "fabric"}
DEFAULT = configuration(
    node_to_node_mesh_enabled=False,
    as_number=AS,
    communities=(Community(name="rack", value="64999:7"),),
    prefix_advertisements=(PrefixAdvertisement(cidr="192.168.1.0/24", communities=("rack", "64999:1:2")),),
)
MOVED = configuration("node.rr", listen_port=1790)
CLIENTS = peer(
    "clients",
    node_selector="!has(reflector)",
    peer_selector="has(reflector)",
    keepalive_time="7s",
    filters=("tell-outside",),
)
# Networks outside the pools are not handed on unless a filter says so.
TELL_OUTSIDE = BGPFilter(
    metadata=Metadata(name="tell-outside"),
    spec=BGPFilterSpec(
        export_v4=(
            BGPFilterRule(
                action="Accept",
                cidr="10.0.0.0/8",
                match_operator="In",
                source="RemotePeers",
                operations=({"addCommunity": {"value": "64999:99"}},),
            ),
        ),
        export_v6=(BGPFilterRule(action="Accept", cidr="fd01::/16", match_operator="In", source="RemotePeers"),),
    ),
)
NO_DEFAULT = BGPFilter(
    metadata=Metadata(name="no-default"),
    spec=BGPFilterSpec(
        import_v4=(BGPFilterRule(action="Reject", cidr="0.0.0.0/0", match_operator="Equal"),),
        export_v4=(BGPFilterRule(action="Reject", cidr="192.168.3.0/24", match_operator="In"),),
    ),
)
TO_TOR = {
    "node": "rr",
    "as_number": TOR_AS,
    "filters": ("no-default",),
    "max_restart_time": "300s",
    "password": BGPPassword(secret_key_ref=SecretKeyRef(name="bgp", key="tor")),
}
TOR4 = peer("tor4", peer_ip="10.192.0.254", **TO_TOR)
TOR6 = peer("tor6", peer_ip="fd00:192::254", source_address="None", **TO_TOR)
REFLECTED = (*POOLS, DEFAULT, MOVED, CLIENTS, TELL_OUTSIDE, NO_DEFAULT, TOR4, TOR6)


@dataclass
class Cluster:
    """The nodes by name, and the router."""

    hosts: Mapping[str, Host]
    tor: Host

    def configure(self, *objects: Resource) -> None:
        view = snapshot(objects, BLOCKS)
        for name, host in self.hosts.items():
            rendered = bird.render(view, name, matches=selects, secret=lambda name, key: SECRETS.get((name, key)))
            assert not rendered.problems
            load(rendered.text, host.run_dir)
            if host.process is None:
                host.start_bird()

    def detail(self, name: str, session: str) -> str:
        lines = self.hosts[name].client.command(f"show protocols all {session}")
        return "\n".join(line.text for line in lines)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Running under the reflector's configuration."""
    folder: Path = tmp_path_factory.mktemp("bgp")
    with Fabric(folder) as fabric:
        hosts = {
            name: fabric.host(name, f"10.192.0.{n}/24", f"fd00:192::{n if n < 10 else 10}/64")
            for name, n in NUMBERS.items()
        }
        tor = fabric.host("tor", "10.192.0.254/24", "fd00:192::254/64")
        (tor.run_dir / CONF_NAME).write_text(TOR)
        tor.start_bird()
        made = Cluster(hosts, tor)
        made.configure(*REFLECTED, *nodes())
        yield made


def all_up(cluster: Cluster) -> None:
    for name, host in cluster.hosts.items():
        wait_for(f"all sessions of {name}", lambda host=host: all(host.states().values()), 60)  # type: ignore[misc]


def test_one_resource_makes_both_ends(cluster: Cluster) -> None:
    """Clients have sessions with the reflector only, of both IP versions, at the port that it listens on; the reflector
    has them with all, as clients."""
    all_up(cluster)
    for name in "abc":
        # The node's own listen port is no part of the name: only a port in `peerIP` is.
        assert sorted(cluster.hosts[name].states()) == ["Node_10_192_0_10", "Node_fd00_192__10"]
    others = [f"Node_10_192_0_{number}" for number in (1, 2, 254, 3)]
    assert [one for one in sorted(cluster.hosts["rr"].states()) if "10_192" in one] == others
    config = (cluster.hosts["rr"].run_dir / CONF_NAME).read_text()
    assert config.count("rr client;") == config.count("rr cluster id 244.0.0.1;") == 6


def test_routes_cross_the_reflector(cluster: Cluster) -> None:
    """With the next hop of the node that has the block; not the clients' own business which way they came."""
    for version, block, gateway in (
        (4, "192.168.2.0/26", "10.192.0.2"),
        (6, "fd80::2:0/122", "fd00:192::2"),
    ):
        a = cluster.hosts["a"]
        wait_for(block, lambda: block in a.routes(version), 40)  # noqa: B023
        assert a.routes(version)[block]["gateway"] == gateway
    told = "\n".join(cluster.hosts["a"].client.routes("all for 192.168.2.1"))
    assert "BGP.cluster_list: 244.0.0.1" in told and "BGP.originator_id: 10.192.0.2" in told


def test_external_router(cluster: Cluster) -> None:
    """Password, filters and communities hold on eBGP: no default route comes in, one block does not go out, the others
    do, those of one prefix with communities; IPv6 in a session of its own. What comes in is handed on as a filter says.
    """
    a, tor = cluster.hosts["a"], cluster.tor
    wait_for("the network behind the router", lambda: "10.1.0.0/16" in a.routes(), 40)
    wait_for("its IPv6 network", lambda: "fd01::/64" in a.routes(6), 40)
    assert a.routes()["10.1.0.0/16"]["gateway"] == "10.192.0.254" and "default" not in a.routes()
    assert "(64999,99)" in "\n".join(a.client.routes("all for 10.1.0.1"))
    wait_for("a's block at the router", lambda: "192.168.1.0/26" in "\n".join(tor.client.routes()), 40)
    wait_for("b's IPv6 block there", lambda: "fd80::2:0/122" in "\n".join(tor.client.routes()), 40)
    told = "\n".join(tor.client.routes("all"))
    assert "192.168.2.0/26" in told and "192.168.3.0/26" not in told
    one = "\n".join(tor.client.routes("all for 192.168.1.1"))
    assert "(64999,7)" in one and "(64999, 1, 2)" in one and f"BGP.as_path: {AS}" in one
    assert "(64999,7)" not in "\n".join(tor.client.routes("all for 192.168.2.1"))


def test_timers(cluster: Cluster) -> None:
    """`keepaliveTime` and `maxRestartTime` are what BIRD runs with, at both ends of one resource."""
    all_up(cluster)
    for name, session in (("a", "Node_10_192_0_10"), ("rr", "Node_10_192_0_1")):
        assert "/7" in next(line for line in cluster.detail(name, session).splitlines() if "Keepalive timer" in line)
    assert "Restart time: 300" in cluster.detail("rr", "Node_10_192_0_254")


def test_wrong_password_keeps_a_session_down(cluster: Cluster) -> None:
    """TCP's own signature refuses it; the others stay up."""
    other = BGPPassword(secret_key_ref=SecretKeyRef(name="bgp", key="mesh"))
    wrong = replace(TOR4, spec=replace(TOR4.spec, password=other))
    cluster.configure(*(one for one in REFLECTED if one is not TOR4), wrong, *nodes())
    rr = cluster.hosts["rr"]
    wait_for("the end of the session", lambda: not rr.states()["Node_10_192_0_254"])
    assert rr.states()["Node_10_192_0_1"] and rr.states()["Node_fd00_192__254"]
    cluster.configure(*REFLECTED, *nodes())
    wait_for("the session", lambda: rr.states()["Node_10_192_0_254"], 40)


def test_priority(cluster: Cluster) -> None:
    """A filter gives a route another priority, which is its LOCAL_PREF; another filter finds it by that. Without them
    all is as before."""
    block = "192.168.2.0/26"
    operation = {"setPriority": {"value": 512}}
    prefer = BGPFilter(
        metadata=Metadata(name="prefer"),
        spec=BGPFilterSpec(
            import_v4=(BGPFilterRule(action="Accept", cidr=block, match_operator="Equal", operations=(operation,)),)
        ),
    )
    hide = BGPFilter(
        metadata=Metadata(name="hide"), spec=BGPFilterSpec(export_v4=(BGPFilterRule(action="Reject", priority=512),))
    )
    clients = replace(CLIENTS, spec=replace(CLIENTS.spec, filters=("tell-outside", "prefer")))
    tor4 = replace(TOR4, spec=replace(TOR4.spec, filters=("no-default", "hide")))
    others = [one for one in REFLECTED if one not in (CLIENTS, TOR4)]
    cluster.configure(*others, clients, tor4, prefer, hide, *nodes())
    a, tor = cluster.hosts["a"], cluster.tor
    told = "BGP.local_pref: 2147483135"
    wait_for("the preference", lambda: told in "\n".join(a.client.routes("all for 192.168.2.1")), 40)
    wait_for("a's block at the router", lambda: "192.168.1.0/26" in "\n".join(tor.client.routes()), 40)
    wait_for("its end at the router", lambda: block not in "\n".join(tor.client.routes()), 40)
    assert a.routes()[block]["gateway"] == "10.192.0.2"
    cluster.configure(*REFLECTED, *nodes())
    wait_for("the usual preference", lambda: told not in "\n".join(a.client.routes("all for 192.168.2.1")), 40)
    wait_for("b's block at the router", lambda: block in "\n".join(tor.client.routes()), 40)


def test_second_reflector_of_the_same_cluster(cluster: Cluster) -> None:
    """Equal cluster ids are no clients of each other."""
    two = [node("c", "10.192.0.3/24", "fd00:192::3/64", {"reflector": "yes"}, route_reflector_cluster_id="244.0.0.1")]
    between = peer("between", node_selector="has(reflector)", peer_selector="has(reflector)")
    view = [*REFLECTED, between, *two, *(one for one in nodes() if one.name != "c")]
    cluster.configure(*view)
    all_up(cluster)
    config = (cluster.hosts["rr"].run_dir / CONF_NAME).read_text()
    start = config.index("protocol bgp Node_10_192_0_3 ")
    assert "rr client" not in config[start:config.index("\n}\n", start)]
    assert {"Node_10_192_0_10", "Node_10_192_0_3"} <= set(cluster.hosts["a"].states())


def test_mesh_instead(cluster: Cluster) -> None:
    """Mesh on, with password, on another AS and port, and no reflector: everybody has a session with everybody, and the
    routes are the same."""
    mesh = configuration(
        as_number=AS,
        listen_port=1791,
        node_mesh_password=BGPPassword(secret_key_ref=SecretKeyRef(name="bgp", key="mesh")),
        node_mesh_max_restart_time="90s",
    )
    cluster.configure(*POOLS, mesh, *nodes(reflector=""))
    all_up(cluster)
    a = cluster.hosts["a"]
    assert sorted(one for one in a.states() if "10_192" in one) == [f"Mesh_10_192_0_{n}" for n in (10, 2, 3)]
    assert "10.192.0.10:1791" in cluster.hosts["rr"].run("ss", "-tnH", "state", "established", "sport = :1791") or (
        "10.192.0.10:1791" in a.run("ss", "-tnH", "state", "established", "dport = :1791")
    )
    assert 'password "fabric"' in (a.run_dir / CONF_NAME).read_text()
    assert "Restart time: 90" in cluster.detail("a", "Mesh_10_192_0_2")
    for version, block, gateway in ((4, "192.168.10.0/26", "10.192.0.10"), (6, "fd80::3:0/122", "fd00:192::3")):
        wait_for(block, lambda: a.routes(version).get(block, {}).get("gateway") == gateway, 40)  # noqa: B023
    assert "10.1.0.0/16" not in a.routes(), "the router's session is gone"
