"""The links of endpoints: made while Docker waits, removed when it no longer does.

Removing a pair takes the kernel 10 to 20 ms however many go at once, and blocks those who make links part of that
time. So calls only hand over a name, and one thread removes what has gathered. What a killed driver leaves behind is
found by the agent's sweep: a link without endpoint.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Callable

from calico_plugin.dataplane import veth
from calico_plugin.dataplane.veth import Sockets, Veth
from calico_plugin.errors import DataplaneError
from calico_plugin.model import names

log = logging.getLogger(__name__)

_GATHER_SECONDS = 0.4
_RETRY_SECONDS = 1.0
# How long an MTU is believed: the uplink's rarely changes, and asking reads all routes; a tunnel comes with a pool.
_UPLINK_SECONDS, _TUNNEL_SECONDS = 30.0, 1.0
_TRIES = 5


class Links:
    """Shared by all threads; `mtu` fixed by the user, or None to follow the uplink."""

    def __init__(self, sockets: Sockets, mtu: int | None, gather: float = _GATHER_SECONDS) -> None:
        self._sockets = sockets
        self._gather = gather
        self._mtu = mtu
        self._uplink = Remembered(lambda: veth.uplink_mtu(sockets), _UPLINK_SECONDS)
        self._tunnels = Remembered(lambda: veth.tunnel_mtu(sockets), _TUNNEL_SECONDS)
        self._lock = threading.Condition()
        self._doomed: dict[str, int] = {}
        self._closing = False
        self._thread = threading.Thread(target=self._reap, name="link-reaper", daemon=True)
        self._thread.start()

    def ensure(self, endpoint: str, mac: str, mtu: int | None) -> None:
        """Make the endpoint's pair, or set up the one that is there. Raises DataplaneError."""
        host = names.host_interface(endpoint)
        with self._lock:
            self._doomed.pop(host, None)
        veth.ensure(self._sockets, Veth(host, names.temporary_interface(endpoint), mac, mtu or self._default_mtu()))

    def _default_mtu(self) -> int | None:
        return self._mtu or veth.smaller(self._uplink.mtu(), self._tunnels.mtu())

    def remove_later(self, endpoint: str) -> None:
        """The pair goes soon; unknown ones do no harm."""
        self.remove_name_later(names.host_interface(endpoint))

    def remove_name_later(self, host: str) -> None:
        with self._lock:
            self._doomed[host] = 0
            self._lock.notify()

    def close(self) -> None:
        """Remove what is still waiting, then stop."""
        with self._lock:
            self._closing = True
            self._lock.notify()
        self._thread.join(10.0)

    def _reap(self) -> None:
        while True:
            with self._lock:
                while not self._doomed and not self._closing:
                    self._lock.wait()
                if not self._doomed:
                    return
                if not self._closing:
                    self._lock.wait(self._gather)
                    self._linger()
                batch, self._doomed = self._doomed, {}
            self._remove(batch)

    def _linger(self) -> None:
        """Each hand-over wakes us: sleep on until the time is over."""
        until = time.monotonic() + self._gather
        while not self._closing and (left := until - time.monotonic()) > 0:
            self._lock.wait(left)

    def _remove(self, batch: dict[str, int]) -> None:
        try:
            veth.remove_many(self._sockets, batch)
        except DataplaneError as error:
            log.warning("removing %d links failed, trying again: %s", len(batch), error)
            again = {name: tries + 1 for name, tries in batch.items() if tries < _TRIES}
            with self._lock:
                if not self._closing:
                    self._lock.wait(_RETRY_SECONDS)
                self._doomed = {**again, **self._doomed} if not self._closing else self._doomed


class Remembered:
    """An MTU, asked again after so many seconds."""

    def __init__(
        self, ask: Callable[[], int | None], seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ask, self._seconds, self._clock = ask, seconds, clock
        self._lock = threading.Lock()
        self._until = 0.0
        self._mtu: int | None = None

    def mtu(self) -> int | None:
        with self._lock:
            if self._clock() >= self._until:
                self._mtu = self._ask()
                self._until = self._clock() + self._seconds
            return self._mtu
