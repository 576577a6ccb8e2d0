"""FelixConfiguration and FELIX_ variables: what is honoured, what is refused by name, and which wins."""

from __future__ import annotations

from typing import Any

import pytest

from calico_plugin.model.desired import Rate
from calico_plugin.model.keys import ResourceKey
from calico_plugin.model.resources import FelixConfiguration, Metadata
from calico_plugin.policy import PolicyEngine
from calico_plugin.policy.felix import from_environment, merged
from calico_plugin.policy.options import Failsafe, PolicyOptions, Translation


def read(**spec: Any) -> PolicyOptions:
    options, problems = merged(PolicyOptions(), spec)
    assert problems == ()
    return options


@pytest.mark.parametrize(("name", "value", "expected"), [
    ("defaultEndpointToHostAction", "Accept", {"endpoint_to_host": "accept"}),
    ("iptablesFilterDenyAction", "Reject", {"reject": True}),
    ("nftablesFilterDenyAction", "REJECT", {"reject": True}),
    ("workloadSourceSpoofing", "Any", {"workload_source_spoofing": True}),
    ("logPrefix", "%t %n", {"log_prefix": "%t %n"}),
    ("logActionRateLimit", "10/minute", {"log_rate": Rate(10, 60, 5)}),
    ("natOutgoingAddress", "198.51.100.1", {"translation": Translation(address="198.51.100.1")}),
    ("natPortRange", "32768:65535", {"translation": Translation(ports="32768-65535")}),
    ("natPortRange", 4000, {"translation": Translation(ports="4000-4000")}),
    ("natPortRange", "0", {}),
    ("natOutgoingExclusions", "IPPoolsAndHostIPs", {"translation": Translation(spare_hosts=True)}),
    ("iptablesNATOutgoingInterfaceFilter", "eth+", {"translation": Translation(interface="eth*")}),
    ("failsafeInboundHostPorts", [{"port": 22, "net": "10.0.0.1/8"}], {
        "failsafe_inbound": (Failsafe(6, 22, "10.0.0.0/8"),)}),
    ("failsafeOutboundHostPorts", [], {"failsafe_outbound": ()}),
])
def test_setting_is_in_force(name: str, value: Any, expected: dict[str, Any]) -> None:
    """Each by its name in FelixConfiguration."""
    assert read(**{name: value}) == PolicyOptions(**expected)


def test_nftables_deny_action_wins_over_the_one_of_iptables_and_a_burst_belongs_to_its_rate() -> None:
    """Whatever the order in which they are stored."""
    assert not read(nftablesFilterDenyAction="Drop", iptablesFilterDenyAction="Reject").reject
    assert read(logActionRateLimitBurst=9, logActionRateLimit="1/day").log_rate == Rate(1, 86400, 9)
    assert read(logActionRateLimitBurst=9).log_rate is None


@pytest.mark.parametrize(("name", "value", "right"), [
    ("defaultEndpointToHostAction", "Reject", "Drop or Return or Accept"),
    ("nftablesFilterDenyAction", "Accept", "Drop or Reject"),
    ("natOutgoingAddress", "2001:db8::1", "IPv4"),
    ("natPortRange", "9:3", "32768:65535"),
    ("natPortRange", "70000", "32768:65535"),
    ("natOutgoingExclusions", "None", "IPPoolsAndHostIPs"),
    ("iptablesNATOutgoingInterfaceFilter", 'eth0" accept', "interface"),
    ("logActionRateLimit", "ten/second", "10/second"),
    ("failsafeInboundHostPorts", "tcp:22", "list"),
    ("failsafeInboundHostPorts", [{"port": 22, "net": "10.0.0.0/33"}], "10.0.0.0/33"),
    ("vxlanPort", True, "1 to 65535"),
])
def test_value_that_is_not_understood_keeps_the_default_and_is_named(name: str, value: Any, right: str) -> None:
    """Field, value, and what would be right."""
    options, problems = merged(PolicyOptions(), {name: value})
    assert options == PolicyOptions()
    assert len(problems) == 1 and f"spec.{name} = {value!r}" in problems[0] and right in problems[0]


