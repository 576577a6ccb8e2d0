"""Next hops: each network of one container gets its own, since one container cannot hold the same route twice
(docker-plugin 4.6).

The first network of a container has the hop 169.254.1.1, the next one 169.254.1.2, and so on; all are answered by
proxy ARP on the host end. For IPv6 the host end really has the address, fe80::<the IPv4 hop>. Which hop is whose is
written into the alias of the host end, where it lives exactly as long as the link: a restarted driver reads it from
there.
"""

from __future__ import annotations

import threading
from ipaddress import IPv4Address, IPv6Address
from typing import Iterable

from calico_plugin.dataplane.veth import Link
from calico_plugin.errors import DataplaneError
from calico_plugin.model.names import GATEWAY_IPV4

_FIRST = int(IPv4Address(GATEWAY_IPV4))
# 169.254.1.1 to 169.254.1.254.
_MOST = 254
_LINK_LOCAL = int(IPv6Address("fe80::"))
_MARK = "calico hop "


class Hops:
    """Hop numbers in use, per sandbox. `links` are those that the kernel has when the driver starts."""

    def __init__(self, links: Iterable[Link] = ()) -> None:
        self._lock = threading.Lock()
        self._sandboxes: dict[str, dict[str, int]] = {}
        self._owner: dict[str, str] = {}
        for link in links:
            number, sandbox = parse(link.note)
            if number:
                self._hold(sandbox, link.name, number)

    def take(self, sandbox: str, link: str) -> int:
        """Lowest number that no other link of the sandbox holds; the same again for a link that has one."""
        with self._lock:
            used = self._sandboxes.get(sandbox, {})
            if link in used:
                return used[link]
            taken = set(used.values())
            number = next((n for n in range(1, _MOST + 1) if n not in taken), 0)
            if not number:
                raise DataplaneError(f"a container cannot be in more than {_MOST} calico networks at once")
            self._drop(link)
            self._hold(sandbox, link, number)
            return number

    def held(self, link: str) -> bool:
        return link in self._owner

    def give_back(self, link: str) -> None:
        with self._lock:
            self._drop(link)

    def _hold(self, sandbox: str, link: str, number: int) -> None:
        self._sandboxes.setdefault(sandbox, {})[link] = number
        self._owner[link] = sandbox

    def _drop(self, link: str) -> None:
        sandbox = self._owner.pop(link, None)
        if sandbox is None:
            return
        used = self._sandboxes[sandbox]
        used.pop(link, None)
        if not used:
            del self._sandboxes[sandbox]


def note(number: int, sandbox: str) -> str:
    """Text for the link's alias."""
    return f"{_MARK}{number} {sandbox}"


def parse(alias: str) -> tuple[int, str]:
    """(number, sandbox) of an alias, (0, "") for a foreign one."""
    number, _, sandbox = alias.removeprefix(_MARK).partition(" ")
    return (int(number), sandbox) if alias.startswith(_MARK) and number.isdigit() else (0, "")


def ipv4(number: int) -> IPv4Address:
    return IPv4Address(_FIRST + number - 1)


def ipv6(number: int) -> IPv6Address:
    return IPv6Address(_LINK_LOCAL + _FIRST + number - 1)
