"""Which address a node gets, and what happens when another node has it."""

from __future__ import annotations

import pytest

from calico_plugin.config import NodeSettings
from calico_plugin.errors import Conflict, InvalidInput
from calico_plugin.model.autodetect import Method, parse
from calico_plugin.model.resources import Metadata, Node
from calico_plugin.model.resources.node import NodeBGPSpec, NodeSpec
from calico_plugin.node.addresses import Addresses, View, check_conflicts, resolve
from calico_plugin.node.detect import detect
from calico_plugin.node.interfaces import Interface


def link(index: int, name: str, *addresses: str, up: bool = True, bridge: bool = False) -> Interface:
    return Interface(index, name, up, bridge, addresses)


LINKS = (
    link(1, "lo", "127.0.0.1/8", "::1/128"),
    link(2, "eth0", "10.0.0.5/24", "fe80::1/64", "fd00::5/64"),
    link(3, "docker0", "172.17.0.1/16", bridge=True),
    link(4, "br-1234", "172.18.0.1/16", bridge=True),
    link(5, "slow0", "10.1.0.5/24", up=False),
    link(6, "lxdbr0", "10.9.0.1/24", bridge=True),
)


def unreachable(destination: str, version: int) -> str | None:
    return None


def node(name: str, ipv4: str) -> Node:
    return Node(metadata=Metadata(name=name), spec=NodeSpec(bgp=NodeBGPSpec(ipv4_address=ipv4)))


def test_first_found_walks_from_the_highest_index() -> None:
    """The last link that is not excluded wins, as in the original; every other candidate has its reason."""
    found = detect(Method(), 4, LINKS, unreachable)
    assert (found.address, found.interface) == ("10.9.0.1/24", "lxdbr0")
    assert any("docker0: links of this name" in reason for reason in found.rejected)


def test_a_bridge_that_other_nodes_have_too_is_passed_over() -> None:
    """lxdbr0 with the same address on every host is no way to this one."""
    found = detect(Method(), 4, LINKS, unreachable, {"10.9.0.1": "other"})
    assert found.address == "10.0.0.5/24"
    assert "10.9.0.1/24 on bridge lxdbr0: node other has it too" in found.rejected
    assert "10.1.0.5/24 on slow0: the link is down" in found.rejected


@pytest.mark.parametrize(
    ("method", "version", "address"),
    [
        ("interface=eth.*", 4, "10.0.0.5/24"),
        ("interface=docker0", 4, "172.17.0.1/16"),
        ("interface=wlan", 4, ""),
        ("skip-interface=lxd", 4, "10.0.0.5/24"),
        ("cidr=172.18.0.0/16,10.0.0.0/24", 4, "172.18.0.1/16"),
        ("first-found", 6, "fd00::5/64"),
        ("can-reach=192.0.2.1", 4, "10.0.0.5/24"),
    ],
)
def test_methods(method: str, version: int, address: str) -> None:
    """Each method finds its address with the interface's prefix length."""
    assert detect(parse(method), version, LINKS, lambda destination, version: "10.0.0.5").address == address


def resolved(settings: NodeSettings, stored: Node | None = None, others: tuple[Node, ...] = ()) -> Addresses:
    return resolve(settings, stored, View(LINKS, unreachable, others))


def test_a_given_address_takes_the_prefix_of_its_interface() -> None:
    """A bare address is completed; one that no interface has becomes /32 with a warning."""
    assert resolved(NodeSettings(ip="10.0.0.5")).ipv4 == "10.0.0.5/24"
    foreign = resolved(NodeSettings(ip="192.0.2.7"))
    assert foreign.ipv4 == "192.0.2.7/32"
    assert ("warning", "Unable to confirm IPv4 address 192.0.2.7 is assigned to this host") in foreign.notes


def test_what_is_stored_stays_unless_detection_is_asked_for() -> None:
    """Empty keeps the stored address, `autodetect` overwrites it, `none` never looks; IPv6 is only found on request."""
    stored = node("a", "10.0.0.5/24")
    assert resolved(NodeSettings(), stored).ipv4 == "10.0.0.5/24"
    assert resolved(NodeSettings(ip="autodetect"), stored).ipv4 == "10.9.0.1/24"
    assert resolved(NodeSettings(ip="none")).ipv4 == ""
    assert resolved(NodeSettings()).ipv6 == ""
    assert resolved(NodeSettings(ip6="autodetect")).ipv6 == "fd00::5/64"


def test_nothing_found_tells_what_was_seen_and_what_to_do() -> None:
    """The error lists the candidates with their reasons and three ways out."""
    with pytest.raises(InvalidInput) as caught:
        resolve(NodeSettings(), None, View(LINKS[2:3], unreachable, ()))
    for part in ("172.17.0.1/16 on docker0", "IP=ADDRESS", "interface=", "cidr=", "can-reach="):
        assert part in str(caught.value)


def test_an_address_of_another_node_is_refused_with_its_name() -> None:
    """The owner is named, the command that removes a stale one, and the interface; prefixes do not matter."""
    others = (node("old", "10.0.0.5/32"), node("b", "10.0.0.9/24"))
    view = View(LINKS, unreachable, others)
    with pytest.raises(Conflict) as caught:
        check_conflicts("new", Addresses("10.0.0.5/24", ""), None, view)
    text = str(caught.value)
    assert text.startswith("Calico node 'old' is already using the IPv4 address 10.0.0.5")
    assert "calicoctl delete node old" in text and "interface eth0" in text and "'b'" not in text


def test_own_change_of_address_is_a_warning() -> None:
    """The same name with a new address may be two hosts: told, not refused."""
    view = View(LINKS, unreachable, ())
    warnings = check_conflicts("a", Addresses("10.0.0.5/24", ""), node("a", "10.0.0.6/24"), view)
    assert len(warnings) == 1 and "10.0.0.6" in warnings[0] and "10.0.0.5" in warnings[0]
