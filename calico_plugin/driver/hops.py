"""Next hops: each network of one container gets its own, since one container cannot hold the same route twice.

The first network of a container has the hop 169.254.1.1, the next one 169.254.1.2, and so on (docker-plugin 4.6); all
are answered by proxy ARP on the host end. For IPv6 the host end really has the address, fe80::<the IPv4 hop>. Which
hop is whose is kept in a small file per link in the run directory, for a restarted driver; it does not outlive a
reboot, nor do containers. (The alias of the link would be the nicer place, but each change of a link waits for the
kernel's link lock.)
"""

from __future__ import annotations

import threading
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Collection

from calico_plugin.errors import DataplaneError
from calico_plugin.model.names import GATEWAY_IPV4

DIRECTORY = "driver-hops"

_FIRST = int(IPv4Address(GATEWAY_IPV4))
# 169.254.1.1 to 169.254.1.254.
_MOST = 254
_LINK_LOCAL = int(IPv6Address("fe80::"))


class Hops:
    """Hop numbers in use, per sandbox. Files of links that are not among `links` (the kernel's, at the start) go."""

    def __init__(self, run_dir: Path, links: Collection[str] = ()) -> None:
        self._directory = run_dir / DIRECTORY
        self._directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._sandboxes: dict[str, dict[str, int]] = {}
        self._owner: dict[str, str] = {}
        for file in self._directory.iterdir():
            number, sandbox = _parse(file.read_text(errors="replace"))
            if number and file.name in links:
                self._hold(sandbox, file.name, number)
            else:
                file.unlink()

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
            (self._directory / link).write_text(f"{number} {sandbox}")
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
        (self._directory / link).unlink(missing_ok=True)


def _parse(text: str) -> tuple[int, str]:
    """(number, sandbox) of a file; (0, "") for a broken one."""
    number, _, sandbox = text.partition(" ")
    return (int(number), sandbox) if number.isascii() and number.isdigit() and sandbox else (0, "")


def ipv4(number: int) -> IPv4Address:
    return IPv4Address(_FIRST + number - 1)


def ipv6(number: int) -> IPv6Address:
    return IPv6Address(_LINK_LOCAL + _FIRST + number - 1)
