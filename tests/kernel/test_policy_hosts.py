"""Host endpoints on the wire: failsafe ports, forwarded traffic, preDNAT, doNotTrack (conformance cases 60 to 62)."""

from __future__ import annotations

from typing import Iterator

import pytest

from tests.kernel.packets import HOST, UPLINK, Packet, Router
from tests.kernel.policylab import API, NODE, WEB, A, E, Lab, W, host_endpoint, on_host
from tests.unit.policy.worlds import OPEN

pytestmark = pytest.mark.root

DNAT = f"""
add table ip nat-of-others
add chain ip nat-of-others pre {{ type nat hook prerouting priority dstnat; }}
add rule ip nat-of-others pre tcp dport {{ 32010, 32011 }} dnat to {W}:8055
"""


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Router("cph", {"caliweb": (W,), "caliapi": (A,)}) as router:
        made = Lab(router)
        made.set(OPEN, WEB, API)
        yield made
        made.table.close()


def into_host(port: int) -> Packet:
    return Packet(E, HOST[4], 6, 40000, port)


def test_without_policy_only_failsafe_ports_reach_the_host_and_containers_are_untouched(lab: Lab) -> None:
    """60."""
    assert lab.router.answered(into_host(8055))
    lab.set(host_endpoint())
    lab.router.forget_connections()
    assert not lab.router.answered(into_host(8055))
    assert lab.router.answered(into_host(22))
    assert lab.host_reaches(E, 53) and not lab.host_reaches(E, 54)
    assert lab.passes(Packet(E, W)) and lab.host_reaches(W)
    lab.unset(host_endpoint())
    lab.router.forget_connections()
    assert lab.router.answered(into_host(8055))


def test_failsafe_ports_can_be_set_and_limited(lab: Lab) -> None:
    """FelixConfiguration names them; a net limits the other end."""
    ports = [{"protocol": "tcp", "port": 8055, "net": "203.0.113.0/24"}]
    lab.set(host_endpoint(), {"kind": "FelixConfiguration", "metadata": {"name": "default"},
                              "spec": {"failsafeInboundHostPorts": ports}})
    assert lab.router.answered(into_host(8055)) and not lab.router.answered(into_host(22))
    assert not lab.router.answered(Packet("198.51.100.9", HOST[4], 6, 40000, 8055))


def test_policy_on_the_host_opens_what_it_says(lab: Lab) -> None:
    """Plain policy governs the host's own traffic, by profile where it passes."""
    lab.set(host_endpoint(), on_host("p", ingress=[
        {"action": "Allow", "protocol": "TCP", "destination": {"ports": [80]}}]))
    assert lab.router.answered(into_host(80)) and not lab.router.answered(into_host(81))
    lab.set(host_endpoint(profiles=["projectcalico-default-allow"]), on_host("p", ingress=[{"action": "Pass"}]))
    assert lab.router.answered(into_host(81)) and lab.host_reaches(E, 54)


def test_apply_on_forward_governs_traffic_to_containers_through_the_interface(lab: Lab) -> None:
    """61: and not between containers."""
    lab.set(host_endpoint(), on_host("p", applyOnForward=True, types=["Ingress"], ingress=[{"action": "Deny"}]))
    assert lab.router.send([Packet(E, W), Packet(A, W)]) == [False, True]
    assert lab.router.answered(into_host(22)) and lab.passes(Packet(W, E, 17))
    lab.set(on_host("p", applyOnForward=True, types=["Egress"], egress=[
        {"action": "Deny", "destination": {"nets": ["203.0.113.0/24"]}}, {"action": "Allow"}]))
    lab.router.forget_connections()
    assert lab.router.send([Packet(E, W, 17), Packet(W, E, 17), Packet(W, "198.51.100.9", 17)]) == [True, False, True]


def test_policy_before_dnat_sees_the_published_port(lab: Lab) -> None:
    """62: what it allows is spared the endpoint's later policy; a rule on the translated port would not match."""
    lab.router.run("nft", DNAT)
    assert lab.router.where(into_host(32010)) == lab.router.where(into_host(32011)) == {"caliweb"}
    lab.set(
        host_endpoint(),
        on_host("a", order=10, preDNAT=True, applyOnForward=True, ingress=[
            {"action": "Allow", "protocol": "TCP", "destination": {"ports": [32010, 8100]}}]),
        on_host("b", order=20, preDNAT=True, applyOnForward=True, ingress=[{"action": "Deny"}]),
        on_host("c", applyOnForward=True, types=["Ingress"], ingress=[{"action": "Deny"}]),
    )
    lab.router.forget_connections()
    assert lab.router.where(into_host(32010)) == {"caliweb"} and lab.router.where(into_host(32011)) == set()
    assert lab.router.answered(into_host(8100)) and lab.router.answered(into_host(22))


