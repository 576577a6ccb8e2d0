"""Which address of this host other hosts shall use: pure, on what `interfaces` has read (node-and-cli 1.2).

Links are walked from the highest index to the lowest, as the original does, so that both choose the same one. Every
candidate that was passed over is kept with its reason: a user who gets the wrong address must see why.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from ipaddress import ip_interface, ip_network
from typing import Callable, Iterable, Iterator, Mapping

from calico_plugin.model import autodetect
from calico_plugin.model.autodetect import Method
from calico_plugin.node.interfaces import Interface

# The newer of the original's two lists: without `br-` a compose bridge would win.
EXCLUDED = (
    "docker.*", "cbr.*", "dummy.*", "podman.*", "virbr.*", "lxcbr.*", "veth.*", "lo", "br-.*", "cali.*", "tunl.*",
    "flannel.*", "kube-ipvs.*", "cni.*", r"vxlan\.calico.*", r"vxlan-v6\.calico.*", r"wireguard\.cali.*",
    r"wg-v6\.cali.*", "nodelocaldns.*",
)  # fmt: skip

Reach = Callable[[str, int], "str | None"]


@dataclass(frozen=True, slots=True)
class Detection:
    """`address` has its prefix length; empty when nothing was found. `rejected` says why others were passed over."""

    address: str = ""
    interface: str = ""
    how: str = ""
    rejected: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.address)


@dataclass
class _Search:
    version: int
    taken: Mapping[str, str]
    rejected: list[str] = field(default_factory=list)

    def first(self, interfaces: Iterable[Interface], how: str, inside: tuple[str, ...] = ()) -> Detection:
        networks = [ip_network(cidr, strict=False) for cidr in inside]
        for link, address in self.usable(interfaces):
            ip = ip_interface(address).ip
            if networks and not any(ip in network for network in networks):
                self.rejected.append(f"{address} on {link.name}: outside {', '.join(inside)}")
            elif link.bridge and str(ip) in self.taken:
                # Bridges of the same name and address stand on every host (libvirt, lxd, compose).
                self.rejected.append(f"{address} on bridge {link.name}: node {self.taken[str(ip)]} has it too")
            else:
                return Detection(address, link.name, how, tuple(self.rejected))
        return Detection(rejected=tuple(self.rejected))

    def usable(self, interfaces: Iterable[Interface]) -> Iterator[tuple[Interface, str]]:
        for link in sorted(interfaces, key=lambda one: -one.index):
            for address in link.addresses:
                ip = ip_interface(address).ip
                if ip.version != self.version:
                    continue
                if ip.is_loopback or ip.is_link_local or ip.is_multicast or ip.is_unspecified:
                    self.rejected.append(f"{address} on {link.name}: not reachable from other hosts")
                elif not link.up:
                    self.rejected.append(f"{address} on {link.name}: the link is down")
                else:
                    yield link, address

    def without(self, interfaces: Iterable[Interface], patterns: Iterable[str]) -> list[Interface]:
        expression = re.compile("|".join(f"(?:{pattern})" for pattern in patterns))
        kept = []
        for link in interfaces:
            if expression.search(link.name):
                self.rejected += [
                    f"{address} on {link.name}: links of this name are left out"
                    for address in link.addresses
                    if ip_interface(address).version == self.version and not ip_interface(address).ip.is_loopback
                ]
            else:
                kept.append(link)
        return kept


def detect(
    method: Method,
    version: int,
    interfaces: tuple[Interface, ...],
    reach: Reach,
    taken: Mapping[str, str] | None = None,
) -> Detection:
    """Find this host's address of one IP version.

    `reach(destination, version)` gives our address towards a host; `taken` maps addresses to the other nodes that have
    them.
    """
    search = _Search(version, taken or {})
    excluded = tuple(f"^{pattern}$" for pattern in EXCLUDED)
    if method.kind == autodetect.CAN_REACH:
        return _towards(search, method.values[0], interfaces, reach)
    if method.kind == autodetect.INTERFACE:
        named = [link for link in interfaces if any(re.search(one, link.name) for one in method.values)]
        return search.first(named, f"on matching interface {','.join(method.values)}")
    if method.kind == autodetect.CIDR:
        return search.first(interfaces, f"inside {','.join(method.values)}", method.values)
    if method.kind == autodetect.SKIP_INTERFACE:
        excluded += method.values
    return search.first(search.without(interfaces, excluded), "on the first interface found")


def _towards(search: _Search, destination: str, interfaces: tuple[Interface, ...], reach: Reach) -> Detection:
    wanted = reach(destination, search.version)
    if wanted is None:
        return Detection(rejected=(f"no IPv{search.version} way to {destination}",))
    for link, address in search.usable(interfaces):
        if str(ip_interface(address).ip) == wanted:
            return Detection(address, link.name, f"by connecting to {destination}")
    return Detection(rejected=(f"{wanted}, our address towards {destination}, is on no usable interface",))


def find(address: str, interfaces: Iterable[Interface]) -> Detection:
    """The interface that carries an address (prefix lengths are not compared), if any."""
    wanted = ip_interface(address).ip
    for link in interfaces:
        for candidate in link.addresses:
            if ip_interface(candidate).ip == wanted:
                return Detection(candidate, link.name)
    return Detection()
