"""Looks again at this host's addresses every AUTODETECT_POLL_INTERVAL, where they are detected: hosts get new ones.

The look is local and cheap; only a difference leads to the whole decision (conflicts, the Node resource) and to etcd.
"""

from __future__ import annotations

import time
from typing import Any, Callable

import structlog

from calico_plugin.config import AUTODETECT, NodeSettings
from calico_plugin.errors import CalicoError
from calico_plugin.node.detect import detect
from calico_plugin.node.startup import HostView

log: Any = structlog.get_logger(part="addresses")

Found = tuple[str, str]


def found(settings: NodeSettings, host: HostView) -> Found:
    """The detected addresses of both IP versions; empty where none is to be detected, or none is there."""
    ipv4 = detect(settings.ip_method, 4, host.interfaces, host.reach).address if settings.ip == AUTODETECT else ""
    ipv6 = detect(settings.ip6_method, 6, host.interfaces, host.reach).address if settings.ip6 == AUTODETECT else ""
    return ipv4, ipv6


class AddressWatch:
    """`look` reads the host, `write` decides anew and stores. A failed write is tried again at the next look."""

    def __init__(
        self,
        settings: NodeSettings,
        look: Callable[[], HostView],
        write: Callable[[HostView], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings, self._look, self._write, self._clock = settings, look, write, clock
        self._seen = found(settings, look())
        self._next = clock() + settings.poll_interval

    def tick(self) -> None:
        """Look when it is time; never raises what can be tried again."""
        if AUTODETECT not in (self._settings.ip, self._settings.ip6) or self._clock() < self._next:
            return
        self._next = self._clock() + self._settings.poll_interval
        try:
            host = self._look()
            now = found(self._settings, host)
            # An address that has gone for a moment (a lease, a cable) is no reason to leave the mesh.
            if now == self._seen or not any(now):
                return
            log.info("Node IPv4 or IPv6 address changed, checking for conflicts", before=self._seen, now=now)
            self._write(host)
            self._seen = now
        except CalicoError as error:
            log.error("The address of this host has changed, but the node was not updated", reason=str(error))
