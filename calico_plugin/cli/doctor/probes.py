"""How the doctor looks at this host: each function asks one thing of the kernel, a socket or a program, and returns it.

Errors leave as CalicoError; the doctor tells them instead of a result.
"""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import re
import socket
import ssl
import subprocess
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from functools import partial
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from calico_plugin.config import DatastoreSettings
from calico_plugin.dataplane import forwarding, sysctl
from calico_plugin.dataplane.netlink import dump, iproute
from calico_plugin.errors import DockerError
from calico_plugin.node import leftovers
from calico_plugin.node.ready import UnixConnection

SECONDS = 2.0
_MAIN_TABLE = 254
_UNMANAGED = re.compile(r"^\s*unmanaged-devices\s*[+=].*interface-name:cali", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Link:
    index: int
    name: str
    mtu: int
    up: bool


@dataclass(frozen=True, slots=True)
class Route:
    """A route of the main table with a destination; `protocol` is the kernel's number of who made it."""

    destination: IPv4Network | IPv6Network
    link: str
    protocol: int


@dataclass(frozen=True, slots=True)
class Disk:
    """`free` is a share, 0 to 1."""

    path: Path
    free: float


def setting(name: str) -> str | None:
    """A kernel setting such as net/ipv4/ip_forward; None when the kernel has none."""
    return sysctl.read(name)


def links() -> tuple[Link, ...]:
    """Raises DataplaneError."""
    with iproute() as kernel:
        found = dump("links", lambda: list(kernel.get_links()))
    return tuple(
        Link(link["index"], link.get("ifname") or "", int(link.get("mtu") or 0), bool(link["flags"] & 1))
        for link in found
    )


def routes() -> tuple[Route, ...]:
    """Routes with a prefix (no default route, no multicast) of the main table. Raises DataplaneError."""
    names = {link.index: link.name for link in links()}
    with iproute() as kernel:
        found: list[Any] = []
        for family in (socket.AF_INET, socket.AF_INET6):
            ask = partial(kernel.get_routes, family=family)
            found += dump("routes", lambda: list(ask()))
    made = []
    for one in found:
        destination = one.get("dst")
        if destination and one["table"] == _MAIN_TABLE and one["dst_len"]:
            network = ip_network(f"{destination}/{one['dst_len']}", strict=False)
            if not network.is_link_local and not network.is_multicast:
                made.append(Route(network, names.get(one.get("oif") or 0, ""), int(one["proto"])))
    return tuple(made)


def locked(path: Path) -> bool:
    """Whether a process holds the lock of that file: it is alive."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)


def contained(pid: int, root: Path = Path("/")) -> bool:
    """Whether a process is in a container of Docker's, seen from its host or from inside."""
    return leftovers.elsewhere(pid) or (root / ".dockerenv").exists()


def page(host: str, port: int, path: str) -> tuple[int, str]:
    """Status and text of a page; 0 and the reason when it cannot be had."""
    connection = http.client.HTTPConnection(host or "localhost", port, timeout=SECONDS)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return 0, str(error) or type(error).__name__
    finally:
        connection.close()


def clock_of(endpoint: str, settings: DatastoreSettings) -> float | None:
    """How many seconds this host's clock is ahead of that etcd's, by the Date of an HTTP answer (exact to a second).

    None when the endpoint does not tell.
    """
    url = urlsplit(endpoint)
    host, port = url.hostname or "localhost", url.port or 2379
    connection: http.client.HTTPConnection
    try:
        if url.scheme == "https":
            connection = http.client.HTTPSConnection(host, port, timeout=SECONDS, context=_context(settings))
        else:
            connection = http.client.HTTPConnection(host, port, timeout=SECONDS)
        connection.request("GET", "/version")
        answer = connection.getresponse()
        given = answer.getheader("Date")
        connection.close()
        return (datetime.now(timezone.utc) - parsedate_to_datetime(given)).total_seconds() if given else None
    except (OSError, ValueError, http.client.HTTPException):
        return None


def _context(settings: DatastoreSettings) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=settings.ca_cert_file or None)
    if settings.cert_file and settings.key_file:
        context.load_cert_chain(settings.cert_file, settings.key_file)
    return context


def reaches(address: str, port: int) -> str:
    """What a TCP connection says: nothing when it works, else the reason."""
    try:
        with socket.create_connection((address, port), timeout=SECONDS):
            return ""
    except TimeoutError:
        return "Connection timed out"
    except OSError as error:
        return str(error.strerror or error)


def forward_gaps() -> tuple[str, ...]:
    """Firewall chains that drop forwarded packets and lack the accept rules for containers. Raises DataplaneError."""
    return forwarding.missing()


def nameservers(path: Path) -> list[str] | None:
    """DNS servers that a resolv.conf names; None when it cannot be read."""
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except (OSError, UnicodeDecodeError):
        return None
    return [words[1] for words in lines if len(words) > 1 and words[0] == "nameserver"]


def nft_table(name: str) -> bool | None:
    """Whether nftables has the table `inet <name>`; None when it cannot be asked."""
    try:
        done = subprocess.run(
            ["nft", "list", "tables", "inet"], capture_output=True, text=True, timeout=SECONDS * 2, check=False
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return f"table inet {name}" in done.stdout.splitlines() if done.returncode == 0 else None


def disk(path: Path) -> Disk | None:
    """The disk that a folder is on; None when there is no such folder."""
    try:
        found = os.statvfs(path)
    except OSError:
        return None
    return Disk(path, found.f_bavail / found.f_blocks if found.f_blocks else 1.0)


def network_manager(root: Path = Path("/")) -> bool | None:
    """Whether NetworkManager is told to leave containers' links alone; None when it does not run."""
    if not (root / "run/NetworkManager").is_dir():
        return None
    folders = [root / place / "NetworkManager" for place in ("etc", "run", "usr/lib")]
    files = [file for folder in folders for file in (folder / "NetworkManager.conf", *folder.glob("conf.d/*.conf"))]
    return any(_UNMANAGED.search(_text(file)) for file in files)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def docker(host: str, path: str) -> Any:
    """What Docker's API answers, from JSON. Raises DockerError."""
    if not host.startswith("unix://"):
        raise DockerError(f"Docker is asked only through a unix socket here, and DOCKER_HOST is {host}")
    connection = UnixConnection(Path(host.removeprefix("unix://")), SECONDS * 2)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise DockerError(f"Docker's API answers {answer.status} to {path}")
        return json.loads(text)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise DockerError(f"Docker does not answer on {host}: {error}") from error
    finally:
        connection.close()
