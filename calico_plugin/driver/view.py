"""What the driver knows without asking: networks, pools, this node and its endpoints, kept current by one watch.

Calls answer from here, so that only what they change costs a round trip. Own writes are entered as soon as etcd has
confirmed them, and an older event that the watch brings afterwards is not taken for news: a call sees what the one
before it did.

Also the allocator's ClusterView: whatever it says here is compared in the commit, so that a view that lags never
gives a wrong address.
"""

from __future__ import annotations

import threading
from typing import Any, Callable, Iterable, Mapping

import structlog

from calico_plugin.datastore.kv import Change, KeyValue
from calico_plugin.datastore.watch import Broken, Event, Listed, Watch, difference
from calico_plugin.deadline import Deadline
from calico_plugin.errors import CalicoError, CorruptValue, DatastoreUnavailable
from calico_plugin.ipam.view import POOLS, RESERVATIONS, Inputs, NodeView, inputs_of
from calico_plugin.model import codec, keys, names
from calico_plugin.model.docker import NetworkRecord
from calico_plugin.model.ipam import IPAMConfig
from calico_plugin.model.resources import IPPool, IPReservation, Node, WorkloadEndpoint

log = structlog.get_logger(part="view")


class View:
    """Filled by `follow` in a thread of its own; read by any thread."""

    def __init__(self, node: str) -> None:
        self._node_name = node
        self._node_key = keys.resource("Node", node)
        self._endpoints_prefix = endpoints_prefix(node)
        self._changed = threading.Condition()
        self._known: dict[str, KeyValue] = {}
        # Keys that we deleted ourselves, until the watch has told so too.
        self._deleted: dict[str, int] = {}
        self._synced = False
        self._trouble: CalicoError | None = None
        self._networks: dict[str, NetworkRecord] = {}
        self._endpoints: dict[str, WorkloadEndpoint] = {}
        self._by_address: dict[str, str] = {}
        self._cluster: dict[str, Any] = {}
        self._reservations_revision = 0
        self._inputs: Inputs | None = None

    @property
    def prefixes(self) -> tuple[str, ...]:
        return (keys.NETWORKS, POOLS, RESERVATIONS, keys.IPAM_CONFIG, self._node_key, self._endpoints_prefix)

    def follow(self, watch: Watch) -> None:
        """Take in all events until the watch is closed."""
        for event in watch:
            self.apply(event)

    def apply(self, event: Event) -> None:
        with self._changed:
            if isinstance(event, Broken):
                self._trouble = event.error
            elif isinstance(event, Listed):
                self._apply_listing(event)
            else:
                self._trouble = None
                for change in event.changes:
                    self._take(change)
            self._changed.notify_all()

    @property
    def in_touch(self) -> bool:
        """Whether the watch is in force: if not, etcd is probably away, and it is no use to wait long for it."""
        return self._synced and self._trouble is None

    @property
    def synced(self) -> bool:
        return self._synced

    # Reading.

    def wait_synced(self, deadline: Deadline) -> None:
        """Until the first complete list is in. Raises DatastoreUnavailable with the reason when it does not come."""
        if not self._synced:
            self._wait(lambda: self._synced, deadline)
            if not self._synced:
                raise self._unavailable()

    def network(self, network: str) -> NetworkRecord | None:
        return self._networks.get(network)

    def networks(self) -> tuple[NetworkRecord, ...]:
        with self._changed:
            return tuple(self._networks.values())

    def await_network(self, network: str, deadline: Deadline) -> NetworkRecord | None:
        """The record as soon as it is complete (named by the agent), else what there is at the deadline."""
        record = self._networks.get(network)
        if record is None or not record.profile:
            self._wait(lambda: bool((found := self._networks.get(network)) and found.profile), deadline)
        return self._networks.get(network)

    def endpoint(self, endpoint: str) -> WorkloadEndpoint | None:
        return self._endpoints.get(endpoint)

    def stored(self, key: str) -> KeyValue | None:
        return self._known.get(key)

    def endpoints(self) -> tuple[WorkloadEndpoint, ...]:
        with self._changed:
            return tuple(self._endpoints.values())

    def owner_of(self, address: str) -> str | None:
        """Id of this node's endpoint that has the address."""
        return self._by_address.get(address)

    def pools(self) -> tuple[IPPool, ...]:
        """In name order."""
        with self._changed:
            found = [value for value in self._cluster.values() if isinstance(value, IPPool)]
        return tuple(sorted(found, key=lambda pool: pool.name))

    # The allocator's ClusterView.

    def inputs(self, deadline: Deadline) -> Inputs:
        self.wait_synced(deadline)
        with self._changed:
            if self._inputs is None:
                self._inputs = self._work_out_inputs()
            return self._inputs

    def node(self, name: str, deadline: Deadline) -> NodeView | None:
        self.wait_synced(deadline)
        key = keys.resource("Node", name)
        with self._changed:
            value, item = self._cluster.get(key), self._known.get(key)
        return NodeView(value.labels, item.revision) if isinstance(value, Node) and item else None

    # Own writes.

    def wrote(self, key: str, value: bytes, revision: int) -> None:
        with self._changed:
            self._take(Change(key, KeyValue(key, value, revision, revision), revision))
            self._changed.notify_all()

    def removed(self, key: str, revision: int) -> None:
        with self._changed:
            item = self._known.get(key)
            if item is None or item.revision <= revision:
                self._deleted[key] = revision
                self._drop(key)
            self._changed.notify_all()

    # Taking in.

    def _apply_listing(self, listed: Listed) -> None:
        items = [item for part in listed.items.values() for item in part]
        self._reservations_revision = max(self._reservations_revision, listed.revision)
        self._inputs = None
        for change in difference(self._known, items, listed.revision):
            self._take(change)
        self._deleted = {key: revision for key, revision in self._deleted.items() if revision > listed.revision}
        self._synced, self._trouble = True, None

    def _take(self, change: Change) -> None:
        item, known = change.item, self._known.get(change.key)
        if item is None:
            if known is None or known.revision <= change.revision:
                self._deleted.pop(change.key, None)
                self._drop(change.key)
        elif self._deleted.get(change.key, 0) < item.revision and (known is None or known.revision < item.revision):
            self._drop(change.key)
            self._known[change.key] = item
            self._enter(item)
        if change.key.startswith(RESERVATIONS):
            self._reservations_revision = max(self._reservations_revision, change.revision)

    def _enter(self, item: KeyValue) -> None:
        try:
            if item.key.startswith(keys.NETWORKS):
                self._networks[item.key[len(keys.NETWORKS) :]] = codec.decode(NetworkRecord, item.key, item.value)
            elif item.key.startswith(self._endpoints_prefix):
                self._enter_endpoint(codec.decode(WorkloadEndpoint, item.key, item.value))
            else:
                kind = _kind(item.key)
                if kind is not None:
                    self._inputs = None
                    self._cluster[item.key] = codec.decode(kind, item.key, item.value)
        except CorruptValue as error:
            log.warning("counts as absent", error=str(error))

    def _enter_endpoint(self, endpoint: WorkloadEndpoint) -> None:
        # The prefix of node "a" also matches node "a-b": see datamodel 3.1.
        if endpoint.spec.node != self._node_name:
            return
        self._endpoints[endpoint.spec.endpoint] = endpoint
        for network in endpoint.spec.ip_networks:
            self._by_address[network.partition("/")[0]] = endpoint.spec.endpoint

    def _drop(self, key: str) -> None:
        if self._known.pop(key, None) is None:
            return
        if key.startswith(keys.NETWORKS):
            self._networks.pop(key[len(keys.NETWORKS) :], None)
        elif key.startswith(self._endpoints_prefix):
            self._drop_endpoint(names.split_workload_endpoint(key.rpartition("/")[2])[-1])
        elif self._cluster.pop(key, None) is not None:
            self._inputs = None

    def _drop_endpoint(self, endpoint: str) -> None:
        gone = self._endpoints.pop(endpoint, None)
        for network in gone.spec.ip_networks if gone else ():
            address = network.partition("/")[0]
            if self._by_address.get(address) == endpoint:
                del self._by_address[address]

    def _work_out_inputs(self) -> Inputs:
        config = self._known.get(keys.IPAM_CONFIG)
        pools = sorted(key for key, value in self._cluster.items() if isinstance(value, IPPool))
        return inputs_of(
            ((self._cluster[key], key, self._known[key].revision) for key in pools),
            (value for value in self._cluster.values() if isinstance(value, IPReservation)),
            self._reservations_revision,
            self._cluster.get(keys.IPAM_CONFIG),
            config.revision if config else 0,
        )

    def _wait(self, happened: Callable[[], bool], deadline: Deadline) -> None:
        with self._changed:
            self._changed.wait_for(happened, deadline.left())

    def _unavailable(self) -> CalicoError:
        if self._trouble is not None:
            return DatastoreUnavailable(str(self._trouble))
        return DatastoreUnavailable("etcd has not answered yet; check that it runs and that ETCD_ENDPOINTS is right")


def endpoints_prefix(node: str) -> str:
    """Prefix of the keys of a node's endpoints; it may match another node's too."""
    return keys.kind_prefix("WorkloadEndpoint", names.NAMESPACE) + names.escape_dashes(node) + "-"


_KINDS: Mapping[str, type] = {
    POOLS: IPPool,
    RESERVATIONS: IPReservation,
    keys.IPAM_CONFIG: IPAMConfig,
    keys.kind_prefix("Node"): Node,
}


def _kind(key: str) -> Any:
    return next((kind for prefix, kind in _KINDS.items() if key.startswith(prefix)), None)


def addresses(endpoint: WorkloadEndpoint) -> Iterable[str]:
    """Bare addresses of an endpoint."""
    return (network.partition("/")[0] for network in endpoint.spec.ip_networks)
