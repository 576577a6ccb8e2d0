"""Rules as text (golden files: `make golden` writes them anew), and scripts from one state of the table to another."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from calico_plugin.dataplane.nfsteps import Elements, State, difference, fingerprint
from calico_plugin.dataplane.nftscript import render, render_match, render_rule, script_text
from calico_plugin.model.desired import AddressSet, Chain, Field, Match, Rule, Ruleset, SetType, Verdict, VerdictMap
from tests.unit.policy.worlds import OPEN, compiled, endpoint, objects, policy

GOLDEN = Path(__file__).parents[2] / "golden"
WEB = endpoint("web", "10.65.0.10", {"app": "web"}, ipNetworks=["10.65.0.10/32", "fd65::10/128"], profiles=["net1"])
API = endpoint("api", "10.65.0.20", {"app": "api"}, profiles=["net1"], ports=[
    {"name": "http", "protocol": "TCP", "port": 8080}])
NET1 = {"kind": "Profile", "metadata": {"name": "net1"}, "spec": {
    "labelsToApply": {"net1": ""}, "egress": [{"action": "Allow"}],
    "ingress": [{"action": "Allow", "source": {"selector": "has(net1)"}}]}}
POOL = {"kind": "IPPool", "metadata": {"name": "p"}, "spec": {"cidr": "10.65.0.0/16", "natOutgoing": True}}
POLICIES = (
    {"kind": "Tier", "metadata": {"name": "sec"}, "spec": {"order": 10, "defaultAction": "Pass"}},
    policy("sec.first", tier="sec", order=1, selector="app=='web'", ingress=[
        {"action": "Pass", "source": {"selector": "app=='api'"}}, {"action": "Log"},
        {"action": "Deny", "protocol": "ICMP", "notICMP": {"type": 8, "code": 0}}]),
    policy("web", selector="app=='web'", ingress=[
        {"action": "Allow", "protocol": "TCP", "source": {"nets": ["10.0.0.0/8", "10.1.0.0/16", "fd00::/8"]},
         "destination": {"ports": [80, "8000:9000", "http"]}},
        {"action": "Deny", "ipVersion": 6, "notProtocol": "UDP"}]),
)
HOST = {"kind": "HostEndpoint", "metadata": {"name": "h", "labels": {"app": "web"}}, "spec": {
    "node": "n1", "interfaceName": "eth0"}}
OPTIONS = {"kind": "FelixConfiguration", "metadata": {"name": "default"}, "spec": {
    "nftablesFilterDenyAction": "Reject", "logActionRateLimit": "10/minute", "natOutgoingAddress": "198.51.100.1",
    "natPortRange": "32768:65535", "natOutgoingExclusions": "IPPoolsAndHostIPs",
    "iptablesNATOutgoingInterfaceFilter": "eth+"}}
SORTED = (
    *(policy(f"net{number:02}", order=number, selector="app=='web'", ingress=[
        {"action": "Deny", "source": {"nets": [f"10.{number // 2}.0.0/{16 + number % 2}"]}}]) for number in range(20)),
    *(policy(f"port{number}", order=20, selector="app=='web'", ingress=[
        {"action": "Allow", "protocol": "TCP", "destination": {"ports": [8000 + number, "9000:9100"]}},
        {"action": "Log", "protocol": "ICMP"}]) for number in range(2)),
    *(policy(f"label{number}", order=30, selector="app=='web'", ingress=[
        {"action": "Allow", "source": {"selector": "app=='api'"}}]) for number in range(2)),
    policy("rest", order=40, selector="app=='web'", ingress=[{"action": "Allow"}]),
)
CASES: dict[str, tuple[dict[str, Any], ...]] = {
    "empty": (),
    "network": (NET1, WEB, API, POOL),
    "policies": (NET1, OPEN, WEB, API, *POLICIES),
    "sorted": (NET1, WEB, API, *SORTED),
    "host": (NET1, HOST, *POLICIES),
    "options": (NET1, OPEN, WEB, API, POOL, *POLICIES, OPTIONS),
}


@pytest.mark.parametrize("name", CASES)
def test_golden_nft_script(name: str) -> None:
    """The whole table as it is loaded; read the difference before you accept it."""
    written = render(compiled(objects(CASES[name]), "n1"))
    expected = GOLDEN / f"nft-{name}.nft"
    if os.environ.get("UPDATE_GOLDEN"):
        expected.write_text(written)
    assert written == expected.read_text()


@pytest.mark.parametrize(("match", "text"), [
    (Match(Field.FAMILY, ("6",)), "meta nfproto ipv6"),
    (Match(Field.PROTOCOL, ("17",), negated=True), "meta l4proto != 17"),
    (Match(Field.SOURCE4, ("10.0.0.0/8",)), "ip saddr 10.0.0.0/8"),
    (Match(Field.DESTINATION6, ("::1", "fd00::/8"), negated=True), "ip6 daddr != { ::1, fd00::/8 }"),
    (Match(Field.DESTINATION_PORT, ("80", "90-99")), "th dport { 80, 90-99 }"),
    (Match(Field.SOURCE_NAMED4, set_name="n", negated=True), "ip saddr . meta l4proto . th sport != @n"),
    (Match(Field.IN_INTERFACE, ("cali*",), negated=True), 'iifname != "cali*"'),
    (Match(Field.CONNECTION_STATE, ("established", "related")), "ct state established,related"),
    (Match(Field.CONNECTION_STATUS, ("dnat",), negated=True), "ct status & dnat == 0"),
    (Match(Field.ICMP4, ("3 . 4",)), "icmp type 3 icmp code 4"),
    (Match(Field.ICMP4, ("3 . 4",), negated=True), "icmp type . icmp code != { 3 . 4 }"),
    (Match(Field.ICMP6, ("128",), negated=True), "icmpv6 type != { 128 }"),
])
def test_criterion_in_nfts_words(match: Match, text: str) -> None:
    """Written so that nft 1.0.6 understands it as it is meant (policy 5.3)."""
    assert render_match(match) == text


def test_rules_that_somebody_wrote_are_counted() -> None:
    """Our own frame is not."""
    assert render_rule(Rule(Verdict.DROP, origin="p|rule 0")) == "counter drop"
    assert render_rule(Rule(Verdict.DROP)) == "drop"


def test_fingerprint_covers_order_and_every_rule() -> None:
    """Two chains with the same rules in another order, or one less, are different."""
    one, two = Rule(Verdict.ACCEPT), Rule(Verdict.DROP)
    prints = {fingerprint(Chain("c", rules)) for rules in ((one, two), (two, one), (one,), (two,), ())}
    assert len(prints) == 5


def ruleset(members: frozenset[str], target: str) -> Ruleset:
    chains = {name: Chain(name) for name in ("a", "b")}
    return Ruleset({"s": AddressSet("s", SetType.IPV4, members)}, chains, {"m": VerdictMap("m", {"cali1": target})})


def test_difference_of_members_and_map_elements_is_elements_only() -> None:
    """What has gone comes before what is new: intervals must not overlap, a key has one target."""
    before = State.of(ruleset(frozenset(["10.0.0.1", "10.0.0.2"]), "a"))
    script = difference(before, ruleset(frozenset(["10.0.0.2", "10.0.0.3"]), "b"))
    assert [(step.verb, step.name, step.body) for step in script.steps] == [
        ("delete", "s", Elements(SetType.IPV4, False, ("10.0.0.1",))),
        ("add", "s", Elements(SetType.IPV4, False, ("10.0.0.3",))),
        ("delete", "m", Elements(SetType.INTERFACE, False, ("cali1",), ("a",))),
        ("add", "m", Elements(SetType.INTERFACE, False, ("cali1",), ("b",))),
    ]
    assert script.members == 2 and script.elements == 2


def test_difference_removes_references_before_what_they_name() -> None:
    """Rules, then maps, then chains, then sets."""
    script = difference(State.of(ruleset(frozenset(), "a")), Ruleset())
    assert [" ".join(command.split()[:2]) for command in script_text(script).splitlines()] == [
        "flush chain", "flush chain", "delete map", "delete chain", "delete chain", "delete set"]


def test_equal_states_need_nothing() -> None:
    """Whether the objects are the same instances or only equal."""
    wanted = ruleset(frozenset(["10.0.0.1"]), "a")
    assert not difference(State.of(wanted), wanted).steps
    assert not difference(State.of(ruleset(frozenset(["10.0.0.1"]), "a")), wanted).steps
