"""The rendered configuration on real BIRDs in network namespaces."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Iterator

import pytest

from calico_plugin.errors import RoutingError
from calico_plugin.model.resources import BGPConfiguration, BGPPeer, IPPool, Metadata
from calico_plugin.model.resources.bgp import BGPConfigurationSpec, BGPPeerSpec
from calico_plugin.model.resources.ipam import IPPoolSpec
from calico_plugin.model.snapshot import Snapshot
from calico_plugin.routing import bird
from calico_plugin.routing.apply import CONF_NAME, Outcome, load
from tests.kernel.birdlab import Fabric, Host, node, snapshot, wait_for

pytestmark = pytest.mark.root

POOLS = (
    IPPool(metadata=Metadata(name="four"), spec=IPPoolSpec(cidr="192.168.0.0/16")),
    IPPool(metadata=Metadata(name="six"), spec=IPPoolSpec(cidr="fd80::/48")),
    IPPool(metadata=Metadata(name="tunnel"), spec=IPPoolSpec(cidr="10.244.0.0/16", ipip_mode="Always")),
)
BLOCKS = {
    "a": ["192.168.1.0/26", "10.244.1.0/26", "fd80::1:0/122"],
    "b": ["192.168.2.0/26", "fd80::2:0/122"],
    "c": ["192.168.3.0/26"],
}


@pytest.fixture
def fabric(tmp_path: Path) -> Iterator[Fabric]:
    with Fabric(tmp_path) as made:
        yield made


def start(host: Host, view: Snapshot, name: str) -> None:
    assert load(bird.render(view, name, matches=select).text, host.run_dir) is Outcome.WRITTEN
    host.start_bird()


def select(selector: str, labels: object) -> bool:
    assert isinstance(labels, dict)
    return selector == "all()" or selector == "has(rr)" and "rr" in labels


def pair(fabric: Fabric) -> tuple[Host, Host, Snapshot]:
    """Two hosts in a mesh over both IP versions, converged."""
    a = fabric.host("a", "10.192.0.1/24", "fd00:192::1/64")
    b = fabric.host("b", "10.192.0.2/24", "fd00:192::2/64")
    view = snapshot(
        [*POOLS, node("a", "10.192.0.1/24", "fd00:192::1/64"), node("b", "10.192.0.2/24", "fd00:192::2/64")], BLOCKS
    )
    start(a, view, "a")
    start(b, view, "b")
    for host in (a, b):
        wait_for("established mesh", lambda host=host: list(host.states().values()) == [True, True])
    wait_for("b's block on a", lambda: "192.168.2.0/26" in a.routes())
    return a, b, view


def test_mesh_exchanges_blocks_and_borrowed_addresses(fabric: Fabric) -> None:
    """Blocks are blackholes at home and routes elsewhere; a borrowed /32 follows the agent's route and goes with it."""
    a, b, _ = pair(fabric)
    wait_for("a's IPv6 block on b", lambda: "fd80::1:0/122" in b.routes(6))
    here, there = a.routes(), b.routes()
    assert here["192.168.1.0/26"]["type"] == "blackhole" and here["192.168.1.0/26"]["protocol"] == "bird"
    assert there["192.168.1.0/26"]["gateway"] == "10.192.0.1" and there["192.168.1.0/26"]["protocol"] == "bird"
    # Encapsulated pools are announced but the agent's in both kernels.
    assert "10.244.1.0/26" not in here and "10.244.1.0/26" not in there
    assert any("10.244.1.0/26" in line for line in b.client.routes("all"))

    a.run("ip", "link", "add", "cali0123456789a", "type", "veth", "peer", "name", "tmp0")
    a.run("ip", "link", "set", "cali0123456789a", "up")
    a.run("ip", "link", "set", "tmp0", "up")
    for address in ("192.168.2.9", "192.168.1.9"):
        a.run("ip", "route", "add", f"{address}/32", "dev", "cali0123456789a", "scope", "link", "proto", "80")
    a.run("ip", "route", "add", "192.168.77.0/26", "via", "10.192.0.2", "proto", "80")
    wait_for("borrowed /32 on b", lambda: "192.168.2.9" in b.routes())
    assert b.routes()["192.168.2.9"]["gateway"] == "10.192.0.1"
    assert "192.168.1.9" not in b.routes(), "an address inside an own block is covered by the block"
    assert "192.168.77.0/26" not in "".join(b.client.routes()), "the agent's route over eth0 must not be learned"
    a.run("ip", "link", "del", "cali0123456789a")
    wait_for("withdrawal of the borrowed /32", lambda: "192.168.2.9" not in b.routes())