def test_untracked_policy_acts_before_connection_tracking(lab: Lab) -> None:
    """doNotTrack: Allow leaves no entry and skips the later policy of the endpoint, Deny acts on open connections."""
    lab.set(
        host_endpoint(),
        on_host("u", doNotTrack=True, applyOnForward=True, ingress=[
            {"action": "Allow", "protocol": "TCP", "destination": {"ports": [7000]}},
            {"action": "Deny", "protocol": "TCP", "destination": {"ports": [7001]}}],
            egress=[{"action": "Allow", "protocol": "TCP", "source": {"ports": [7000]}}]),
        on_host("open", order=1, ingress=[{"action": "Allow", "protocol": "TCP", "destination": {"ports": [7001]}}]),
    )
    assert lab.router.answered(into_host(7000))
    lab.set(on_host("late", preDNAT=True, applyOnForward=True, ingress=[{"action": "Deny"}]))
    assert lab.router.answered(into_host(7000)) and not lab.router.answered(into_host(7002))
    lab.unset(on_host("late", preDNAT=True, applyOnForward=True))
    assert "dport=7000" not in lab.router.run("conntrack", "-L", check=False)
    assert not lab.router.answered(into_host(7001)) and lab.router.answered(into_host(22))


def test_wildcard_endpoint_governs_every_interface_but_loopback(lab: Lab) -> None:
    """`*`: forwarded traffic of workloads too, plain policy not for workloads; an explicit endpoint comes first."""
    lab.set(host_endpoint("all", "*"), on_host("f", applyOnForward=True, types=["Ingress"], ingress=[
        {"action": "Deny", "protocol": "UDP"}, {"action": "Allow"}]))
    assert lab.router.send([Packet(A, W), Packet(A, W, 17), Packet(E, W, 17)]) == [True, False, False]
    assert lab.router.answered(into_host(8055)) and lab.host_reaches(W)
    lab.set(on_host("g", order=1, ingress=[{"action": "Deny"}]))
    lab.router.forget_connections()
    assert not lab.router.answered(into_host(8055))
    lab.router.run("ping", "-c1", "-W1", "127.0.0.1")
    lab.set(host_endpoint("zz", UPLINK, profiles=["projectcalico-default-allow"]))
    lab.unset(on_host("g"), on_host("f"))
    assert lab.router.answered(into_host(8055))


def test_endpoint_is_found_by_its_address(lab: Lab) -> None:
    """No interface name: the interface that holds an expected address; told loudly while there is none."""
    found = {**host_endpoint(), "spec": {"node": NODE, "expectedIPs": [HOST[4]]}}
    lab.set(found)
    assert "governs no interface" in next(iter(lab.engine.problems().values()))
    assert lab.router.answered(into_host(8055))
    lab.engine.on_interfaces({"lo": frozenset(["127.0.0.1"]), UPLINK: frozenset([HOST[4], "fe80::1"])})
    lab.apply()
    lab.router.forget_connections()
    assert lab.engine.problems() == {} and not lab.router.answered(into_host(8055))


def test_tunnels_between_nodes_are_no_matter_of_policy(lab: Lab) -> None:
    """Wrapped packets of the cluster's nodes reach and leave a governed host, those of strangers do not; without a pool
    that wraps, nobody's do."""
    node = {"kind": "Node", "metadata": {"name": "far"}, "spec": {"bgp": {"ipv4Address": f"{E}/24"}}}
    pool = {"kind": "IPPool", "metadata": {"name": "p"}, "spec": {"cidr": "10.77.0.0/16", "vxlanMode": "Always"}}
    wrapped, strange = Packet(E, HOST[4], 17, 40000, 4789), Packet("198.51.100.9", HOST[4], 17, 40000, 4789)
    lab.set(host_endpoint(), node)
    assert not lab.reaches_host(wrapped) and not lab.host_reaches(E, 4789)
    lab.set(pool)
    assert lab.reaches_host(wrapped) and lab.host_reaches(E, 4789)
    assert not lab.reaches_host(strange) and not lab.host_reaches("198.51.100.9", 4789)
    lab.unset(pool)
    lab.router.forget_connections()
    assert not lab.reaches_host(wrapped)
    lab.set(pool)
    lab.unset(host_endpoint())
    assert "tunnel-ends" not in lab.router.run("nft", "list", "table", "inet", "calico")
