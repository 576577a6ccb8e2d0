"""The 68 conformance cases of the policy reference as data: what is stored, and which first packets then pass.

`tests/unit/policy/test_conformance.py` walks the compiled rules, `tests/lab/test_conformance.py` sends packets between
real containers on two hosts (and plays those that are no matter of single packets, which have no flows here).

Flows are written `+A>W` (passes) or `-A>W:udp/53`: ends by their letter, `@n` behind the source is its port, a protocol
with a port (tcp/80 when left out), `icmp/type/code`, `icmp6/…`, `ip/4`; a leading 6 means IPv6: `6+E>W`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Iterator, Mapping

from tests.kernel.packets import Packet

Document = Mapping[str, Any]
NAMESPACE = "libnetwork"
ADDRESSES = {
    "W": ("10.65.0.10", "fd65::10"), "A": ("10.65.0.20", "fd65::20"), "D": ("10.65.1.30", "fd65::30"),
    "X": ("10.65.0.40", "fd65::40"), "B": ("10.65.0.50", "fd65::50"), "E": ("203.0.113.7", "2001:db8::7"),
    "C": ("198.51.100.5", "2001:db8:c::1"), "L": ("203.0.113.70", ""),
}
CONTAINERS = {
    "W": {"app": "web", "env": "prod"}, "A": {"app": "api", "env": "prod"},
    "D": {"app": "db", "env": "prod", "role": "primary-eu"}, "X": {"app": "web", "env": "dev"}, "B": {},
}
OUTSIDE = ("E", "C", "L")
OTHER_HOST = ("D",)
PORTS = {
    "W": [("http", "TCP", 8080), ("metrics", "TCP", 9100)], "A": [("http", "TCP", 9090), ("dns", "UDP", 5353)],
}
ON_W = "app=='web' && env=='prod'"


def profile(
    name: str, ingress: list[Document], egress: list[Document], labels: Mapping[str, str] | None = None
) -> Document:
    return {"kind": "Profile", "metadata": {"name": name}, "spec": {
        "ingress": ingress, "egress": egress, **({"labelsToApply": dict(labels)} if labels else {})}}


ALLOW: Document = {"action": "Allow"}
DENY: Document = {"action": "Deny"}
PASS: Document = {"action": "Pass"}
FIXTURES: tuple[Document, ...] = (
    profile("p-open", [ALLOW], [ALLOW]),
    profile("p-net1", [{"action": "Allow", "source": {"selector": "has(net1)"}}], [ALLOW],
            {"net1": "", "env": "staging"}),
    profile("p-noapi", [{"action": "Deny", "source": {"selector": "app=='api'"}}], [ALLOW]),
    profile("p-pass", [PASS], []),
    {"kind": "GlobalNetworkSet", "metadata": {"name": "corp", "labels": {"net": "corp"}},
     "spec": {"nets": ["198.51.100.0/24", "2001:db8:c::/48"]}},
    {"kind": "NetworkSet", "metadata": {"name": "lab", "namespace": NAMESPACE, "labels": {"net": "lab"}},
     "spec": {"nets": ["203.0.113.64/26"]}},
)


@dataclass(frozen=True)
class Part:
    """A state of the cluster besides the fixtures, and the flows in it. `profiles`: end -> instead of [p-open]."""

    resources: tuple[Document, ...] = ()
    flows: str = ""
    profiles: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __iter__(self) -> Iterator[tuple[Packet, str, str, bool]]:
        """(packet, source end, destination end, whether it passes)."""
        for number, text in enumerate(self.flows.split()):
            yield read_flow(text, 42000 + number)


def read_flow(text: str, port: int) -> tuple[Packet, str, str, bool]:
    found = re.fullmatch(r"(6?)([+-])(\w)(?:@(\d+))?>(\w)(?::([a-z0-9]+)/(\d+)(?:/(\d+))?)?", text)
    assert found, text
    six, sign, source, given, target, protocol, number, code = found.groups()
    family = 1 if six else 0
    ends = ADDRESSES[source][family], ADDRESSES[target][family]
    passes = sign == "+"
    protocol = protocol or "tcp"
    if protocol in ("icmp", "icmp6"):
        return Packet(*ends, 1 if protocol == "icmp" else 58, int(code or 0), int(number)), source, target, passes
    if protocol == "ip":
        return Packet(*ends, int(number)), source, target, passes
    numbers = {"tcp": 6, "udp": 17, "sctp": 132, "udplite": 136}
    return Packet(*ends, numbers[protocol], int(given or port), int(number or 80)), source, target, passes


@dataclass(frozen=True)
class Case:
    """`played`: the lab test that plays it where flows do not say all. `differs`: in what we differ on purpose."""

    number: int
    parts: tuple[Part, ...] = ()
    played: str = ""
    differs: str = ""


def gnp(name: str, selector: str = ON_W, **spec: Any) -> Document:
    return {"kind": "GlobalNetworkPolicy", "metadata": {"name": name}, "spec": _spec(selector, spec)}


def np(name: str, namespace: str = NAMESPACE, selector: str = ON_W, **spec: Any) -> Document:
    metadata = {"name": name, "namespace": namespace}
    return {"kind": "NetworkPolicy", "metadata": metadata, "spec": _spec(selector, spec)}


def _spec(selector: str, spec: dict[str, Any]) -> dict[str, Any]:
    """With the default that Calico's API fills in for types."""
    types = [kind for kind in ("Ingress", "Egress") if spec.get(kind.lower())] or ["Ingress"]
    return {"selector": selector, "types": types, **spec}


