"""What policy means beyond verdicts of single packets: connections, the host, spoofing, encapsulation, translation.

The numbers in the docstrings are the conformance cases of the policy reference.
"""

from __future__ import annotations

import json
import select
import socket
from typing import Any, Iterator

import pytest

from tests.kernel.packets import HOST, UPLINK, Packet, Router, in_namespace, ping
from tests.kernel.policylab import A6, API, E6, W6, WEB, A, E, Lab, W
from tests.unit.policy.worlds import OPEN, policy

pytestmark = pytest.mark.root

ACK, SYN = 0x10, 0x02
DENY_WEB = policy("deny", selector="app=='web'", ingress=[{"action": "Deny"}])


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Router("cpt", {"caliweb": (W, W6), "caliapi": (A, A6), "calixyz": ("10.65.0.77",)}) as router:
        made = Lab(router)
        made.set(OPEN, WEB, API)
        yield made
        made.table.close()


def test_nothing_passes_before_the_first_endpoint_is_known() -> None:
    """The bootstrap table alone drops both directions, also towards and from the host (4.3)."""
    with Router("cpb", {"caliweb": (W, W6)}) as router:
        made = Lab(router)
        assert router.send([Packet(W, E), Packet(E, W), Packet(W6, E6), Packet(E6, W6)]) == [False] * 4
        assert not made.reaches_host(Packet(W, HOST[4], 17)) and not made.host_reaches(W)
        assert not made.table.bootstrap(made.engine.compile())
        made.set(OPEN, WEB)
        assert router.send([Packet(W, E), Packet(E, W), Packet(W6, E6), Packet(E6, W6)]) == [True] * 4
        made.unset(WEB)
        assert router.send([Packet(W, E, 17), Packet(E, W, 17)]) == [False] * 2


def test_interface_that_no_endpoint_names_is_dark(lab: Lab) -> None:
    """66."""
    unknown = "10.65.0.77"
    assert lab.router.send([Packet(unknown, E), Packet(E, unknown), Packet(W, unknown)]) == [False] * 3
    assert not lab.reaches_host(Packet(unknown, HOST[4], 17)) and not lab.host_reaches(unknown)


def test_workload_sends_with_its_own_addresses_only(lab: Lab) -> None:
    """64: another address of the pool, a neighbour's, an outside one are dropped before any policy; IPv4 and IPv6."""
    forged = [Packet("10.65.0.99", E), Packet(A, E), Packet(E, A), Packet("fd65::99", E6), Packet(A6, E6)]
    assert lab.router.send(forged, via="caliweb") == [False] * 5
    assert lab.router.send([Packet(W, E), Packet(W6, E6)]) == [True] * 2
    assert lab.router.run("nft", "-j", "list", "chain", "inet", "calico", "prerouting-spoof").count('"packets": 0') == 0


def test_spoofing_is_allowed_by_prefix_where_the_host_allows_it(lab: Lab) -> None:
    """4.5: otherwise such an endpoint counts as missing (V32)."""
    router_like = {**WEB, "spec": {**WEB["spec"], "allowSpoofedSourcePrefixes": ["198.18.0.0/16", "fd99::/64"]}}
    lab.set(router_like)
    assert not lab.passes(Packet(W, E, 17))
    lab.set({"kind": "FelixConfiguration", "metadata": {"name": "default"}, "spec": {"workloadSourceSpoofing": "Any"}})
    sent = [Packet("198.18.3.4", E), Packet("fd99::1", E6), Packet("198.19.0.1", E), Packet(W, E)]
    assert lab.router.send(sent, via="caliweb") == [True, True, False, True]
    assert lab.router.send([Packet("198.18.3.4", E)], via="caliapi") == [False]


def test_open_connection_goes_on_under_a_new_deny_and_a_new_one_does_not_start(lab: Lab) -> None:
    """65, and the fast path: established packets meet no policy."""
    opened = Packet(A, W, 6, 5000, 80, SYN)
    assert lab.passes(opened) and lab.passes(opened.reply()) and lab.passes(Packet(A, W, 6, 5000, 80, ACK))
    lab.set(DENY_WEB)
    assert lab.passes(Packet(A, W, 6, 5000, 80, ACK)) and lab.passes(opened.reply(ACK))
    assert not lab.passes(Packet(A, W, 6, 5001, 80, SYN))
    lab.unset(DENY_WEB)
    assert lab.passes(Packet(A, W, 6, 5001, 80, SYN))


def test_reply_to_an_isolated_workload_passes(lab: Lab) -> None:
    """Ingress isolation does not cut the answers to what the workload asked."""
    lab.set(DENY_WEB)
    asked = Packet(W, E, 17, 4000, 53)
    assert lab.passes(asked) and lab.passes(asked.reply()) and not lab.passes(Packet(E, W, 17, 4000, 53))


