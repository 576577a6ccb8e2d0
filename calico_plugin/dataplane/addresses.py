"""Addresses of this host's own links."""

from __future__ import annotations

import socket
import struct

from calico_plugin.dataplane.netlink import RTM_GETADDR, Message, Netlink, attributes

_IFADDR = struct.Struct("=BBBBi")
_IFA_ADDRESS, _IFA_LOCAL = 1, 2


def local_addresses(netlink: Netlink) -> frozenset[str]:
    """All of both IP versions, as text. Raises DataplaneError."""
    found = set()
    for family in (socket.AF_INET, socket.AF_INET6):
        request = Message(RTM_GETADDR, 0, _IFADDR.pack(family, 0, 0, 0, 0), "addresses cannot be listed")
        for answer in netlink.dump(request):
            if answer[0] != family:
                continue
            parts = dict(attributes(answer, _IFADDR.size))
            value = parts.get(_IFA_LOCAL) or parts.get(_IFA_ADDRESS)
            if value is not None:
                found.add(socket.inet_ntop(family, value))
    return frozenset(found)
