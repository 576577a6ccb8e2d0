"""What an operator may set about policy on a node: FelixConfiguration, the node's own over the cluster's (policy 4)."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from ipaddress import ip_network
from typing import Any, Mapping


@dataclass(frozen=True, slots=True)
class Failsafe:
    """A port that stays reachable whatever policy a host endpoint has; `net` limits it to the other end's address."""

    protocol: int
    port: int
    net: str = ""


def _failsafes(text: str) -> tuple[Failsafe, ...]:
    numbers = {"tcp": 6, "udp": 17}
    pairs = (entry.split(":") for entry in text.split())
    return tuple(Failsafe(numbers[protocol], int(port)) for protocol, port in pairs)


_INBOUND = _failsafes("tcp:22 udp:68 tcp:179 tcp:2379 tcp:2380 tcp:5473 tcp:6443 tcp:6666 tcp:6667")
_OUTBOUND = _failsafes("udp:53 udp:67 tcp:179 tcp:2379 tcp:2380 tcp:5473 tcp:6443 tcp:6666 tcp:6667")


@dataclass(frozen=True, slots=True)
class PolicyOptions:
    """Defaults are Felix's. Values that come from FelixConfiguration win over those given here.

    `endpoint_to_host` is what follows for packets from a workload to this host that its egress policy allowed:
    `drop`, `return` (the host's own INPUT rules decide) or `accept` (in our table the same as `return`: an accept of
    nftables binds no other table). `block_size`: about how many policies stand behind one guard (see `blocks`).
    `log_group`: nflog group that is told of packets that meet a Log rule, and with `flow_log` of each connection that a
    rule allows or denies; 0: none.
    """

    interface_prefix: str = "cali"
    endpoint_to_host: str = "drop"
    allow_vxlan_from_workloads: bool = False
    allow_ipip_from_workloads: bool = False
    vxlan_port: int = 4789
    disable_conntrack_invalid_check: bool = False
    workload_source_spoofing: bool = False
    failsafe_inbound: tuple[Failsafe, ...] = _INBOUND
    failsafe_outbound: tuple[Failsafe, ...] = _OUTBOUND
    log_prefix: str = "calico-packet"
    block_size: int = 24
    log_group: int = 0
    flow_log: bool = False


_FELIX = {
    "defaultEndpointToHostAction": "endpoint_to_host",
    "allowVXLANPacketsFromWorkloads": "allow_vxlan_from_workloads",
    "allowIPIPPacketsFromWorkloads": "allow_ipip_from_workloads",
    "vxlanPort": "vxlan_port",
    "disableConntrackInvalidCheck": "disable_conntrack_invalid_check",
    "workloadSourceSpoofing": "workload_source_spoofing",
    "failsafeInboundHostPorts": "failsafe_inbound",
    "failsafeOutboundHostPorts": "failsafe_outbound",
    "logPrefix": "log_prefix",
    "flowLogsLocalReporter": "flow_log",
}


def merged(base: PolicyOptions, *specs: Mapping[str, Any]) -> tuple[PolicyOptions, tuple[str, ...]]:
    """`base` with members of FelixConfiguration specs laid over it, later ones winning, and what was not understood.

    A value that is not understood keeps the safer default.
    """
    changes: dict[str, Any] = {}
    problems: list[str] = []
    for spec in specs:
        for name, attribute in _FELIX.items():
            if spec.get(name) is None:
                continue
            try:
                changes[attribute] = _READ[attribute](spec[name])
            except ValueError as error:
                problems.append(f"spec.{name} = {spec[name]!r}: {error}")
    return replace(base, **changes), tuple(problems)


def _to_host(value: Any) -> str:
    text = str(value).lower()
    if text not in ("drop", "return", "accept"):
        raise ValueError("use Drop, Return or Accept")
    return text


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("use true or false")
    return value


def _port(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 65536:
        raise ValueError("a port is 1 to 65535")
    return value


def _spoofing(value: Any) -> bool:
    text = str(value).lower()
    if text not in ("disabled", "any"):
        raise ValueError("use Disabled or Any")
    return text == "any"


def _switch(value: Any) -> bool:
    text = str(value).lower()
    if text not in ("enabled", "disabled"):
        raise ValueError("use Enabled or Disabled")
    return text == "enabled"


def _prefix(value: Any) -> str:
    text = str(value)
    if not text.isprintable() or '"' in text or "\\" in text or len(text) > 80:
        raise ValueError("a log prefix has at most 80 printable characters without quotes")
    return text


def _ports(value: Any) -> tuple[Failsafe, ...]:
    """A list of `{protocol, port, net}`; an empty list turns failsafes off."""
    if not isinstance(value, list):
        raise ValueError("use a list of {protocol, port, net}")
    return tuple(map(_failsafe, value))


def _failsafe(entry: Any) -> Failsafe:
    if not isinstance(entry, Mapping):
        raise ValueError("use a list of {protocol, port, net}")
    protocol = {"tcp": 6, "udp": 17, "sctp": 132}.get(str(entry.get("protocol", "tcp")).lower())
    if protocol is None:
        raise ValueError("a failsafe's protocol is TCP, UDP or SCTP")
    net = str(ip_network(entry["net"], strict=False)) if entry.get("net") else ""
    return Failsafe(protocol, _port(entry.get("port")), net)


_READ = {
    "failsafe_inbound": _ports,
    "failsafe_outbound": _ports,
    "endpoint_to_host": _to_host,
    "allow_vxlan_from_workloads": _flag,
    "allow_ipip_from_workloads": _flag,
    "vxlan_port": _port,
    "disable_conntrack_invalid_check": _flag,
    "workload_source_spoofing": _spoofing,
    "log_prefix": _prefix,
    "flow_log": _switch,
}
assert set(_READ) <= {item.name for item in fields(PolicyOptions)}
