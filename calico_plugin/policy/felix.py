"""FelixConfiguration and Felix's environment variables -> PolicyOptions; the node's own over the cluster's."""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import IPv4Address, ip_network
from typing import Any, Callable, Mapping

from calico_plugin.model.desired import Rate
from calico_plugin.policy.options import Failsafe, PolicyOptions

Change = Callable[[PolicyOptions, Any], PolicyOptions]
"""Options with a stored value laid over them. Raises ValueError."""


def merged(base: PolicyOptions, *specs: Mapping[str, Any]) -> tuple[PolicyOptions, tuple[str, ...]]:
    """`base` with members of FelixConfiguration specs laid over it, later ones winning, and what was not understood or
    is not done here.

    A value that is not understood keeps the safer default.
    """
    problems: list[str] = []
    for spec in specs:
        for name, change in _FELIX.items():
            if spec.get(name) is None:
                continue
            try:
                base = change(base, spec[name])
            except ValueError as error:
                problems.append(f"spec.{name} = {spec[name]!r}: {error}")
        problems += _not_done(spec)
    return base, tuple(dict.fromkeys(problems))


def from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """The members that variables `FELIX_<NAME>` say (any case); they win over what is stored, as with Felix."""
    known = {f"FELIX_{name.upper()}": name for name in _FELIX}
    found = {known[name.upper()]: text for name, text in environ.items() if text and name.upper() in known}
    return {name: _from_text(name, text) for name, text in found.items()}


def _from_text(name: str, text: str) -> Any:
    """Felix writes flags as words, and failsafe ports as `tcp:22,tcp:10.0.0.0/8:179` (`none`: no ports)."""
    if name in ("failsafeInboundHostPorts", "failsafeOutboundHostPorts"):
        entries = [] if text.strip().lower() == "none" else text.split(",")
        return [_failsafe_entry(entry.strip()) for entry in entries]
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if name in _FLAGS:
        return words.get(text.lower(), text)
    return int(text) if text.isdigit() else text


def _failsafe_entry(text: str) -> Mapping[str, Any]:
    """`port`, `protocol:port` or `protocol:net:port`; what is none of these is refused when it is read."""
    protocol, _, rest = text.rpartition(":")
    protocol, _, net = protocol.partition(":")
    port = int(rest) if rest.isdigit() else rest
    return {"protocol": protocol or "tcp", "port": port, **({"net": net.strip("[]")} if net else {})}


def _not_done(spec: Mapping[str, Any]) -> list[str]:
    """Settings with which somebody wants something that this agent does not do."""
    return [
        f"spec.{name} = {spec[name]!r} has no effect: {why}"
        for name, (why, harmless) in _NOT_DONE.items() if spec.get(name) is not None and spec[name] not in harmless
    ]


