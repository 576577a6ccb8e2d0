"""Which BGP sessions a node has."""

from __future__ import annotations

from typing import Mapping

import pytest

from calico_plugin.model.resources import BGPConfiguration, BGPFilter, BGPPeer, Metadata, Resource
from calico_plugin.model.resources.bgp import BGPConfigurationSpec, BGPPassword, BGPPeerSpec, SecretKeyRef
from calico_plugin.routing import bird
from calico_plugin.routing.sessions import Plan, Session, parse_as, plan, session_name, split_peer_ip
from tests.kernel.birdlab import node, snapshot


def matches(selector: str, labels: Mapping[str, str]) -> bool:
    """`has(x)`, `!has(x)` and `all()` are enough here."""
    if selector == "all()":
        return True
    if not selector.startswith(("has(", "!has(")):
        raise ValueError(f"selector {selector!r} does not parse")
    return (selector.strip("!")[4:-1] in labels) != selector.startswith("!")


def peer(name: str, **spec: object) -> BGPPeer:
    return BGPPeer(metadata=Metadata(name=name), spec=BGPPeerSpec(**spec))  # type: ignore[arg-type]


def default(**spec: object) -> BGPConfiguration:
    made = BGPConfigurationSpec(**spec)  # type: ignore[arg-type]
    return BGPConfiguration(metadata=Metadata(name="default"), spec=made)


def planned(here: str, *objects: Resource) -> Plan:
    return plan(snapshot(objects, {}), here, matches)


def names(here: str, *objects: Resource) -> list[str]:
    return [one.name for one in planned(here, *objects).sessions]


def session(here: str, name: str, *objects: Resource) -> Session:
    return next(one for one in planned(here, *objects).sessions if one.name == name)


A, B, C = node("a", "10.0.0.9/24"), node("b", "10.0.0.10/24", "fd00::b/64"), node("c", "10.0.0.11/24", "fd00::c/64")
RR = node("rr", "10.0.0.200/24", labels={"rr": ""}, route_reflector_cluster_id="244.0.0.1")


def test_mesh_is_between_nodes_that_share_a_family() -> None:
    """One session per IP version that both ends have; none to oneself, none to a node without BGP data."""
    assert names("a", A, B, C) == ["Mesh_10_0_0_10", "Mesh_10_0_0_11"]
    assert names("b", A, B, C) == ["Mesh_10_0_0_9", "Mesh_10_0_0_11", "Mesh_fd00__c"]
    assert planned("x", A, B) == Plan(None)


def test_exactly_one_end_waits() -> None:
    """Addresses are compared as text: 10.0.0.9 sorts after 10.0.0.10, so the latter waits."""
    assert session("b", "Mesh_10_0_0_9", A, B).passive
    assert not session("a", "Mesh_10_0_0_10", A, B).passive


def test_mesh_off_and_reflectors() -> None:
    """Without the mesh there is nothing; a reflector takes no part in the mesh."""
    assert names("a", A, B, default(node_to_node_mesh_enabled=False)) == []
    assert names("a", A, B, RR) == ["Mesh_10_0_0_10"]
    assert names("rr", A, B, RR) == []


def test_one_peer_resource_makes_both_ends() -> None:
    """Clients get a Node session to the reflector, it gets the mirrors, and takes them for its clients."""
    to_rr = peer("to-rr", node_selector="!has(rr)", peer_selector="has(rr)")
    off = default(node_to_node_mesh_enabled=False)
    assert names("a", A, B, RR, to_rr, off) == ["Node_10_0_0_200"]
    assert names("rr", A, B, RR, to_rr, off) == ["Node_10_0_0_9", "Node_10_0_0_10"]
    assert session("rr", "Node_10_0_0_9", A, B, RR, to_rr, off).cluster_id == "244.0.0.1"
    assert session("a", "Node_10_0_0_200", A, B, RR, to_rr, off).cluster_id == ""
    manual = peer("to-rr", node_selector="!has(rr)", peer_selector="has(rr)", reverse_peering="Manual")
    assert names("rr", A, B, RR, manual, off) == []


def test_no_reflector_client_over_ebgp() -> None:
    """BIRD refuses a whole file with a client of another AS."""
    other = node("x", "10.0.0.77/24", as_number=65001)
    to_rr = peer("to-rr", node_selector="!has(rr)", peer_selector="has(rr)")
    assert session("rr", "Node_10_0_0_77", other, RR, to_rr).cluster_id == ""


