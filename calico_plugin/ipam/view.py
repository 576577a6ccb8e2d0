"""What an allocation reads besides blocks: pools, reservations, configuration, nodes; and how a commit makes sure
that it still holds.

The allocator asks a ClusterView at every call. `DirectView` reads etcd each time (command line, tests); the driver
has a view that a watch keeps current. Whatever a view says is put into the commit as compares, so a view that lags
can cost a second try, never a wrong answer; for that second try the allocator reads directly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterable, Mapping, Protocol, Sequence, Type, TypeVar

from calico_plugin.datastore.kv import KV, Compare, KeyValue
from calico_plugin.deadline import Deadline
from calico_plugin.errors import CorruptValue
from calico_plugin.ipam.cidr import Cidr, parse
from calico_plugin.ipam.pools import Pool, Reservations, pool_of
from calico_plugin.model import codec, keys
from calico_plugin.model.ipam import DEFAULT_IPAM_CONFIG, IPAMConfig
from calico_plugin.model.resources.ipam import IPPool, IPReservation
from calico_plugin.model.resources.node import Node

T = TypeVar("T", IPPool, IPReservation)

POOLS = keys.kind_prefix("IPPool")
RESERVATIONS = keys.kind_prefix("IPReservation")
NODES = keys.kind_prefix("Node")


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """`pools` in name order, with those that are disabled. `compares` hold while configuration and reservations are
    these.

    Compared by identity: a view gives the same object as long as nothing changed, and what was worked out from it is
    kept.
    """

    pools: tuple[Pool, ...]
    reservations: Mapping[int, Reservations]
    config: IPAMConfig
    compares: tuple[Compare, ...]

    def pool_of(self, version: int, number: int, *, enabled: bool = False) -> Pool | None:
        """The first pool in name order that holds the address; with `enabled`, of those that give new ones."""
        for pool in self.pools:
            if pool.cidr.version == version and number in pool.cidr and (pool.enabled or not enabled):
                return pool
        return None


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node's labels, and the revision of its object."""

    labels: Mapping[str, str]
    revision: int


class ClusterView(Protocol):
    """Two reads. They raise DatastoreErrors when the view cannot answer."""

    def inputs(self, deadline: Deadline) -> Inputs: ...

    def node(self, name: str, deadline: Deadline) -> NodeView | None:
        """None when there is no such node."""


def inputs_of(
    pools: Iterable[tuple[IPPool, str, int]],
    reservations: Iterable[IPReservation],
    reservations_revision: int,
    config: IPAMConfig | None,
    config_revision: int,
) -> Inputs:
    """Inputs from typed values: pools as (object, key, mod_revision) in name order; `reservations_revision` is the
    highest mod_revision among the reservations, or that of their listing.
    """
    found = (pool_of(resource, key, revision) for resource, key, revision in pools)
    reserved = [cidr for reservation in reservations for cidr in _cidrs(reservation)]
    return Inputs(
        pools=tuple(pool for pool in found if pool),
        reservations={v: Reservations.of(cidr for cidr in reserved if cidr.version == v) for v in (4, 6)},
        config=config or DEFAULT_IPAM_CONFIG,
        compares=(
            Compare(keys.IPAM_CONFIG, config_revision),
            # A new or changed reservation fails it; a reservation that went away makes no answer wrong.
            Compare(RESERVATIONS, reservations_revision, prefix=True),
        ),
    )


def _cidrs(reservation: IPReservation) -> Iterable[Cidr]:
    for text in reservation.spec.reserved_cidrs:
        try:
            yield parse(text)
        except ValueError:
            continue


class DirectView:
    """Reads etcd at each call."""

    def __init__(self, kv: KV) -> None:
        self._kv = kv

    def inputs(self, deadline: Deadline) -> Inputs:
        pools = self._kv.list(POOLS, deadline).items
        reservations = self._kv.list(RESERVATIONS, deadline).items
        return _inputs(pools, reservations, self._kv.get(keys.IPAM_CONFIG, deadline))

    def node(self, name: str, deadline: Deadline) -> NodeView | None:
        item = self._kv.get(NODES + name, deadline)
        return NodeView(codec.decode(Node, item.key, item.value).labels, item.revision) if item else None


def _inputs(pools: Iterable[KeyValue], reservations: Sequence[KeyValue], config: KeyValue | None) -> Inputs:
    return inputs_of(
        [(pool, item.key, item.revision) for item in pools if (pool := _readable(IPPool, item))],
        [reserved for item in reservations if (reserved := _readable(IPReservation, item))],
        max((item.revision for item in reservations), default=0),
        codec.decode(IPAMConfig, config.key, config.value) if config else None,
        config.revision if config else 0,
    )


class HeldView:
    """Asks another view once for each thing: several tries at one commit rest on the same answers, which it compares.
    """

    def __init__(self, view: ClusterView) -> None:
        self.view = view
        self._inputs: Inputs | None = None
        self._nodes: dict[str, NodeView | None] = {}

    def inputs(self, deadline: Deadline) -> Inputs:
        if self._inputs is None:
            self._inputs = self.view.inputs(deadline)
        return self._inputs

    def node(self, name: str, deadline: Deadline) -> NodeView | None:
        if name not in self._nodes:
            self._nodes[name] = self.view.node(name, deadline)
        return self._nodes[name]


def _readable(kind: Type[T], item: KeyValue) -> T | None:
    """Bad data counts as absent (Calico drops it from lists too)."""
    try:
        return codec.decode(kind, item.key, item.value)
    except CorruptValue:
        return None
