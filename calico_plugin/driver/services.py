"""What one driver process consists of, wired together; built in gunicorn's worker, after the fork."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import structlog
from flask import Flask, request

from calico_plugin.dataplane import veth
from calico_plugin.dataplane.netlink import NetlinkPool
from calico_plugin.datastore.kv import KV
from calico_plugin.datastore.store import Store
from calico_plugin.datastore.watch import Watch
from calico_plugin.driver import scope
from calico_plugin.driver.addresses import Addresses
from calico_plugin.driver.allocations import Allocations
from calico_plugin.driver.app import create_app
from calico_plugin.driver.endpoints import Endpoints
from calico_plugin.driver.hops import Hops
from calico_plugin.driver.introduction import wait_for_names
from calico_plugin.driver.ipam import handshake, ipam_driver
from calico_plugin.driver.janitor import Janitor, Pace
from calico_plugin.driver.journal import Journal
from calico_plugin.driver.links import Links
from calico_plugin.driver.network import network_driver
from calico_plugin.driver.networks import Networks
from calico_plugin.driver.publishing import Publishing
from calico_plugin.driver.readiness import Readiness
from calico_plugin.driver.reservations import Reservations
from calico_plugin.driver.view import View
from calico_plugin.ipam.allocator import Allocator
from calico_plugin.ipam.pools import Selects
from calico_plugin.model import published
from calico_plugin.observe.log import bug

log = structlog.get_logger(part="driver")


@dataclass(frozen=True)
class Services:
    """The application, and what ends all that is behind it."""

    app: Flask
    close: Callable[[], None]


def build(
    kv: KV,
    selects: Selects,
    *,
    node: str,
    run_dir: Path,
    lib_dir: Path,
    scope_setting: str = scope.AUTO,
    host_plugin_dir: Path | None = None,
    interface_prefix: str = "cali",
    mtu: int | None = None,
    own_profiles: bool = True,
    label_endpoints: bool = False,
    pace: Pace = Pace(),
) -> Services:
    """Never waits for etcd: what needs it says so when it is called. `selects` matches a pool's node selector.

    Raises DataplaneError, OSError.
    """
    view = View(node)
    watch = Watch(kv, view.prefixes)
    sockets = NetlinkPool()
    links = Links(sockets, mtu)
    readiness = Readiness(run_dir)
    journal = Journal(lib_dir)
    found = veth.ours(sockets)
    hops = Hops(run_dir, {link.name for link in found})
    reservations = Reservations()
    endpoints = Endpoints(kv, view, links, sockets, readiness, journal, hops, reservations, node, interface_prefix,
                          label_endpoints=label_endpoints)
    in_force = Readiness(run_dir, published.DIRECTORY)
    publishing = Publishing(kv, view, endpoints, in_force, reservations)
    known = Allocations(kv, view, node)
    addresses = Addresses(Allocator(kv, selects, view), known, view, endpoints, journal, node)
    networks = Networks(Store(kv), view, node, own_profiles=own_profiles)
    janitor = Janitor(kv, view, endpoints, addresses, known, journal, links, found, publishing, node, pace)
    follower = threading.Thread(target=_follow, args=(view, watch), name="view", daemon=True)
    follower.start()
    janitor.start()

    def caller_scope() -> str:
        connection = request.environ.get("gunicorn.socket")
        wait_for_names(connection, host_plugin_dir, run_dir)
        return scope.of_caller(scope_setting, connection, hint=lib_dir / scope.HINT_FILE)

    def close() -> None:
        janitor.close()
        watch.close()
        links.close()
        readiness.close()
        in_force.close()
        reservations.close()
        sockets.close()
        kv.close()

    app = create_app(
        handshake(),
        network_driver(networks, endpoints, publishing, caller_scope, addresses.name_reserved),
        ipam_driver(addresses),
    )
    log.info("ready", node=node)
    return Services(app, close)


def _follow(view: View, watch: Watch) -> None:
    try:
        view.follow(watch)
    except Exception:
        bug(log, "the view's thread ended")
        raise