def tier(name: str, order: float, action: str = "Deny") -> Document:
    return {"kind": "Tier", "metadata": {"name": name}, "spec": {"order": order, "defaultAction": action}}


def source(selector: str, action: str = "Allow", **more: Any) -> Document:
    return {"action": action, "source": {"selector": selector}, **more}


def towards(selector: str, action: str = "Allow", **more: Any) -> Document:
    return {"action": action, "destination": {"selector": selector}, **more}


def ports(*listed: Any, protocol: Any = "TCP", **more: Any) -> Document:
    rule = {"action": "Allow", "destination": {"ports": list(listed), **more}}
    return rule if protocol is None else {**rule, "protocol": protocol}


def one(number: int, flows: str, *resources: Document, **profiles: tuple[str, ...]) -> Case:
    return Case(number, (Part(resources, flows, profiles),))


def _in(*rules: Document) -> Document:
    return gnp("p", ingress=list(rules))


API, DEV = "app=='api'", "env=='dev'"
_SEC = tier("sec", 100)
_DNT = {"doNotTrack": True, "applyOnForward": True}
_NETS = {"action": "Allow", "source": {"nets": ["2001:db8:c::/48"]}}
_NOT_NETS = {"action": "Allow", "source": {"notNets": ["2001:db8::/32"]}}
_SOURCE_PORT = {
    "action": "Allow", "protocol": "TCP", "source": {"selector": API, "ports": [9090]},
    "destination": {"ports": ["metrics"]}}


def _icmp(kind: int, code: int | None = None, key: str = "icmp", protocol: str = "ICMP") -> Document:
    what = {"type": kind} if code is None else {"type": kind, "code": code}
    return {"action": "Allow", "protocol": protocol, key: what}


