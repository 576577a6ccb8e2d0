"""Packets put where those of somebody else would have come out: into a link, or into this host's own stack.

Needs CAP_NET_RAW. A packet into a link meets no rule of this host and leaves no trace in its connection tracking: what
comes back to it is judged as if it had never been.
"""

from __future__ import annotations

import errno
import socket

from calico_plugin.errors import DataplaneError

_ETHERTYPE: dict[int, int] = {socket.AF_INET: 0x0800, socket.AF_INET6: 0x86DD}
_IP_HDRINCL, _IPV6_HDRINCL = 3, 36


class Injector:
    """Owned by one thread; its sockets stay in the network namespace of the thread that made it. Raises DataplaneError.
    """

    def __init__(self) -> None:
        try:
            self._link = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, 0)
            self._own: dict[int, socket.socket] = {socket.AF_INET: _raw(socket.AF_INET, socket.IPPROTO_IP, _IP_HDRINCL)}
        except OSError as error:
            why = "it takes CAP_NET_RAW" if error.errno == errno.EPERM else str(error)
            raise DataplaneError(f"packets cannot be put into links: {why}", error.errno or 0) from error
        try:
            self._own[socket.AF_INET6] = _raw(socket.AF_INET6, socket.IPPROTO_IPV6, _IPV6_HDRINCL)
        except OSError:
            pass  # a kernel without IPv6

    def into_link(self, device: int, hardware: bytes, family: int, packet: bytes) -> None:
        """Out of the link with this index, to the neighbour with this link-layer address. Raises OSError."""
        address = (socket.if_indextoname(device), _ETHERTYPE[family], 0, 0, hardware)
        self._link.sendto(packet, address)

    def into_stack(self, family: int, destination: str, packet: bytes) -> None:
        """To an address of this host. Raises OSError, KeyError for a family that the kernel lacks."""
        self._own[family].sendto(packet, (destination, 0))

    def close(self) -> None:
        for one in (self._link, *self._own.values()):
            one.close()


def _raw(family: int, level: int, option: int) -> socket.socket:
    made = socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW)
    made.setsockopt(level, option, 1)
    return made
