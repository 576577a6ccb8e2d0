"""What an operator may set about policy on a node (policy 4); `felix` reads it."""

from __future__ import annotations

from dataclasses import dataclass

from calico_plugin.model.desired import Rate


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
class Translation:
    """How packets of natOutgoing pools are changed. `address`: instead of that of the link they leave by (IPv4 only);
    `ports` of TCP and UDP as `lo-hi`; `spare_hosts`: not towards the cluster's hosts; `interface`: only where they
    leave by it (a trailing `*` means a prefix).
    """

    address: str = ""
    ports: str = ""
    spare_hosts: bool = False
    interface: str = ""


@dataclass(frozen=True, slots=True)
class PolicyOptions:
    """Defaults are Felix's. Values that come from FelixConfiguration win over those given here.

    `endpoint_to_host` is what follows for packets from a workload to this host that its egress policy allowed:
    `drop`, `return` (the host's own INPUT rules decide) or `accept` (in our table the same as `return`: an accept of
    nftables binds no other table). `block_size`: about how many policies share their maps, `sort_from`: from how
    many of a tier on they get any (see `blocks`).
    `log_group`: nflog group that is told of packets that meet a Log rule, and with `flow_log` of each connection that a
    rule allows or denies; 0: none. `reject`: who is denied is told so (ICMP), except before routing. `log_rate` bounds
    what each Log rule writes to the kernel's log.
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
    block_size: int = 512
    sort_from: int = 21
    log_group: int = 0
    flow_log: bool = False
    reject: bool = False
    log_rate: Rate | None = None
    translation: Translation = Translation()
