"""The state of a node's BIRD as a CalicoNodeStatus, from what a BIRD 2.0.12 really printed."""

from __future__ import annotations

from datetime import datetime, timezone

from calico_plugin.node.nodestatus import CLASSES, Told, status
from calico_plugin.node.report import rows
from calico_plugin.routing.birdc import parse_protocols, parse_reply, parse_routes, parse_status
from tests.unit.node.test_report import PROTOCOLS, STATUS

NOW = datetime(2026, 3, 2, 10, 0, 0, tzinfo=timezone.utc)
ROUTES = """1007-Table master4:
 0.0.0.0/0            unicast [kernel4 09:00:00.000] * (10)
 \tvia 10.192.0.1 on eth0
 192.168.2.0/26       unicast [Mesh_10_192_0_2 09:14:02.534] * (100/0) [i]
 \tvia 10.192.0.2 on eth0
                      unicast [Node_10_192_0_3_port_1790 09:14:02.534 from 10.192.0.3] (100/0) [i]
 \tvia 10.192.0.2 on eth0
 \tvia 10.192.0.9 on eth1
 192.168.1.0/26       blackhole [blocks4 09:00:00.534] * (200)
 10.192.0.0/24        unicast [direct1 09:00:00.534] * (240)
 \tdev eth0
 Table master6:
 fd80::/64            unreachable [blocks6 09:00:00.534] * (200)
0000
"""


def told() -> Told:
    routes = parse_routes(line.text for line in parse_reply(ROUTES))
    protocols = parse_protocols(tuple(parse_reply(PROTOCOLS)))
    return Told(parse_status(tuple(parse_reply(STATUS))), rows(protocols), tuple(routes))


def test_all_classes() -> None:
    """Members and words are those of Calico's resource."""
    found = status(told(), CLASSES, NOW)
    assert found["lastUpdated"] == "2026-03-02T10:00:00Z"
    assert found["agent"]["birdV4"] == found["agent"]["birdV6"] == {
        "state": "Ready",
        "version": "2.0.12",
        "routerID": "10.192.0.1",
        "lastBootTime": "2026-03-02 09:00:00.000",
        "lastReconfigurationTime": "2026-03-02 09:14:02.000",
    }
    peers = [(one["peerIP"], one["type"], one["state"]) for one in found["bgp"].pop("peersV4")]
    assert peers == [
        ("10.192.0.2", "NodeMesh", "Established"),
        ("10.192.0.3", "NodePeer", "Active"),
        ("10.192.0.254", "GlobalPeer", "Idle"),
        ("10.192.0.9", "NodeMesh", "Active"),
    ]
    assert found["bgp"] == {
        "numberEstablishedV4": 1,
        "numberNotEstablishedV4": 3,
        "numberEstablishedV6": 0,
        "numberNotEstablishedV6": 0,
    }


def test_routes() -> None:
    """Best paths are FIB, the others RIB; each says by which protocol it came."""
    found = status(told(), CLASSES, NOW)["routes"]
    lines = [
        (one["type"], one["destination"], one["gateway"], one["interface"], *one["learnedFrom"].values())
        for one in found["routesV4"] + found["routesV6"]
    ]
    assert lines == [
        ("FIB", "0.0.0.0/0", "10.192.0.1", "eth0", "Kernel"),
        ("FIB", "192.168.2.0/26", "10.192.0.2", "eth0", "NodeMesh", "10.192.0.2"),
        ("RIB", "192.168.2.0/26", "10.192.0.2", "eth0", "BGPPeer", "10.192.0.3"),
        ("FIB", "192.168.1.0/26", "N/A", "blackhole", "Static"),
        ("FIB", "10.192.0.0/24", "N/A", "eth0", "Direct"),
        ("FIB", "fd80::/64", "N/A", "unreachable", "Static"),
    ]


def test_only_what_was_asked_for() -> None:
    """Other classes stay as in a new resource."""
    found = status(told(), ("Agent",), NOW)
    assert found["agent"]["birdV4"]["state"] == "Ready" and found["routes"] == {}
    assert not any(found["bgp"].values())


def test_no_bird() -> None:
    """A BIRD that does not answer is not ready."""
    found = status(Told(None), CLASSES, NOW)
    assert found["agent"] == {"birdV4": {"state": "NotReady"}, "birdV6": {"state": "NotReady"}}
    assert found["routes"] == {} and not any(found["bgp"].values())
