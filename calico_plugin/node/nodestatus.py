"""What a node tells of its BIRD, in the form of Calico's CalicoNodeStatus (node-and-cli 5.1), and who keeps it fresh.

A CalicoNodeStatus that a user makes names a node, classes (Agent, BGP, Routes) and a period; calico-node of that node
fills in its `status`. `calicoctl node status -o json` prints the same, with all classes, without any such resource.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Collection, Sequence

import structlog
from msgspec.structs import replace

from calico_plugin.datastore.kv import KV, KeyValue
from calico_plugin.datastore.store import Store
from calico_plugin.datastore.watch import Changes, Listed, Watch
from calico_plugin.deadline import Deadline
from calico_plugin.errors import CalicoError, Conflict, NotFound, RoutingError
from calico_plugin.model import codec, keys
from calico_plugin.model.codec import Stored
from calico_plugin.model.resources.cluster import CalicoNodeStatus
from calico_plugin.node import report
from calico_plugin.node.follower import Follower
from calico_plugin.node.report import Row
from calico_plugin.observe.log import bug
from calico_plugin.routing.apply import SOCKET_NAME
from calico_plugin.routing.birdc import BirdClient, Route, Status
from calico_plugin.routing.sessions import GLOBAL, MESH, NODE, PEER_TYPES

log: Any = structlog.get_logger(part="node-status")

CLASSES = ("Agent", "BGP", "Routes")
_PEER_TYPES = {PEER_TYPES[MESH]: "NodeMesh", PEER_TYPES[NODE]: "NodePeer", PEER_TYPES[GLOBAL]: "GlobalPeer"}
_STATES = ("Idle", "Connect", "Active", "OpenSent", "OpenConfirm", "Established", "Close")
# BIRD's word for a session that waits for the other end.
_PASSIVE = "Passive"
# Beginnings of our protocols' names (bird.conf.j2).
_SOURCES = (("kernel", "Kernel"), ("direct", "Direct"), ("blocks", "Static"), ("via_", "Static"))
_DEFAULT_PERIOD = 10
_WRITE_SECONDS = 5.0
_LOOK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Told:
    """What one look at BIRD gave; `status` is None when it does not run or answer."""

    status: Status | None
    rows: Sequence[Row] = ()
    routes: Sequence[Route] = ()


def look(run_dir: Path, classes: Collection[str] = CLASSES) -> Told:
    """Ask BIRD for what the classes need; a BIRD that does not answer is an answer, too."""
    client = BirdClient(run_dir / SOCKET_NAME)
    try:
        return Told(
            client.status(),
            report.rows(client.protocols()) if {"BGP", "Routes"} & set(classes) else (),
            client.paths() if "Routes" in classes else (),
        )
    except RoutingError:
        return Told(None)


def status(told: Told, classes: Collection[str], now: datetime) -> dict[str, Any]:
    """The `status` of a CalicoNodeStatus; classes that were not asked for stay empty."""
    return {
        "lastUpdated": now.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "agent": {f"birdV{version}": _daemon(told.status) if "Agent" in classes else {} for version in (4, 6)},
        "bgp": _sessions(told.rows if "BGP" in classes else ()),
        "routes": _routes(told) if "Routes" in classes else {},
    }


def _daemon(bird: Status | None) -> dict[str, str]:
    """One BIRD 2 serves both IP versions."""
    if bird is None:
        return {"state": "NotReady"}
    return {
        "state": "NotReady" if bird.graceful_restart else "Ready",
        "version": bird.version,
        "routerID": bird.router_id,
        "lastBootTime": bird.last_reboot,
        "lastReconfigurationTime": bird.last_reconfiguration,
    }


def _sessions(rows: Sequence[Row]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for version in (4, 6):
        mine = [row for row in rows if row.version == version]
        up = sum(row.established for row in mine)
        found |= {f"numberEstablishedV{version}": up, f"numberNotEstablishedV{version}": len(mine) - up}
        if mine:
            found[f"peersV{version}"] = [_peer(row) for row in mine]
    return found


def _peer(row: Row) -> dict[str, str]:
    word = row.info.split(" ")[0]
    state = word if word in _STATES else "Active" if word == _PASSIVE else "Idle"
    return {"peerIP": row.address, "type": _PEER_TYPES[row.kind], "state": state, "since": row.since}


def _routes(told: Told) -> dict[str, Any]:
    peers = {row.name: row for row in told.rows}
    found: dict[str, Any] = {"routesV4": [], "routesV6": []}
    for one in told.routes:
        found["routesV6" if ":" in one.destination else "routesV4"].append(_route(one, peers.get(one.protocol)))
    return {name: routes for name, routes in found.items() if routes}


def _route(one: Route, peer: Row | None) -> dict[str, Any]:
    if peer is None:
        source = {"sourceType": next((word for start, word in _SOURCES if one.protocol.startswith(start)), "BGPPeer")}
    else:
        mesh = peer.kind == PEER_TYPES[MESH]
        source = {"sourceType": "NodeMesh" if mesh else "BGPPeer", "peerIP": peer.address}
    return {
        "type": "FIB" if one.chosen else "RIB",
        "destination": one.destination,
        # As the original writes where there is none.
        "gateway": one.gateway or "N/A",
        "interface": one.interface or one.kind,
        "learnedFrom": source,
    }


class Reporter(Follower):
    """Fills in the CalicoNodeStatus resources of this node while calico-node runs, each in its own period.

    A period of 0 means once, when the resource is new. Where there is no such resource, nothing is done but a watch.
    """

    def __init__(self, kv: KV, node: str, run_dir: Path) -> None:
        self._store, self._node, self._run_dir = Store(kv), node, run_dir
        super().__init__(Watch(kv, (keys.kind_prefix("CalicoNodeStatus"),)), "node-status")
        self._wanted: dict[str, Stored[CalicoNodeStatus]] = {}
        self._written: dict[str, float] = {}

    def _work(self) -> None:
        failed = False
        while not self._closing.is_set():
            self._wake.wait(_LOOK_SECONDS if self._wanted else None)
            self._wake.clear()
            try:
                for stored in list(self._wanted.values()):
                    self._report(stored)
                failed = False
            except CalicoError as error:
                (log.debug if failed else log.warning)("Status of this node could not be written", reason=str(error))
                failed = True
            except Exception:
                bug(log, "node status: a step failed")

    def _follow(self) -> None:
        for event in self._watch:
            if isinstance(event, Listed):
                items = [item for listed in event.items.values() for item in listed]
                self._wanted = {item.key: stored for item in items if (stored := self._mine(item))}
            elif isinstance(event, Changes):
                changed = {change.key: change.item and self._mine(change.item) for change in event.changes}
                self._wanted = {key: one for key, one in {**self._wanted, **changed}.items() if one}
            self._wake.set()

    def _mine(self, item: KeyValue) -> Stored[CalicoNodeStatus] | None:
        try:
            stored = codec.decode_stored(CalicoNodeStatus, item.key, item.value, item.revision)
        except CalicoError:
            return None
        return stored if stored.value.spec.node == self._node else None

    def _report(self, stored: Stored[CalicoNodeStatus]) -> None:
        spec = stored.value.spec
        period = _DEFAULT_PERIOD if spec.update_period_seconds is None else spec.update_period_seconds
        fresh = not stored.value.status.get("lastUpdated")
        last = self._written.get(stored.key)
        if not fresh and (period == 0 or (last is not None and time.monotonic() < last + period)):
            return
        told = status(look(self._run_dir, spec.classes), spec.classes, datetime.now(timezone.utc))
        try:
            changed = replace(stored.value, status=told)
            self._store.resources(CalicoNodeStatus).update(stored, changed, Deadline(_WRITE_SECONDS))
        except (Conflict, NotFound):
            return  # somebody was faster; what is there now is looked at again
        self._written[stored.key] = time.monotonic()
