"""Addresses of this host's own links."""

from __future__ import annotations

import socket
import struct
from typing import Iterator

from calico_plugin.dataplane.netlink import RTM_GETADDR, Message, Netlink, attributes

_IFADDR = struct.Struct("=BBBBi")
_IFA_ADDRESS, _IFA_LOCAL = 1, 2


# Multicast groups that tell of addresses.
GROUP_IPV4, GROUP_IPV6 = 5, 9


def local_addresses(netlink: Netlink) -> frozenset[str]:
    """All of both IP versions, as text. Raises DataplaneError."""
    return frozenset(address for _, address in _listing(netlink))


def by_interface(netlink: Netlink) -> dict[str, frozenset[str]]:
    """Name of each link that has any -> its addresses. In the thread's own namespace. Raises DataplaneError."""
    found: dict[int, set[str]] = {}
    for index, address in _listing(netlink):
        found.setdefault(index, set()).add(address)
    named = ((_name(index), listed) for index, listed in found.items())
    return {name: frozenset(listed) for name, listed in named if name}


def _name(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return ""  # it went meanwhile


def _listing(netlink: Netlink) -> Iterator[tuple[int, str]]:
    """(index of the link, address)"""
    for family in (socket.AF_INET, socket.AF_INET6):
        request = Message(RTM_GETADDR, 0, _IFADDR.pack(family, 0, 0, 0, 0), "addresses cannot be listed")
        for answer in netlink.dump(request):
            if answer[0] != family:
                continue
            parts = dict(attributes(answer, _IFADDR.size))
            value = parts.get(_IFA_LOCAL) or parts.get(_IFA_ADDRESS)
            if value is not None:
                yield _IFADDR.unpack_from(answer)[4], socket.inet_ntop(family, value)
