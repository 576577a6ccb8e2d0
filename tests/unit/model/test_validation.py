"""Rules: each mistake that users make has a message with the path and what would be right (policy 3)."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any, Mapping

import msgspec
import pytest

from calico_plugin.errors import InvalidInput
from calico_plugin.model import defaults, schema, validation
from calico_plugin.model.resources import KINDS, IPPool, Metadata
from calico_plugin.model.resources.bgp import BGPPeer, BGPPeerSpec
from calico_plugin.model.resources.ipam import IPPoolSpec
from calico_plugin.model.validation import against
from calico_plugin.policy.selector import parse


def problems(kind: str, spec: Mapping[str, Any], **metadata: Any) -> list[str]:
    """Everything that is said about an object."""
    document = {"kind": kind, "metadata": {"name": "n", **metadata}, "spec": dict(spec)}
    shaped, found = schema.shape(document, kind)
    if not found:
        found = validation.problems(defaults.fill(msgspec.convert(shaped, KINDS[kind].type)), parse)
    return [str(problem) for problem in found]


def rule(**members: Any) -> dict[str, Any]:
    return {"ingress": [{"action": "Allow", **members}]}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"selector": "role == "}, "spec.selector = 'role == ': at character"),
        ({"selector": "global()"}, "global() may only stand in a rule's namespaceSelector"),
        (rule(source={"namespaceSelector": "global() && has(a)"}), "global() must be the whole namespaceSelector"),
        (
            {"ingress": [{"action": "allow"}]},
            "spec.ingress[0].action = 'allow': must be Allow, Deny, Log or Pass; did you mean Allow?",
        ),
        (
            {"types": ["Ingress", "Ingress"]},
            "spec.types = ['Ingress', 'Ingress']: each of Ingress, Egress at most once",
        ),
        (rule(protocol="tcp"), "spec.ingress[0].protocol = 'tcp': use TCP, UDP"),
        (rule(destination={"ports": [80]}), "a rule with numeric ports needs protocol TCP, UDP or SCTP"),
        (rule(protocol="ICMP", destination={"ports": ["http"]}), "protocol ICMP has no ports"),
        (rule(protocol="TCP", destination={"ports": ["90:80"]}), "port range 90:80 is reversed"),
        (rule(source={"nets": ["10.0.0.1"]}), "spec.ingress[0].source.nets[0] = '10.0.0.1': write 10.0.0.1/32"),
        (rule(source={"nets": ["10.0.0.1/8"]}), "has host bits set; write 10.0.0.0/8"),
        (
            rule(source={"nets": ["10.0.0.0/8", "fd00::/8"]}),
            "spec.ingress[0].source.nets[1] = 'fd00::/8': one rule, one IP family",
        ),
        (rule(ipVersion=6, source={"nets": ["10.0.0.0/8"]}), "ipVersion 6 with an IPv4 net"),
        (rule(source={"notNets": ["::/0"]}), "excluding every address can never match"),
        (rule(icmp={"type": 8}), "needs protocol ICMP or ICMPv6"),
        (rule(protocol="ICMP", ipVersion=6), "ICMP is not for IPv6"),
        ({"preDNAT": True}, "preDNAT needs applyOnForward: true"),
        ({"preDNAT": True, "applyOnForward": True, "types": ["Egress"]}, "preDNAT is ingress-only"),
        (rule(http={"paths": [{"exact": "a"}]}), "a path starts with /"),
        (
            rule(source={"services": {"name": "a", "namespace": "b"}, "selector": "has(x)"}),
            "services cannot be combined",
        ),
        (rule(source={"nets": ["10.0.0.0/8"] * 257}), "too many entries (257, at most 256)"),
        ({"ingress": [{"action": "Allow"}] * 1025}, "too many entries (1025, at most 1024)"),
        ({"selector": "has(" + "a" * 1024 + ")"}, "at most 1024 characters"),
    ],
)
def test_policy_messages(spec: dict[str, Any], message: str) -> None:
    """What is wrong with a policy is said as the rules' list says it."""
    assert any(message in text for text in problems("GlobalNetworkPolicy", spec)), problems("GlobalNetworkPolicy", spec)


@pytest.mark.parametrize(
    ("name", "right"),
    [("web", True), ("a.web", True), ("knp.default.a.b", True), ("a.b.c", False), ("Web", False), ("w_b", False)],
)
def test_policy_names(name: str, right: bool) -> None:
    """At most one dot, but for the names of Kubernetes' and OpenStack's policies."""
    assert (problems("GlobalNetworkPolicy", {}, name=name) == []) == right