@pytest.mark.parametrize(("name", "harmless", "wanted"), [
    ("interfacePrefix", "cali", "tap"), ("bpfEnabled", False, True), ("wireguardEnabled", False, True),
    ("prometheusMetricsPort", 9091, 9500), ("ipv6Support", True, False), ("logSeverityScreen", "Info", "Debug"),
])
def test_what_is_not_done_here_is_named(name: str, harmless: Any, wanted: Any) -> None:
    """A setting without effect must not look as if it had one; a value that asks for nothing is no problem."""
    assert merged(PolicyOptions(), {name: harmless}) == (PolicyOptions(), ())
    assert f"spec.{name} = {wanted!r} has no effect" in merged(PolicyOptions(), {name: wanted})[1][0]


def test_environment_is_read_as_felix_reads_it() -> None:
    """Any setting by its name in capitals, flags as words, failsafe ports as a list of protocol:net:port."""
    spec = from_environment({
        "FELIX_DEFAULTENDPOINTTOHOSTACTION": "ACCEPT", "Felix_VxlanPort": "4790", "FELIX_LOGPREFIX": "",
        "FELIX_ALLOWVXLANPACKETSFROMWORKLOADS": "true", "FELIX_NATPORTRANGE": "32768:65535", "PATH": "/bin",
        "FELIX_FAILSAFEINBOUNDHOSTPORTS": "tcp:22,udp:10.0.0.0/8:68,9000,tcp:[fd00::/8]:80",
        "FELIX_FAILSAFEOUTBOUNDHOSTPORTS": "none",
    })
    assert read(**spec) == PolicyOptions(
        endpoint_to_host="accept", vxlan_port=4790, allow_vxlan_from_workloads=True,
        translation=Translation(ports="32768-65535"), failsafe_outbound=(),
        failsafe_inbound=(
            Failsafe(6, 22), Failsafe(17, 68, "10.0.0.0/8"), Failsafe(6, 9000), Failsafe(6, 80, "fd00::/8")))


@pytest.mark.parametrize(("name", "value"), [
    ("FELIX_FAILSAFEINBOUNDHOSTPORTS", "tcp:ssh"), ("FELIX_ALLOWVXLANPACKETSFROMWORKLOADS", "perhaps"),
    ("FELIX_VXLANPORT", "many"), ("FELIX_FAILSAFEINBOUNDHOSTPORTS", "tcp:1.2.3.4/40:22"),
])
def test_bad_variable_is_told_like_a_bad_value(name: str, value: str) -> None:
    """With the field's name."""
    options, problems = merged(PolicyOptions(), from_environment({name: value}))
    assert options == PolicyOptions() and len(problems) == 1 and problems[0].lower().startswith(
        f"spec.{name.removeprefix('FELIX_').lower()}")


def test_environment_wins_over_what_is_stored() -> None:
    """From the start, whatever FelixConfigurations come and go."""
    engine = PolicyEngine("n1", environment={"defaultEndpointToHostAction": "ACCEPT"})
    assert engine.options().endpoint_to_host == "accept"
    for name in ("default", "node.n1"):
        engine.on_update(*_told(name, {"defaultEndpointToHostAction": "Drop", "logPrefix": name}))
    assert (engine.options().endpoint_to_host, engine.options().log_prefix) == ("accept", "node.n1")
    engine.on_update(ResourceKey("FelixConfiguration", "node.n1"), None, None)
    assert (engine.options().endpoint_to_host, engine.options().log_prefix) == ("accept", "default")


def _told(name: str, spec: dict[str, Any]) -> tuple[ResourceKey, None, FelixConfiguration]:
    key = ResourceKey("FelixConfiguration", name)
    return key, None, FelixConfiguration(metadata=Metadata(name=name), spec=spec)