LISTED = (
    one(1, "+E>W +W>E"),
    one(2, "-E>W -W>E -W>A", W=()),
    one(3, "-E>W -W>E", W=("ghost", "p-open")),
    one(4, "+A>W -D>W -E>W +W>E", _in(source(API))),
    one(5, "-A>W +W>A", gnp("p")),
    one(6, "+W>D -W>A +A>W", gnp("p", egress=[towards("app=='db'")])),
    one(7, "+A>W -W>A", gnp("p", types=["Ingress", "Egress"], ingress=[ALLOW])),
    one(8, "+W>E", gnp("p", types=["Ingress"], ingress=[ALLOW], egress=[DENY])),
    one(9, "-E>B -E>W +E>X", gnp("p", "env != 'dev'")),
    one(10, "+X>W +B>W +C>W -A>W -E>W", _in(source("env not in {'prod'}"))),
    one(11, "+A>W +D>W -X>W", _in(source("app in {'api','db'}"))),
    one(12, "+B>W -A>W -E>W", _in(source("!has(env)"))),
    one(13, "+B>W -A>W +E>W", _in({"action": "Allow", "source": {"notSelector": "has(env)"}})),
    one(14, "+D>W -A>W", _in(source("role starts with 'primary' && role ends with '-eu' && role contains 'ary-e'"))),
    one(15, "+A>W -D>W", _in(source("app=='api' || app=='db' && env=='dev'"))),
    one(16, "+A>W -D>W", _in(source("(app=='api' || app=='db') && !(role ends with '-eu')"))),
    one(17, "+A>W +C>W -E>W", _in(source("all()"))),
    one(18, "+E>W", _in(ALLOW)),
    one(19, "+A>W -X>W -D>W", _in({"action": "Allow", "source": {
        "nets": ["10.65.0.0/24"], "notNets": ["10.65.0.40/32"]}})),
    one(20, "+E>W:tcp/80 +E>W:tcp/8500 +E>W:tcp/9000 -E>W:tcp/8080 -E>W:tcp/9001 -E>W:udp/80",
        _in(ports(80, "8000:9000", notPorts=[8080]))),
    one(21, "+E>W:udp/53 -E>W:tcp/53", _in(ports(53, protocol=17))),
    one(22, "+E>W:tcp/53 +E>W:sctp/5000 +E>W:icmp/8 -E>W:udp/53", _in({"action": "Allow", "notProtocol": "UDP"})),
    one(23, "+E>W:sctp/5000 -E>W:sctp/5001 +E>W:udplite/77 -E>W:udp/77",
        _in(ports(5000, protocol="SCTP"), {"action": "Allow", "protocol": "UDPLite"})),
    one(24, "+E>W:tcp/8080 -E>W:tcp/9090 +E>A:tcp/9090 -E>A:tcp/8080 -E>B:tcp/8080",
        gnp("p", "all()", ingress=[ports("http")])),
    one(25, "+E>A:udp/5353 -E>A:tcp/5353", gnp("p", API, ingress=[ports("dns", protocol=None)])),
    one(26, "-E>A:udp/9090 -E>A:tcp/9090", gnp("p", API, ingress=[ports("http", protocol="UDP")])),
    one(27, "+X>W:tcp/8080 +X>W:tcp/4000 -X>A:tcp/9090 -X>A:tcp/4000 -X>E:tcp/4000",
        gnp("p", DEV, egress=[ports("http", 4000, selector="app=='web'")])),
    one(28, "-X>W:tcp/8080 +X>W:tcp/9090 -X>A:tcp/9090 +X>E:tcp/8080",
        gnp("p", DEV, egress=[{"action": "Allow", "protocol": "TCP", "destination": {"notPorts": ["http"]}}])),
    one(29, "+X>W:tcp/8080 -X>E:tcp/8080", gnp("p", DEV, egress=[ports("http")])),
    one(30, "+E>W:icmp/8/0 +E>W:icmp/3/4 -E>W:icmp/3/1 -E>W:icmp/13/0 6-E>W:icmp6/128",
        _in(_icmp(8), _icmp(3, 4))),
    one(31, "+E>W:icmp/3/1 +E>W:icmp/8/4 -E>W:icmp/3/4 -E>W:tcp/80", _in(_icmp(3, 4, "notICMP"))),
    one(32, "6+E>W:icmp6/128 -E>W:icmp/8", _in(_icmp(128, protocol="ICMPv6"))),
    one(33, "6+E>W -E>W", _in({**ports(80), "ipVersion": 6})),
    one(34, "6+C>W 6-E>W -E>W", _in(_NETS, _NOT_NETS)),
    one(35, "+A>W", gnp("g1", order=100, ingress=[source(API, "Deny")]), gnp("g2", order=10, ingress=[source(API)])),
    one(36, "+A>W -D>W", gnp("g1", ingress=[DENY]), gnp("g2", order=5000, ingress=[source(API)])),
    one(37, "+A>W", gnp("pol", order=5, ingress=[DENY]), gnp("pol-a", order=5, ingress=[ALLOW])),
    one(38, "+A>W -X>W -D>W", _SEC, gnp("s", tier="sec", ingress=[source(API, "Pass"), source(DEV, "Deny")]),
        _in(ALLOW)),
    one(39, "-X>W +A>W +E>W", tier("sec", 100, "Pass"), gnp("s", tier="sec", ingress=[source(DEV, "Deny")]),
        _in(ALLOW)),
    one(40, "+A>W -D>W", _in(source(API, "Pass"))),
    Case(41, (
        Part((_SEC, gnp("s1", tier="sec", order=1, ingress=[source(API, "Pass")]),
              gnp("s2", tier="sec", order=2, ingress=[DENY])), "+A>W -D>W"),
        Part((_SEC, gnp("s1", tier="sec", ingress=[source(API)]), _in(DENY)), "+A>W"))),
    one(42, "+A>W -A>D", _SEC, gnp("s", "app=='db'", tier="sec")),
    one(43, "+A>W +W>A", _SEC, gnp("s", tier="sec", egress=[PASS]), _in(ALLOW)),
    Case(44, (Part((_in({"action": "Log"}, source(API)),), "+A>W -D>W"),
              Part((_in(source(API, "Log")),), "-A>W")), played="test_log_lines"),
    one(45, "-W>A +X>A -W>D", gnp("w", egress=[towards("app=='db'")]), gnp("a", API, ingress=[ALLOW]),
        gnp("x", DEV, egress=[ALLOW]), gnp("d", "app=='db'")),
    one(46, "-E>B +E>W", gnp("p", "env=='staging'"), B=("p-net1", "p-open"), W=("p-net1", "p-open")),
    one(47, "+B>X -A>X +X>E", B=("p-net1",), X=("p-net1",)),
    Case(48, (Part((), "-A>W +D>W", {"W": ("p-noapi", "p-open")}), Part((), "+A>W", {"W": ("p-pass", "p-open")}))),
    one(49, "+L>W -C>W", np("p", ingress=[source("has(net)")])),
    one(50, "-L>W +C>W", np("p", ingress=[{"action": "Allow", "source": {
        "selector": "has(net)", "namespaceSelector": "global()"}}])),
    Case(51, (Part((np("p", ingress=[{"action": "Allow", "source": {"notSelector": API}}]),), "+D>W -A>W -E>W"),
              Part((_in({"action": "Allow", "source": {"notSelector": API}}),), "+D>W -A>W +E>W"))),
    one(52, "+E>W", np("p", "other")),
    one(53, "+E>W", {"kind": "StagedGlobalNetworkPolicy", "metadata": {"name": "p"}, "spec": {
        "selector": ON_W, "types": ["Ingress"], "ingress": [DENY]}}),
    one(54, "+E>W", gnp("p", ingress=[DENY], **_DNT)),
    one(55, "+E>W 6-E>W", _in({"action": "Allow", "source": {"nets": ["0.0.0.0/0"]}})),
    one(56, "+A@9090>W:tcp/9100 -A@1>W:tcp/9100 -A@9090>W:tcp/8080", _in(_SOURCE_PORT)),
    one(57, "-A>W +D>W", _in(PASS), tier("late", 10_000_000, "Pass"),
        gnp("l", tier="late", ingress=[source(API, "Deny")])),
    Case(58, (Part((gnp("p"),), "-A>W"),), played="test_host_reaches_its_own_isolated_container"),
    Case(59, played="test_container_to_its_host"),
    Case(60, played="test_host_endpoints"),
    Case(61, played="test_host_endpoints"),
    Case(62, played="test_policy_before_translation"),
    one(63, "-W>E:udp/4789 -W>E:ip/4 +W>E:udp/4788", gnp("p", egress=[ALLOW])),
    Case(64, played="test_spoofed_addresses"),
    Case(65, played="test_open_connection", differs="an open connection that policy forbids is cut, and so ends"),
    Case(66, played="test_unknown_interface"),
    Case(67, played="test_neighbour_discovery_with_the_host"),
    Case(68, played="test_policy_without_types"),
)
CASES = {case.number: case for case in LISTED}