_ELSEWHERE = "it is a setting of each host, by the environment of calico-node: {}"
_NO_ENCRYPTION = "there is no WireGuard here"
_NO_BPF = "there is no eBPF data plane here"
# Name -> why, and the values with which nothing is asked for.
_NOT_DONE: dict[str, tuple[str, tuple[Any, ...]]] = {
    "interfacePrefix": ("workload interfaces are called cali…", ("cali",)),
    "ipv6Support": (_ELSEWHERE.format("FELIX_IPV6SUPPORT"), (True,)),
    "wireguardEnabled": (_NO_ENCRYPTION, (False,)),
    "wireguardEnabledV6": (_NO_ENCRYPTION, (False,)),
    "wireguardHostEncryptionEnabled": (_NO_ENCRYPTION, (False,)),
    "bpfEnabled": (_NO_BPF, (False,)),
    "floatingIPs": ("endpoints have no floating addresses here", ("Disabled",)),
    "externalNodesList": ("only the cluster's own nodes may send to tunnels", ([],)),
    "prometheusMetricsEnabled": (_ELSEWHERE.format("FELIX_PROMETHEUSMETRICSENABLED"), (True,)),
    "prometheusMetricsHost": (_ELSEWHERE.format("FELIX_PROMETHEUSMETRICSHOST"), ("",)),
    "prometheusMetricsPort": (_ELSEWHERE.format("FELIX_PROMETHEUSMETRICSPORT"), (9091,)),
    "prometheusMetricsCertFile": ("metrics are served without TLS", ("",)),
    "healthEnabled": (_ELSEWHERE.format("FELIX_HEALTHENABLED"), ()),
    "healthHost": (_ELSEWHERE.format("FELIX_HEALTHHOST"), ("localhost",)),
    "healthPort": (_ELSEWHERE.format("FELIX_HEALTHPORT"), (9099,)),
    "logSeverityScreen": (_ELSEWHERE.format("CALICO_LOG_LEVEL"), ("Info", "info", "INFO", "")),
    "endpointStatusPathPrefix": (_ELSEWHERE.format("CALICO_RUN_DIR"), ("/var/run/calico",)),
    "deviceRouteSourceAddress": ("routes to containers name no source", ("",)),
    "deviceRouteSourceAddressIPv6": ("routes to containers name no source", ("",)),
    "deviceRouteProtocol": ("routes to containers have protocol 80", (80,)),
    "nftablesFlowTableOffload": ("connections are not offloaded", ("", "Disabled")),
    "nftablesFilterAllowAction": ("what policy accepts always goes on to the host's other rules", ("Return", "return")),
    "iptablesFilterAllowAction": ("what policy accepts always goes on to the host's other rules", ("Return", "return")),
}


def _choice(value: Any, *words: str) -> str:
    text = str(value).lower()
    if text not in (word.lower() for word in words):
        raise ValueError(f"use {' or '.join(words)}")
    return text


def _to_host(options: PolicyOptions, value: Any) -> PolicyOptions:
    return replace(options, endpoint_to_host=_choice(value, "Drop", "Return", "Accept"))


def _deny(options: PolicyOptions, value: Any) -> PolicyOptions:
    return replace(options, reject=_choice(value, "Drop", "Reject") == "reject")


def _spoofing(options: PolicyOptions, value: Any) -> PolicyOptions:
    return replace(options, workload_source_spoofing=_choice(value, "Disabled", "Any") == "any")


def _flow_log(options: PolicyOptions, value: Any) -> PolicyOptions:
    return replace(options, flow_log=_choice(value, "Enabled", "Disabled") == "enabled")


def _log_prefix(options: PolicyOptions, value: Any) -> PolicyOptions:
    text = str(value)
    if not text.isprintable() or '"' in text or "\\" in text or len(text) > 80:
        raise ValueError("a log prefix has at most 80 printable characters without quotes")
    return replace(options, log_prefix=text)


_SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}
_BURST = 5


def _log_rate(options: PolicyOptions, value: Any) -> PolicyOptions:
    count, slash, unit = str(value).partition("/")
    if not slash or not count.isdigit() or not 0 < int(count) <= 10_000 or unit not in _SECONDS:
        raise ValueError("write a rate as 10/second, 10/minute, 10/hour or 10/day")
    burst = options.log_rate.burst if options.log_rate else _BURST
    return replace(options, log_rate=Rate(int(count), _SECONDS[unit], burst))


def _log_burst(options: PolicyOptions, value: Any) -> PolicyOptions:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 10_000:
        raise ValueError("a burst is 1 to 9999")
    return replace(options, log_rate=replace(options.log_rate, burst=value)) if options.log_rate else options


def _nat_address(options: PolicyOptions, value: Any) -> PolicyOptions:
    try:
        text = str(IPv4Address(str(value))) if value else ""
    except ValueError as error:
        raise ValueError("use an IPv4 address of this host") from error
    return replace(options, translation=replace(options.translation, address=text))


