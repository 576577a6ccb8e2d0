"""The embedded default: an etcd of this host's own, when nobody said where etcd is and none answers on 127.0.0.1:2379.

It listens on loopback, and on the node's own address when that is a private one, so that the next hosts can be pointed
at it. It has no password: whoever reaches the port owns the cluster. CALICO_ETCD_LISTEN says otherwise (`127.0.0.1`:
this host only; or any list of this host's addresses). Its data is in /var/lib/calico/etcd and survives everything but
`node reset`.
"""

from __future__ import annotations

import os
import socket
from ipaddress import ip_address, ip_interface
from pathlib import Path

from calico_plugin.config import Settings
from calico_plugin.errors import InvalidInput
from calico_plugin.node import leftovers
from calico_plugin.node.addresses import View, resolve
from calico_plugin.node.detect import find
from calico_plugin.node.services import ETCD, Service
from calico_plugin.node.startup import HostView

LOOPBACK, PORT, PEER_PORT = "127.0.0.1", 2379, 2380
_CONNECT_SECONDS = 1.0
# History for watches that were away; etcd's file would grow for ever without.
_KEPT_REVISIONS = "10000"


def wanted(settings: Settings) -> bool:
    """Nobody said where etcd is, and nothing listens where it would be."""
    if not settings.datastore.is_default:
        return False
    try:
        with socket.create_connection((LOOPBACK, PORT), _CONNECT_SECONDS):
            return False
    except OSError:
        return True


def data_dir(settings: Settings) -> Path:
    return settings.lib_dir / "etcd"


def listen_addresses(settings: Settings, host: HostView) -> tuple[str, ...]:
    """Loopback, and what the settings or the node's own address add; an address that this host lacks is left out."""
    asked = settings.node.etcd_listen
    if asked is None:
        asked = tuple(one for one in _own_addresses(settings, host) if ip_address(one).is_private)
    present = tuple(one for one in asked if find(one, host.interfaces))
    return tuple(dict.fromkeys((LOOPBACK, *present)))


def _own_addresses(settings: Settings, host: HostView) -> tuple[str, ...]:
    try:
        found = resolve(settings.node, None, View(host.interfaces, host.reach, ()))
    except InvalidInput:
        return ()  # start-up itself will say so, with all it knows
    return tuple(str(ip_interface(one).ip) for one in (found.ipv4,) if one)


def service(settings: Settings, listen: tuple[str, ...]) -> Service:
    """etcd with one member. Its own ETCD_… variables would be taken from ours, so it gets an environment of its own."""
    urls = ",".join(f"http://{_host(address)}:{PORT}" for address in listen)
    peer = f"http://{LOOPBACK}:{PEER_PORT}"
    environment = {"PATH": os.environ.get("PATH", os.defpath), **leftovers.mark(settings.run_dir)}
    command = (
        "env", "-i", *(f"{name}={value}" for name, value in environment.items()),
        "etcd", "--name", "calico", "--data-dir", str(data_dir(settings)),
        "--listen-client-urls", urls, "--advertise-client-urls", urls,
        "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"calico={peer}",
        "--auto-compaction-mode", "revision", "--auto-compaction-retention", _KEPT_REVISIONS,
        "--logger", "zap", "--log-level", "warn",
        # Docker 20.10 keeps its own networks in the v2 API, if it is told to use this etcd as its cluster store.
        "--enable-v2",
    )  # fmt: skip
    return Service(ETCD, command)


def _host(address: str) -> str:
    return f"[{address}]" if ":" in address else address