@pytest.mark.parametrize(
    ("kind", "spec", "message"),
    [
        ("Tier", {"defaultAction": "Allow"}, "spec.defaultAction = 'Allow': must be Deny or Pass"),
        ("GlobalNetworkSet", {"nets": ["10.0.0.0/8", "x"]}, "spec.nets[1] = 'x'"),
        ("HostEndpoint", {"node": "a"}, "give interfaceName or expectedIPs"),
        ("HostEndpoint", {"node": "a", "interfaceName": "abcdefghijklmnop"}, "1 to 15"),
        ("BGPPeer", {"node": "a", "nodeSelector": "all()"}, "give either node or nodeSelector"),
        ("BGPConfiguration", {"communities": [{"name": "c", "value": "1:70000"}]}, "spec.communities[0].value"),
        ("IPPool", {"cidr": "fd00::/64", "ipipMode": "Always"}, "IPIP carries IPv4 only"),
        ("IPPool", {"cidr": "10.0.0.0/30"}, "set spec.blockSize to 30"),
        ("Node", {"bgp": {}}, "must not be empty"),
        ("FelixConfiguration", {"logSeverityScren": "Info"}, "did you mean logSeverityScreen?"),
    ],
)
def test_messages_of_other_kinds(kind: str, spec: dict[str, Any], message: str) -> None:
    """Other kinds' most frequent mistakes."""
    assert any(message in text for text in problems(kind, spec)), problems(kind, spec)


def test_labels_and_annotations() -> None:
    """Names and values of labels are checked; annotations may hold any text up to 256 KiB."""
    (text,) = problems("Node", {}, labels={"a b": "x"})
    assert text.startswith('metadata.labels["a b"]')
    (text,) = problems("Node", {}, annotations={"a": "x" * (256 * 1024)})
    assert "262144 are allowed" in text
    assert problems("Node", {}, annotations={"Some.Key/Name_X": "any {text}"}) == []


def test_as_numbers_above_31_bits() -> None:
    """The original cannot write them, but private ones are good; the last of all is reserved (RFC 7300)."""
    assert problems("BGPPeer", {"peerIP": "10.0.0.1", "asNumber": 4200000000}) == []
    assert "RFC 7300" in problems("BGPPeer", {"peerIP": "10.0.0.1", "asNumber": 4294967295})[0]


def test_defaults_are_stable() -> None:
    """Filling in twice changes nothing, for every kind."""
    for kind in KINDS:
        once = defaults.fill(KINDS[kind].type(kind=kind, metadata=Metadata(name="n")))
        assert defaults.fill(once) == once


def _pool(name: str, cidr: str, **members: Any) -> IPPool:
    return IPPool(metadata=Metadata(name=name), spec=IPPoolSpec(cidr=cidr, **members))


def test_pools_do_not_overlap() -> None:
    """The other pool and its CIDR are named; neighbours and the other IP version are fine."""
    others = [_pool("a", "10.0.0.0/16"), _pool("six", "fd00::/64")]
    with pytest.raises(InvalidInput, match=r"IPPool\(b\) overlaps IPPool\(a\), which has 10.0.0.0/16"):
        against.new_pool(_pool("b", "10.0.128.0/24"), others, [])
    against.new_pool(_pool("b", "10.1.0.0/16"), others, [])
    with pytest.raises(InvalidInput, match="blockSize 29"):
        against.new_pool(_pool("b", "10.1.0.0/16"), others, [str(ip_network("10.1.7.64/29"))])


def test_what_a_pool_may_not_change() -> None:
    """CIDR and block size are for ever; another spelling of the CIDR is no change."""
    before = _pool("a", "fd00:0::/64", block_size=122)
    against.changed_pool(_pool("a", "fd00::/64"), before)
    with pytest.raises(InvalidInput, match="spec.cidr"):
        against.changed_pool(_pool("a", "fd01::/64"), before)
    with pytest.raises(InvalidInput, match="spec.blockSize"):
        against.changed_pool(_pool("a", "fd00::/64", block_size=123), before)


def test_things_that_must_exist() -> None:
    """Tier and filters."""
    with pytest.raises(InvalidInput, match='tier "sec" not found'):
        against.existing_tier("sec", False)
    with pytest.raises(InvalidInput, match=r"spec.filters\[1\]"):
        against.existing_filters(BGPPeer(spec=BGPPeerSpec(filters=("a", "b"))), {"a"})
    with pytest.raises(InvalidInput, match="built-in"):
        against.removable_tier("default", ())
    with pytest.raises(InvalidInput, match="in use"):
        against.removable_tier("sec", {"GlobalNetworkPolicy(a)"})
