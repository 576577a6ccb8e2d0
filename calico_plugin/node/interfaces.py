"""What the kernel knows about this host's links and addresses, read once and handed on as values."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from typing import Any

from calico_plugin.dataplane.netlink import dump, iproute
from calico_plugin.model.names import BIRD_ROUTE_PROTOCOL

_UP = 1  # IFF_UP


@dataclass(frozen=True, slots=True)
class Interface:
    """A link; `addresses` are `address/prefix length` in the kernel's order."""

    index: int
    name: str
    up: bool
    bridge: bool
    addresses: tuple[str, ...]


def read_interfaces() -> tuple[Interface, ...]:
    """All links with their addresses. Raises DataplaneError."""
    with iproute() as kernel:
        links = dump("links", lambda: list(kernel.get_links()))
        found = dump("addresses", lambda: list(kernel.get_addr()))
    addresses: dict[int, list[str]] = {}
    for one in found:
        # IFA_LOCAL is ours on a point-to-point link, where IFA_ADDRESS is the peer's.
        text = one.get("local") or one.get("address")
        if text:
            addresses.setdefault(one["index"], []).append(f"{text}/{one['prefixlen']}")
    return tuple(_interface(link, tuple(addresses.get(link["index"], ()))) for link in links)


def _interface(link: Any, addresses: tuple[str, ...]) -> Interface:
    info = link.get("linkinfo")
    kind = info.get("kind") if info else None
    return Interface(link["index"], link.get("ifname") or "", bool(link["flags"] & _UP), kind == "bridge", addresses)


def has_bird_routes() -> bool:
    """Whether BIRD has left routes in the kernel: this is a restart, not a boot. Raises DataplaneError."""
    with iproute() as kernel:
        for family in (socket.AF_INET, socket.AF_INET6):
            routes = partial(kernel.get_routes, family=family, proto=BIRD_ROUTE_PROTOCOL)
            if dump("routes", lambda: list(routes())):
                return True
    return False


def source_towards(destination: str, version: int) -> str | None:
    """Our address towards a host, as the kernel would choose it; no packet is sent. None when there is no way."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    try:
        target = socket.getaddrinfo(destination, 80, family, socket.SOCK_DGRAM)[0][4]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(target)
            return str(ip_address(probe.getsockname()[0].partition("%")[0]))
    except (OSError, UnicodeError):
        return None