def test_host_may_always_talk_to_its_workloads(lab: Lab) -> None:
    """58: also when ingress is isolated; and the workload's replies reach the host although the action is Drop."""
    lab.set(DENY_WEB)
    assert lab.host_reaches(W)
    port = 5353

    def ask() -> socket.socket:
        handle = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        handle.bind((HOST[4], port))
        handle.sendto(b"?", (W, 53))
        return handle

    with in_namespace(lab.router.name, ask) as handle:
        lab.router.send([Packet(W, HOST[4], 17, 53, port)])
        assert select.select([handle], [], [], 0.2)[0]


@pytest.mark.parametrize(("action", "delivered"), [("Drop", False), ("Return", True), ("Accept", True)])
def test_endpoint_to_host_action(lab: Lab, action: str, delivered: bool) -> None:
    """59: after the egress policy, which can always deny."""
    lab.to_host(action)
    assert lab.reaches_host(Packet(W, HOST[4], 17, 4000, 5400)) is delivered
    assert lab.reaches_host(Packet(W6, HOST[6], 17, 4000, 5400), HOST[6]) is delivered
    lab.set(policy("out", selector="app=='web'", types=["Egress"], egress=[{"action": "Deny"}]))
    assert not lab.reaches_host(Packet(W, HOST[4], 17, 4001, 5401))


def test_return_leaves_the_decision_to_the_hosts_own_rules(lab: Lab) -> None:
    """59: with an INPUT policy of DROP in another table the packet is lost under Return."""
    lab.to_host("Return")
    lab.router.run("nft", "add table ip own; add chain ip own in { type filter hook input priority 0; policy drop; }")
    assert not lab.reaches_host(Packet(W, HOST[4], 17, 4000, 5400))


def test_only_policy_opens_bgp_and_etcd_of_the_hosts(lab: Lab) -> None:
    """Whoever reaches them can change what all hosts do: no profile opens them, on this host and on others."""
    lab.to_host("Return")
    other = {"kind": "Node", "metadata": {"name": "n2"}, "spec": {"bgp": {"ipv4Address": f"{E}/24"}}}
    lab.set(other)
    control = (179, 2379, 2380)
    assert lab.router.answered(Packet(W, HOST[4], 6, 4000, 80)) and lab.passes(Packet(W, E, 6, 4000, 80))
    assert lab.router.answered(Packet(W6, HOST[6], 6, 4000, 80))
    for port in control:
        assert not lab.router.answered(Packet(W, HOST[4], 6, 4000, port)), port
        assert not lab.router.answered(Packet(W6, HOST[6], 6, 4000, port)), port
        assert not lab.passes(Packet(W, E, 6, 4000, port)), port
    assert lab.passes(Packet(W, "198.51.100.9", 6, 4000, 2379)) and lab.passes(Packet(W, A, 6, 4000, 2379))
    lab.set(policy("admin", selector="app=='web'", types=["Egress"], egress=[
        {"action": "Allow", "protocol": "TCP", "destination": {"ports": [2379]}}, {"action": "Pass"}]))
    assert lab.router.answered(Packet(W, HOST[4], 6, 4001, 2379)) and lab.passes(Packet(W, E, 6, 4001, 2379))
    assert not lab.router.answered(Packet(W, HOST[4], 6, 4001, 179))
    lab.to_host("Accept")
    assert lab.router.answered(Packet(W, HOST[4], 6, 4002, 179))


def test_neighbour_discovery_reaches_the_host_and_router_advertisements_do_not(lab: Lab) -> None:
    """67: 135 passes although all else to the host is dropped, 134 does not; counted by rules of another table."""
    lab.router.run("nft", """
        add table ip6 count; add chain ip6 count input { type filter hook input priority 10; }
        add rule ip6 count input icmpv6 type 135 counter; add rule ip6 count input icmpv6 type 134 counter""")
    lab.router.send([ping("fe80::5", HOST[6], 135), ping("fe80::5", HOST[6], 134)], via="caliweb")
    listing = json.loads(lab.router.run("nft", "-j", "list", "chain", "ip6", "count", "input"))["nftables"]
    counters = [part["counter"]["packets"] for entry in listing if "rule" in entry
                for part in entry["rule"]["expr"] if "counter" in part]
    assert counters == [1, 0]


def test_workload_cannot_talk_to_tunnels(lab: Lab) -> None:
    """63: VXLAN's port and IPIP are dropped, the port beside it is not."""
    packets = [Packet(W, E, 17, 4000, 4789), Packet(W, E, 4), Packet(W, E, 17, 4000, 4788)]
    assert lab.router.send(packets) == [False, False, True]


def test_icmp_types_and_codes(lab: Lab) -> None:
    """30, 31, 32."""
    lab.set(policy("p", selector="app=='web'", ingress=[
        {"action": "Allow", "protocol": "ICMP", "icmp": {"type": 8}},
        {"action": "Allow", "protocol": "ICMP", "icmp": {"type": 3, "code": 4}}]))
    assert lab.router.send([ping(E, W), ping(E, W, 13), ping(E6, W6)]) == [True, False, False]
    lab.set(policy("p", selector="app=='web'", ingress=[
        {"action": "Allow", "protocol": "ICMP", "notICMP": {"type": 8, "code": 4}}]))
    lab.router.forget_connections()
    assert lab.router.send([ping(E, W, 8, 4), ping(E, W, 8, 1), Packet(E, W)]) == [False, True, False]
    lab.set(policy("p", selector="app=='web'", ingress=[
        {"action": "Allow", "protocol": "ICMPv6", "icmp": {"type": 128}}]))
    lab.router.forget_connections()
    assert lab.router.send([ping(E6, W6), ping(E, W)]) == [True, False]