def _nat_ports(options: PolicyOptions, value: Any) -> PolicyOptions:
    low, colon, high = str(value).partition(":")
    ends = [int(part) if part.isdigit() else 0 for part in ((low, high) if colon else (low, low))]
    if not 0 < ends[0] <= ends[1] < 65536:
        if str(value) in ("", "0"):
            return replace(options, translation=replace(options.translation, ports=""))
        raise ValueError("write a port range as 32768:65535")
    return replace(options, translation=replace(options.translation, ports=f"{ends[0]}-{ends[1]}"))


def _nat_exclusions(options: PolicyOptions, value: Any) -> PolicyOptions:
    spare = _choice(value, "IPPoolsOnly", "IPPoolsAndHostIPs") == "ippoolsandhostips"
    return replace(options, translation=replace(options.translation, spare_hosts=spare))


def _nat_interface(options: PolicyOptions, value: Any) -> PolicyOptions:
    """A trailing `+` means a prefix, as in iptables."""
    text = str(value)
    if text and not re.fullmatch(r"[A-Za-z0-9_.:-]{1,15}[+*]?", text):
        raise ValueError("use an interface's name, or the beginning of one and +")
    interface = f"{text[:-1]}*" if text.endswith("+") else text
    return replace(options, translation=replace(options.translation, interface=interface))


def _flag(attribute: str) -> Change:
    def change(options: PolicyOptions, value: Any) -> PolicyOptions:
        if not isinstance(value, bool):
            raise ValueError("use true or false")
        changes: dict[str, Any] = {attribute: value}
        return replace(options, **changes)

    return change


def _vxlan_port(options: PolicyOptions, value: Any) -> PolicyOptions:
    return replace(options, vxlan_port=_port(value))


def _port(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 65536:
        raise ValueError("a port is 1 to 65535")
    return value


def _failsafes_of(attribute: str) -> Change:
    """A list of `{protocol, port, net}`; an empty list turns failsafes off."""

    def change(options: PolicyOptions, value: Any) -> PolicyOptions:
        if not isinstance(value, list):
            raise ValueError("use a list of {protocol, port, net}")
        changes: dict[str, Any] = {attribute: tuple(map(_failsafe, value))}
        return replace(options, **changes)

    return change


def _failsafe(entry: Any) -> Failsafe:
    if not isinstance(entry, Mapping):
        raise ValueError("use a list of {protocol, port, net}")
    protocol = {"tcp": 6, "udp": 17, "sctp": 132}.get(str(entry.get("protocol", "tcp")).lower())
    if protocol is None:
        raise ValueError("a failsafe's protocol is TCP, UDP or SCTP")
    net = str(ip_network(entry["net"], strict=False)) if entry.get("net") else ""
    return Failsafe(protocol, _port(entry.get("port")), net)


_FLAGS = {
    "allowVXLANPacketsFromWorkloads": "allow_vxlan_from_workloads",
    "allowIPIPPacketsFromWorkloads": "allow_ipip_from_workloads",
    "disableConntrackInvalidCheck": "disable_conntrack_invalid_check",
}
# In this order: nftables' own name wins over that of iptables, a burst follows its rate.
_FELIX: dict[str, Change] = {
    "defaultEndpointToHostAction": _to_host,
    **{name: _flag(attribute) for name, attribute in _FLAGS.items()},
    "vxlanPort": _vxlan_port,
    "workloadSourceSpoofing": _spoofing,
    "failsafeInboundHostPorts": _failsafes_of("failsafe_inbound"),
    "failsafeOutboundHostPorts": _failsafes_of("failsafe_outbound"),
    "iptablesFilterDenyAction": _deny,
    "nftablesFilterDenyAction": _deny,
    "logPrefix": _log_prefix,
    "logActionRateLimit": _log_rate,
    "logActionRateLimitBurst": _log_burst,
    "flowLogsLocalReporter": _flow_log,
    "natOutgoingAddress": _nat_address,
    "natPortRange": _nat_ports,
    "natOutgoingExclusions": _nat_exclusions,
    "iptablesNATOutgoingInterfaceFilter": _nat_interface,
}
