"""Makes a host bare again: all that calico-node and its parts have put on it goes (`calicoctl node reset`).

Only what carries our marks is touched: links `cali*`, routes of our protocol number and BIRD's, `table inet calico`,
iptables rules with our comment, our folders. Each step may be repeated; "already gone" is success.
"""

from __future__ import annotations

import shutil
import socket
from pathlib import Path
from typing import Any, Iterator

from calico_plugin.config import Settings
from calico_plugin.dataplane import forwarding, links, tunnels
from calico_plugin.dataplane.libnftables import Session
from calico_plugin.dataplane.netlink import Netlink, dump, iproute, mapped
from calico_plugin.errors import CalicoError
from calico_plugin.model.names import BIRD_ROUTE_PROTOCOL, INTERFACE_PREFIX, NAME_TABLE, NFT_TABLE, ROUTE_PROTOCOL
from calico_plugin.node import hostprep
from calico_plugin.node.ready import PLUGIN_SOCKETS


def reset(settings: Settings) -> Iterator[str]:
    """Do all steps, one sentence for each that found something. A failed step costs only itself and is raised last."""
    failures = []
    for step in (_links, _routes, _table, _rules, _forwarding, _files):
        try:
            yield from step(settings)
        except CalicoError as error:
            failures.append(str(error))
        except OSError as error:
            failures.append(f"{error.filename}: {error.strerror}")
    if failures:
        raise CalicoError("; ".join(failures))


def container_links() -> list[str]:
    """Host sides of the links of containers that still run. Raises DataplaneError."""
    netlink = Netlink()
    try:
        return sorted(links.listing(netlink, INTERFACE_PREFIX))
    finally:
        netlink.close()


def _links(settings: Settings) -> Iterator[str]:
    netlink = Netlink()
    try:
        found = links.listing(netlink, INTERFACE_PREFIX)
        links.delete(netlink, found.values())
        devices = tunnels.remove_devices(netlink)
    finally:
        netlink.close()
    if found:
        yield f"Removed {len(found)} links ({INTERFACE_PREFIX}*)"
    if devices:
        yield f"Removed {devices} tunnel devices"


def _routes(settings: Settings) -> Iterator[str]:
    count = remove_routes(ROUTE_PROTOCOL, BIRD_ROUTE_PROTOCOL)
    if count:
        yield f"Removed {count} routes of calico-agent and BIRD"


def remove_routes(*protocols: int) -> int:
    """Remove all routes of these protocol numbers, both IP versions; how many. Raises DataplaneError."""
    with iproute() as kernel:
        families = (socket.AF_INET, socket.AF_INET6)
        return sum(_flush(kernel, family, protocol) for family in families for protocol in protocols)


def _flush(kernel: Any, family: int, protocol: int) -> int:
    found = dump("routes", lambda: list(kernel.get_routes(family=family, proto=protocol)))
    if found:
        with mapped("routes cannot be removed"):
            kernel.flush_routes(family=family, proto=protocol)
    return len(found)


def _table(settings: Settings) -> Iterator[str]:
    session = Session()
    try:
        # Adding first makes the delete succeed when there is none.
        there = session.run("list tables inet").split('"')
        for table in (NFT_TABLE, NAME_TABLE):
            if table in there:
                session.run(f"add table inet {table}; delete table inet {table}")
                yield f"Removed nftables table inet {table}"
    finally:
        session.close()


def _rules(settings: Settings) -> Iterator[str]:
    count = forwarding.remove()
    if count:
        yield f"Removed {count} iptables rules"


def _forwarding(settings: Settings) -> Iterator[str]:
    if hostprep.restore(settings.lib_dir):
        yield "Switched IPv6 forwarding off again"


def _files(settings: Settings) -> Iterator[str]:
    removed = 0
    for name in PLUGIN_SOCKETS:
        path = settings.plugin_dir / name
        if path.exists():
            path.unlink()
            removed += 1
    for folder in (settings.run_dir, settings.lib_dir):
        removed += _empty(folder)
    if settings.nodename_file.exists():
        settings.nodename_file.unlink()
        removed += 1
    if removed:
        yield f"Removed the files in {settings.run_dir} and {settings.lib_dir}"


def _empty(folder: Path) -> int:
    """The folder itself stays: it may be a mount."""
    if not folder.is_dir():
        return 0
    found = list(folder.iterdir())
    for path in found:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    return len(found)