def test_profile_that_passes_leads_to_the_next(lab: Lab) -> None:
    """48, second half; and 3: a missing profile before the open one closes both ways."""
    passing = {"kind": "Profile", "metadata": {"name": "pass"}, "spec": {"ingress": [{"action": "Pass"}]}}
    lab.set(passing, {**WEB, "spec": {**WEB["spec"], "profiles": ["pass", "open"]}})
    assert lab.passes(Packet(A, W))
    lab.set({**WEB, "spec": {**WEB["spec"], "profiles": ["ghost", "open"]}})
    lab.router.forget_connections()
    assert lab.router.send([Packet(E, W), Packet(W, E, 17)]) == [False, False]


def test_nat_outgoing_hides_pool_addresses_from_outside_only(lab: Lab) -> None:
    """4.8: to the outside the host's address appears, to another pool's address the workload's own."""
    assert lab.router.sources_seen(Packet(W, E, 17)) == {W}
    lab.set({"kind": "IPPool", "metadata": {"name": "a"}, "spec": {"cidr": "10.65.0.0/16", "natOutgoing": True}},
            {"kind": "IPPool", "metadata": {"name": "b"}, "spec": {"cidr": "10.77.0.0/16", "disabled": True}})
    lab.router.forget_connections()
    assert lab.router.sources_seen(Packet(W, E, 17)) == {HOST[4]}
    assert lab.router.sources_seen(Packet(W, "10.65.9.9", 17)) == {W}
    assert lab.router.sources_seen(Packet(W, "10.77.1.1", 17)) == {W}
    assert lab.passes(Packet(W, A, 17))


def test_networks_are_apart_until_a_policy_joins_them(lab: Lab) -> None:
    """What Docker networks imply: members of one network reach each other, others do not (decision 7)."""
    def network(name: str) -> dict[str, Any]:
        return {"kind": "Profile", "metadata": {"name": name}, "spec": {
            "labelsToApply": {name: ""}, "egress": [{"action": "Allow"}],
            "ingress": [{"action": "Allow", "source": {"selector": f"has({name})"}}]}}

    lab.set(network("net1"), network("net2"),
            {**WEB, "spec": {**WEB["spec"], "profiles": ["net1"]}},
            {**API, "spec": {**API["spec"], "profiles": ["net2"]}})
    assert lab.router.send([Packet(A, W), Packet(E, W), Packet(W, E, 17)]) == [False, False, True]
    lab.set({**API, "spec": {**API["spec"], "profiles": ["net1"]}})
    assert lab.passes(Packet(A, W))


def test_log_writes_and_carries_on(lab: Lab) -> None:
    """44: the rule after Log still decides (the line itself goes to the machine's log, not to a namespace's)."""
    lab.set(policy("p", selector="app=='web'", ingress=[
        {"action": "Log", "source": {"selector": "app=='api'"}},
        {"action": "Allow", "source": {"selector": "app=='api'"}}]))
    assert lab.router.send([Packet(A, W), Packet(E, W)]) == [True, False]
    assert 'log prefix "calico-packet: "' in lab.router.run("nft", "list", "table", "inet", "calico")


def test_packets_are_counted_by_what_a_person_wrote(lab: Lab) -> None:
    """Each rule, and the end of the tier."""
    lab.set(policy("p", selector="app=='web'", ingress=[
        {"action": "Allow", "protocol": "TCP", "destination": {"ports": [80]}}, {"action": "Deny", "protocol": "UDP"}]))
    lab.router.send([Packet(A, W), Packet(E, W, 6, 41000), Packet(E, W, 17), Packet(E, W, 6, 42000, 81)])
    counters = lab.table.counters(lab.engine.compile())
    ours = {origin: packets for (_, origin), packets in counters.items() if "|p|" in origin}
    assert ours == {
        "default|GlobalNetworkPolicy|p|rule 0": 2, "default|GlobalNetworkPolicy|p|rule 1": 1,
        "default|GlobalNetworkPolicy|p|end of tier": 1,
    }


def test_docker_like_drop_after_us_still_drops_and_our_drop_is_final(lab: Lab) -> None:
    """Another table's verdict at priority 0 counts for what we accept; what we drop never reaches it."""
    lab.set(DENY_WEB)
    lab.router.run("nft", """
        add table ip other; add chain ip other forward { type filter hook forward priority 0; policy drop; }
        add rule ip other forward ip daddr 10.65.0.0/24 counter accept""")
    assert lab.router.send([Packet(E, W), Packet(E, A), Packet(W, E, 17)]) == [False, True, False]
    assert UPLINK in lab.router.run("ip", "-br", "link")