def test_restart_keeps_traffic(fabric: Fabric) -> None:
    """After `graceful restart`, and after kill -9, neighbours and the own kernel keep all routes until BIRD is back."""
    a, b, _ = pair(fabric)
    for end in (lambda: a.client.graceful_restart(), lambda: a.end_bird(signal.SIGKILL)):
        end()
        a.end_bird()
        wait_for("b to notice", lambda: not b.states()["Mesh_10_192_0_1"])
        assert "192.168.1.0/26" in b.routes() and "192.168.2.0/26" in a.routes()
        a.start_bird("-R")
        wait_for("sessions again", lambda: all(b.states().values()))
        assert "192.168.1.0/26" in b.routes() and "192.168.2.0/26" in a.routes()
        wait_for("end of recovery", lambda: not a.client.status().graceful_restart)
        assert "192.168.2.0/26" in a.routes()


def test_reload_is_quiet_and_a_bad_configuration_is_refused(fabric: Fabric) -> None:
    """Same text: nothing happens. New block: sessions stay up. Bad text: refused with the place, nothing changed."""
    a, b, view = pair(fabric)
    text = bird.render(view, "a").text
    before = {one.name: one.since for one in a.client.protocols() if one.kind == "BGP"}
    assert load(text, a.run_dir) is Outcome.UNCHANGED
    affinities = dict(view.affinities)
    affinities["a", "192.168.9.0/26"] = next(iter(view.affinities.values()))
    more = bird.render(Snapshot(resources=view.resources, affinities=affinities), "a").text
    assert load(more, a.run_dir) is Outcome.LOADED
    wait_for("the new block on b", lambda: "192.168.9.0/26" in b.routes())
    assert all(a.states().values())
    assert {one.name: one.since for one in a.client.protocols() if one.kind == "BGP"} == before

    with pytest.raises(RoutingError, match=r"refused.*syntax error"):
        load(more + "protocol nonsense;\n", a.run_dir)
    assert (a.run_dir / CONF_NAME).read_text().startswith(more)
    assert "192.168.9.0/26" in a.routes()


def test_reflector_needs_one_resource(fabric: Fabric) -> None:
    """Mesh nodes without a session to each other reach one another over a reflector; one BGPPeer makes both ends."""
    view = snapshot(
        [
            *POOLS,
            node("a", "10.192.0.1/24"),
            node("b", "10.192.0.2/24", as_number=None),
            node("c", "10.192.0.10/24", labels={"rr": ""}, route_reflector_cluster_id="244.0.0.1"),
            BGPConfiguration(
                metadata=Metadata(name="default"),
                spec=BGPConfigurationSpec(node_to_node_mesh_enabled=False, as_number=64999, listen_port=1790),
            ),
            BGPPeer(
                metadata=Metadata(name="clients"),
                spec=BGPPeerSpec(node_selector="!has(rr)", peer_selector="has(rr)", as_number=None),
            ),
        ],
        BLOCKS,
    )

    def matches(selector: str, labels: object) -> bool:
        assert isinstance(labels, dict)
        return ("rr" in labels) == (selector == "has(rr)")

    hosts = {}
    for name, address in (("a", "10.192.0.1/24"), ("b", "10.192.0.2/24"), ("c", "10.192.0.10/24")):
        hosts[name] = host = fabric.host(name, address)
        rendered = bird.render(view, name, matches=matches)
        assert not rendered.problems
        load(rendered.text, host.run_dir)
        host.start_bird()
    wait_for("b's block on a", lambda: "192.168.2.0/26" in hosts["a"].routes())
    assert hosts["a"].routes()["192.168.2.0/26"]["gateway"] == "10.192.0.2", "reflection keeps the next hop"
    assert list(hosts["a"].states()) == ["Node_10_192_0_10"]
    assert sorted(hosts["c"].states()) == ["Node_10_192_0_1", "Node_10_192_0_2"]


def test_no_bird_is_told_apart_from_a_silent_one(tmp_path: Path) -> None:
    """A missing socket says that BIRD is not running; a socket that never answers ends within the time."""
    import socket
    import time

    from calico_plugin.routing.birdc import BirdClient

    with pytest.raises(RoutingError, match="not running"):
        BirdClient(tmp_path / "none.ctl").status()
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "silent.ctl"))
        silent.listen()
        begin = time.monotonic()
        with pytest.raises(RoutingError, match="did not answer"):
            BirdClient(tmp_path / "silent.ctl", 0.3).status()
        assert time.monotonic() - begin < 1
