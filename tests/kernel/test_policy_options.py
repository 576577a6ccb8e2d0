"""What FelixConfiguration sets about policy and address translation, on the wire."""

from __future__ import annotations

import struct
from ipaddress import ip_address
from typing import Any, Iterator

import pytest

from tests.kernel.packets import HOST, UPLINK, Packet, Router
from tests.kernel.policylab import E6, W6, WEB, E, Lab, W, host_endpoint, on_host
from tests.unit.policy.worlds import OPEN, policy

pytestmark = pytest.mark.root

POOL = {"kind": "IPPool", "metadata": {"name": "a"}, "spec": {"cidr": "10.65.0.0/16", "natOutgoing": True}}
OTHER_HOST = {"kind": "Node", "metadata": {"name": "n2"}, "spec": {"bgp": {"ipv4Address": f"{E}/24"}}}
# Of the link that packets to the outside leave by; another address of this host.
SECOND = "172.31.0.77"


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Router("cpo", {"caliweb": (W, W6)}) as router:
        made = Lab(router)
        made.set(OPEN, WEB, POOL)
        yield made
        made.table.close()


def felix(lab: Lab, **spec: Any) -> None:
    lab.set({"kind": "FelixConfiguration", "metadata": {"name": "default"}, "spec": spec})
    assert lab.engine.problems() == {}
    lab.router.forget_connections()


def unreachables(lab: Lab, packet: Packet, where: str = UPLINK) -> int:
    """ICMP "port unreachable" that comes back for a packet."""
    lab.router.send([packet])  # also takes what came before
    lab.router._put(packet)
    at, kind = (34, b"\x03\x03") if packet.family == 4 else (54, b"\x01\x04")
    return sum(name == where and data[at:at + 2] == kind for name, data in lab.router.collect())


def leaves_with(lab: Lab, packet: Packet) -> tuple[str, int]:
    """Source address and port with which a packet comes out of the uplink."""
    mark = lab.router._put(packet)
    data = next(data for name, data in lab.router.collect() if name == UPLINK and mark in data)
    return str(ip_address(data[26:30])), struct.unpack_from("!H", data, 34)[0]


def test_who_is_denied_is_told_where_the_operator_wants_it(lab: Lab) -> None:
    """nftablesFilterDenyAction: Reject, by a rule, by a tier's end, towards the outside and towards the container."""
    lab.set(policy("p", selector="app=='web'", ingress=[{"action": "Deny", "protocol": "UDP"}], types=["Ingress"]))
    assert unreachables(lab, Packet(E, W, 17)) == 0
    felix(lab, nftablesFilterDenyAction="Reject")
    assert not lab.passes(Packet(E, W, 17))
    assert unreachables(lab, Packet(E, W, 17)) == unreachables(lab, Packet(E, W, 6)) == 1
    assert unreachables(lab, Packet(E6, W6, 17)) == 1
    lab.set(policy("out", selector="app=='web'", types=["Egress"], egress=[{"action": "Deny"}]))
    assert unreachables(lab, Packet(W, E, 17, 4001), "caliweb") == 1


def test_reject_is_drop_before_routing(lab: Lab) -> None:
    """The kernel rejects nothing there: such policy still denies."""
    felix(lab, iptablesFilterDenyAction="Reject")
    deny = {"ingress": [{"action": "Deny", "protocol": "TCP"}], "applyOnForward": True}
    lab.set(host_endpoint(), on_host("u", doNotTrack=True, **deny), on_host("n", preDNAT=True, **deny))
    assert not lab.passes(Packet(E, W)) and lab.passes(Packet(E, W, 17))


def test_containers_leave_with_the_address_that_the_operator_chose(lab: Lab) -> None:
    """natOutgoingAddress, for IPv4; and all ports within natPortRange, for TCP and UDP."""
    felix(lab, natOutgoingAddress=SECOND)
    assert lab.router.sources_seen(Packet(W, E, 17)) == lab.router.sources_seen(ping_like()) == {SECOND}
    felix(lab, natOutgoingAddress=SECOND, natPortRange="50000:50003")
    seen = [leaves_with(lab, Packet(W, E, protocol, 4000 + number)) for protocol in (6, 17) for number in range(3)]
    assert {address for address, _ in seen} == {SECOND} and {port for _, port in seen} <= set(range(50000, 50004))
    felix(lab, natPortRange="50000:50003")
    address, port = leaves_with(lab, Packet(W, E, 17, 4100))
    assert address == HOST[4] and 50000 <= port < 50004
    assert lab.router.sources_seen(ping_like()) == {HOST[4]}


def ping_like() -> Packet:
    """Without ports: never limited."""
    return Packet(W, E, 1, 0, 8)


def test_other_hosts_see_the_container_where_the_operator_wants_it(lab: Lab) -> None:
    """natOutgoingExclusions: IPPoolsAndHostIPs, also for a host that joins later."""
    lab.set(OTHER_HOST)
    assert lab.router.sources_seen(Packet(W, E, 17)) == {HOST[4]}
    felix(lab, natOutgoingExclusions="IPPoolsAndHostIPs")
    assert lab.router.sources_seen(Packet(W, E, 17)) == {W}
    assert lab.router.sources_seen(Packet(W, "198.51.100.9", 17)) == {HOST[4]}
    lab.set({**OTHER_HOST, "metadata": {"name": "n3"}, "spec": {"bgp": {"ipv4Address": "198.51.100.9/24"}}})
    lab.router.forget_connections()
    assert lab.router.sources_seen(Packet(W, "198.51.100.9", 17)) == {W}


@pytest.mark.parametrize(("interface", "source"), [("upl+", HOST[4]), (UPLINK, HOST[4]), ("eth+", W)])
def test_translation_only_where_packets_leave_by_the_named_interface(lab: Lab, interface: str, source: str) -> None:
    """iptablesNATOutgoingInterfaceFilter, a trailing + as in iptables."""
    felix(lab, iptablesNATOutgoingInterfaceFilter=interface)
    assert lab.router.sources_seen(Packet(W, E, 17)) == {source}


def test_rate_of_the_log_does_not_touch_verdicts(lab: Lab) -> None:
    """logActionRateLimit: what exceeds it is not written, and goes on to the next rule all the same."""
    felix(lab, logActionRateLimit="1/day", logActionRateLimitBurst=1)
    lab.set(policy("p", selector="app=='web'", ingress=[{"action": "Log"}, {"action": "Allow", "protocol": "UDP"}]))
    assert lab.router.send([Packet(E, W, 17, 4000 + number) for number in range(5)]) == [True] * 5
    assert "limit rate 1/day burst 1 packets log prefix" in lab.router.run("nft", "list", "table", "inet", "calico")
