"""Published ports in the compiled rules: maps, who may come that way, what is there without any."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from calico_plugin.agent.cutting import Judge
from calico_plugin.dataplane.conntrack import Connection
from calico_plugin.dataplane.netlink import Message
from calico_plugin.model.desired import Ruleset, Verdict
from calico_plugin.policy import PolicyEngine, PolicyOptions, explain
from calico_plugin.policy.explain import Flow
from tests.unit.policy.worlds import endpoint, policy, typed

NET = {"kind": "Profile", "metadata": {"name": "net"}, "spec": {
    "labelsToApply": {"net": ""}, "ingress": [{"action": "Allow", "source": {"selector": "has(net)"}}],
    "egress": [{"action": "Allow"}]}}
BOTH = ["10.65.0.10/32", "fd65::10/128"]
HTTP = {"protocol": "TCP", "port": 80, "hostPort": 8080}
CLIENT = Flow("203.0.113.7", "10.65.0.10", 6, 40000, 80, translated=True)


def web(*ports: dict[str, Any], name: str = "web", networks: list[str] | None = None) -> dict[str, Any]:
    spec = {"profiles": ["net"], "ipNetworks": networks or BOTH, "ports": list(ports)}
    return endpoint(name, "10.65.0.10", {"app": "web"}, **spec)


def engine(*documents: dict[str, Any], options: PolicyOptions = PolicyOptions()) -> PolicyEngine:
    made = PolicyEngine("n1", options)
    tell(made, *documents)
    return made


def tell(made: PolicyEngine, *documents: dict[str, Any]) -> Ruleset:
    for document in documents:
        key, value = typed(document)
        made.on_update(key, None, value)
    return made.compile()


def allows(rules: Ruleset, flow: Flow) -> bool:
    found = explain.ingress(rules, "caliweb", flow)
    assert found is not None
    return found.verdict is Verdict.ACCEPT


def test_maps() -> None:
    """By address where one is named, by port alone where none is; of the IP versions that the container has."""
    rules = engine(NET, web(HTTP, {**HTTP, "hostPort": 81, "hostIP": "127.0.0.1"}, {
        "protocol": "UDP", "port": 53, "hostPort": 53, "hostIP": "fd31::1"})).compile()
    assert {name: dict(ports.elements) for name, ports in rules.ports.items()} == {
        "ports4": {"6 . 8080": "10.65.0.10 . 80"},
        "ports6": {"6 . 8080": "fd65::10 . 80"},
        "ports-at4": {"127.0.0.1 . 6 . 81": "10.65.0.10 . 80"},
        "ports-at6": {"fd31::1 . 17 . 53": "fd65::10 . 53"},
    }


def test_nothing_published_nothing_there() -> None:
    """The table is what it was, whatever came and went."""
    made = engine(NET, web())
    before = made.compile()
    assert not before.ports and not any(name.startswith(("ports", "published")) for name in before.chains)
    tell(made, web(HTTP))
    assert tell(made, web()) == before


def test_profile_lets_published_ports_in_and_nothing_else() -> None:
    """What was translated to a published port; not the container's own address, another port or protocol."""
    rules = engine(NET, web(HTTP)).compile()
    assert allows(rules, CLIENT)
    for other in ({"translated": False}, {"destination_port": 81}, {"protocol": 17}):
        assert not allows(rules, replace(CLIENT, **other)), other
    assert not allows(engine(NET, web()).compile(), CLIENT)


@pytest.mark.parametrize("ingress", [None, [{"action": "Deny", "source": {"nets": ["203.0.113.0/24"]}}]])
def test_the_network_s_profile_comes_first(ingress: list[Any] | None) -> None:
    """What it denies is denied; one that is missing denies everything."""
    profile = {**NET, "spec": {**NET["spec"], "ingress": ingress}} if ingress else None  # type: ignore[dict-item]
    rules = engine(*[profile] if profile else [], web(HTTP)).compile()
    assert not allows(rules, CLIENT)
    assert allows(rules, replace(CLIENT, source="198.51.100.7")) is bool(ingress)


def test_port_of_the_host_s_loopback_is_for_nobody_else() -> None:
    """The host itself needs no permission, so none is given."""
    rules = engine(NET, web({**HTTP, "hostIP": "127.0.0.1"})).compile()
    assert not allows(rules, CLIENT) and rules.ports["ports-at4"].elements


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"action": "Allow", "source": {"nets": ["203.0.113.0/24"]}}, True),
        ({"action": "Allow", "protocol": "TCP", "destination": {"ports": [80]}}, True),
        ({"action": "Allow", "protocol": "TCP", "destination": {"ports": [8080]}}, False),
        ({"action": "Allow", "source": {"nets": ["198.51.100.0/24"]}}, False),
        ({"action": "Pass"}, True),
    ],
)
def test_policy_decides_where_one_selects(rule: dict[str, Any], expected: bool) -> None:
    """By the client's address and the container's port; what it passes on meets the profiles."""
    rules = engine(NET, web(HTTP), policy("p", selector="app=='web'", ingress=[rule])).compile()
    assert allows(rules, CLIENT) is expected


def test_two_claim_one_port() -> None:
    """One has it; the other gets it when that goes, and is said to have it only then."""
    made = engine(NET, web(HTTP), web(HTTP, name="zzz", networks=["10.65.0.20/32"]))
    rules = made.compile()
    assert rules.ports["ports4"].elements == {"6 . 8080": "10.65.0.10 . 80"} and set(made.published()) == {"caliweb"}
    rules = tell(made, web(networks=BOTH))
    assert rules.ports["ports4"].elements == {"6 . 8080": "10.65.0.20 . 80"} and set(made.published()) == {"calizzz"}


def test_open_connections() -> None:
    """Those by the host's port stay as long as it is published."""
    connection = Connection(
        source="203.0.113.7", destination="10.65.0.10", protocol=6, source_port=4000, destination_port=80,
        icmp_type=None, icmp_code=None, expected=False, translated=True, deletion=Message(0, 0, b"", ""))
    made = engine(NET, web(HTTP))
    here = replace(connection, source="127.0.0.2", translated=False)
    assert not Judge(made.compile(), frozenset()).forbids(here), "the host's own"
    assert not Judge(made.compile(), frozenset()).forbids(connection)
    assert Judge(tell(made, web()), frozenset()).forbids(connection)
