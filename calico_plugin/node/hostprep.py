"""What `calicoctl node run` does to the host before it starts calico-node (node-and-cli 1.8); each step is told."""

from __future__ import annotations

import subprocess
from ipaddress import ip_interface
from pathlib import Path
from typing import Callable

from calico_plugin.dataplane import sysctl
from calico_plugin.dataplane.netlink import dump, iproute
from calico_plugin.errors import DataplaneError
from calico_plugin.node.interfaces import read_interfaces

CONNTRACK_MAX = 1_000_000
_FORWARDING6 = "net/ipv6/conf/all/forwarding"
_RECORD = "ipv6-forwarding-before"
_MODULES = ("xt_set", "ip6_tables")
_RA_PROTOCOL = 9  # RTPROT_RA: a route that a router's advertisement made
_MODPROBE_SECONDS = 10.0

Say = Callable[[str], None]


def prepare(lib_dir: Path, say: Say, warn: Say) -> None:
    """Forwarding and connection tracking. Raises DataplaneError when forwarding cannot be switched on.

    What IPv6 forwarding was before is written down in `lib_dir`, for `restore`.
    """
    _load_modules(say)
    say("Enabling IPv4 forwarding")
    sysctl.ensure("net/ipv4/ip_forward", "1")
    if Path("/proc/sys/net/ipv6").exists():
        _warn_of_lost_default_route(warn)
        say("Enabling IPv6 forwarding")
        if sysctl.ensure(_FORWARDING6, "1"):
            lib_dir.mkdir(parents=True, exist_ok=True)
            (lib_dir / _RECORD).write_text("0")
    _raise_conntrack_limit(say, warn)


def restore(lib_dir: Path) -> bool:
    """Switch IPv6 forwarding off again if `prepare` switched it on; whether it was done. Raises DataplaneError.

    Not when a bridge has an IPv6 address: Docker then needs it too, and would not switch it on again by itself. IPv4
    forwarding stays for the same reason; every Docker host has it.
    """
    record = lib_dir / _RECORD
    if not record.exists():
        return False
    addresses = (ip_interface(one) for link in read_interfaces() if link.bridge for one in link.addresses)
    if any(one.version == 6 and not one.ip.is_link_local for one in addresses):
        return False
    return sysctl.ensure(_FORWARDING6, "0")


def _load_modules(say: Say) -> None:
    command = ["modprobe", "-a", *_MODULES]
    say(" ".join(command))
    try:
        subprocess.run(command, capture_output=True, timeout=_MODPROBE_SECONDS, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        pass  # built in, or absent: the kernel is asked by doing, when something needs it


def _warn_of_lost_default_route(warn: Say) -> None:
    if sysctl.read(_FORWARDING6) == "1":
        return
    with iproute() as kernel:
        routes = dump("routes", lambda: list(kernel.get_routes(family=10, proto=_RA_PROTOCOL)))
    names = sorted(path.name for path in Path("/proc/sys/net/ipv6/conf").iterdir())
    relying = [name for name in names if sysctl.read(f"net/ipv6/conf/{name}/accept_ra") == "1"]
    if routes and relying:
        warn(
            "IPv6 forwarding makes the kernel drop routes from router advertisements, and this host has such routes; "
            f"set net.ipv6.conf.NAME.accept_ra=2 on its uplink (now 1: {', '.join(relying)})"
        )


def _raise_conntrack_limit(say: Say, warn: Say) -> None:
    name = "net/netfilter/nf_conntrack_max"
    current = sysctl.read(name)
    if current is None or int(current) >= CONNTRACK_MAX:
        return  # never lowered
    say("Increasing conntrack limit")
    try:
        sysctl.ensure(name, str(CONNTRACK_MAX))
    except DataplaneError:
        warn(f"The conntrack limit stays at {current}: it cannot be changed from here")
