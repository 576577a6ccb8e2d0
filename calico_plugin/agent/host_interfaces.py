"""Which interfaces this host has, with which addresses: asked only while it has host endpoints.

The answer is there before the rules are written that depend on it, so that such an endpoint governs its interface from
the first pass in which it is known.
"""

from __future__ import annotations

import struct
from typing import Protocol

import structlog

from calico_plugin.dataplane import addresses, links
from calico_plugin.dataplane.netlink import Netlink
from calico_plugin.errors import DataplaneError

_INDEX = struct.Struct("=BBBBi")


class Asks(Protocol):
    """What is needed of `agent.policy.Policy`."""

    @property
    def wants_interfaces(self) -> bool: ...

    def on_interfaces(self, interfaces: dict[str, frozenset[str]], links: dict[str, bool]) -> None: ...


class HostInterfaces:
    """Owned by the loop's thread."""

    def __init__(self, netlink: Netlink, policy: Asks) -> None:
        self._netlink, self._policy = netlink, policy
        self._stale = True
        self._log = structlog.get_logger(part="policy")

    def on_address(self, body: bytes, containers: set[int]) -> bool:
        """An address came or went; whether policy may have to be written anew."""
        if _INDEX.unpack_from(body)[4] in containers:
            return False
        return self.on_link()

    def on_link(self) -> bool:
        """A link of the host, none of a container, came, went or changed; whether policy may have to be written anew.
        """
        self._stale = True
        return self._policy.wants_interfaces

    def tell(self) -> None:
        """Before policy is compiled. What cannot be read is asked for again with the next pass."""
        if not self._stale or not self._policy.wants_interfaces:
            return
        try:
            known = {name: link.up and link.carrier for name, link in links.listing(self._netlink, "").items()}
            self._policy.on_interfaces(addresses.by_interface(self._netlink), known)
            self._stale = False
        except DataplaneError as error:
            self._log.warning("the host's interfaces cannot be read; host endpoints stay as they are", error=str(error))

    def refresh(self) -> None:
        """Something may have been missed."""
        self._stale = True