def test_global_comes_before_node_and_replaces_the_mesh() -> None:
    """Of two definitions of one place the global one wins; a mesh session to the same place is not made."""
    everywhere = peer("z-everywhere", peer_ip="10.0.0.10", as_number=64512)
    here = peer("a-here", node="a", peer_ip="10.0.0.10", as_number=64512)
    assert names("a", A, B, everywhere, here) == ["Global_10_0_0_10"]
    assert names("a", A, B, here) == ["Node_10_0_0_10"]
    assert session("a", "Global_10_0_0_10", A, B, everywhere).peer_node == "b"


def test_ports() -> None:
    """An explicit port is part of the name; a Calico node's own port is found by address and AS."""
    objects = (
        A,
        B,
        BGPConfiguration(metadata=Metadata(name="node.b"), spec=BGPConfigurationSpec(listen_port=1791)),
        peer("explicit", peer_ip="10.0.0.77:1790", as_number=65001),
        peer("node", peer_ip="10.0.0.10"),
    )
    assert names("a", *objects) == ["Global_10_0_0_10", "Global_10_0_0_77_port_1790"]
    assert session("a", "Global_10_0_0_10", *objects).peer_port == 1791
    assert session("a", "Global_10_0_0_77_port_1790", *objects).peer_port == 1790


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (peer("p", peer_ip="10.0.0.300", as_number=1), "10.0.0.300"),
        (peer("p", peer_ip="fd00::1", as_number=1), "needs an IPv6 address on node a"),
        (peer("p"), "neither peerIP nor peerSelector"),
        (peer("p", peer_selector="has(", as_number=1), ""),
        (peer("p", node_selector="((", peer_ip="10.0.0.7"), "does not parse"),
        (peer("p", peer_ip="10.0.0.7", max_restart_time="soon"), "soon"),
        (
            peer("p", peer_ip="10.0.0.7", password=BGPPassword(secret_key_ref=SecretKeyRef(name="n", key="k"))),
            "not on this host",
        ),
    ],
)
def test_a_bad_peer_costs_only_itself(broken: BGPPeer, why: str) -> None:
    """The rest of the sessions stands, and the problem names the resource."""
    found = planned("a", A, B, broken)
    assert "Mesh_10_0_0_10" in [one.name for one in found.sessions]
    if why:
        assert any("BGPPeer(p)" in problem and why in problem for problem in found.problems)


def test_a_session_without_its_filter_is_left_out() -> None:
    """A missing BGPFilter must not open what it should have closed."""
    tor = peer("tor", peer_ip="10.0.0.254", as_number=65010, filters=("gone",))
    found = bird.render(snapshot([A, B, tor], {}), "a")
    assert "Global_10_0_0_254" not in found.text and "Mesh_10_0_0_10" in found.text
    assert "gone" in found.problems[0]
    empty = BGPFilter(metadata=Metadata(name="gone"))
    assert "Global_10_0_0_254" in bird.render(snapshot([A, B, tor, empty], {}), "a").text


@pytest.mark.parametrize(
    ("value", "number"), [(64512, 64512), ("64512", 64512), ("1.10", 65546), (None, None), ("", None), (0, 0)]
)
def test_as_numbers(value: int | str | None, number: int | None) -> None:
    """Numbers, texts and the dotted form."""
    assert parse_as(value) == number


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("1.2.3.4", ("1.2.3.4", None)),
        ("1.2.3.4:1790", ("1.2.3.4", 1790)),
        ("fd00::1", ("fd00::1", None)),
        ("[fd00:0::1]:1790", ("fd00::1", 1790)),
    ],
)
def test_peer_addresses(text: str, parts: tuple[str, int | None]) -> None:
    """All documented forms."""
    assert split_peer_ip(text) == parts


def test_session_names() -> None:
    """As the original's, which status tools parse."""
    assert session_name("Mesh", "fd00:192::2") == "Mesh_fd00_192__2"
    assert session_name("Node", "10.0.0.3", 1790) == "Node_10_0_0_3_port_1790"
    assert session_name("Global", "10.0.0.3", 179) == "Global_10_0_0_3"
