"""What CreateEndpoint, Join, Leave and DeleteEndpoint mean.

CreateEndpoint makes the link, then stores the endpoint in one commit: the agent, which hears of it by its watch,
finds the link there and prepares policy and route while Docker goes on to Join. Join writes nothing to etcd; it waits
for the agent's word and answers. DeleteEndpoint is one commit; the link goes in the background.

Orders of events that this survives: any call twice; Join after a restart of the driver; Delete before, without or
long after Create; Docker forgetting an endpoint because a delete failed (the journal remembers it); an address that
comes to a new endpoint while the old one still stands (the old one is removed in the same commit: IPAM gave the
address, so nobody else can own it).
"""

from __future__ import annotations

import hashlib
import time
import uuid
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timezone
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Sequence

import structlog

from calico_plugin.dataplane import veth
from calico_plugin.dataplane.veth import Sockets
from calico_plugin.datastore.kv import KV, KeyValue
from calico_plugin.deadline import Clock, Deadline
from calico_plugin.driver import hops
from calico_plugin.driver.commits import Commits
from calico_plugin.driver.hops import Hops
from calico_plugin.driver.journal import ENDPOINT, Journal
from calico_plugin.driver.links import Links
from calico_plugin.driver.options import NETWORK_OPTIONS, NetworkOptions, network_options
from calico_plugin.driver.readiness import Readiness
from calico_plugin.driver.reservations import Reservations
from calico_plugin.driver.view import View, addresses
from calico_plugin.driver.wire import CreateEndpoint, EndpointCall
from calico_plugin.errors import (
    AlreadyExists,
    Conflict,
    DatastoreError,
    DatastoreUnavailable,
    DeadlineExceeded,
    InvalidInput,
    NotFound,
)
from calico_plugin.model import codec, keys, names
from calico_plugin.model.docker import NetworkRecord
from calico_plugin.model.resources import Metadata, WorkloadEndpoint
from calico_plugin.model.resources.endpoint import WorkloadEndpointSpec

log = structlog.get_logger(part="endpoints")

# Docker's own patience ends at 30 s (managed plugin); what the caller has to tell must arrive before that.
DATASTORE_SECONDS = 8.0
DELETE_SECONDS, DELETE_SECONDS_AWAY = 4.0, 0.7
NETWORK_SECONDS = 12.0
READY_SECONDS = 15.0
LINK_SECONDS = 0.7
LABEL_SECONDS = 2.3
# Shorter than any crash and restart of dockerd.
JUST_JOINED_SECONDS = 1.5


@dataclass(frozen=True, slots=True)
class Joined:
    """Answer to Join. `gateway4`/`gateway6` None: none is told. `connected` and `routed` are destinations of routes."""

    interface: str
    prefix: str
    gateway4: IPv4Address | None
    gateway6: IPv6Address | None
    connected: tuple[str, ...]
    routed: tuple[tuple[str, str], ...]


class Endpoints:
    """Shared by all threads. `node` owns the endpoints; `prefix` is the name of interfaces inside containers."""

    def __init__(
        self,
        kv: KV,
        view: View,
        links: Links,
        sockets: Sockets,
        readiness: Readiness,
        journal: Journal,
        hops_in_use: Hops,
        reservations: Reservations,
        node: str,
        prefix: str,
        clock: Clock = time.monotonic,
        label_endpoints: bool = False,
    ) -> None:
        self._kv, self._view, self._links, self._sockets = kv, view, links, sockets
        self._readiness, self._journal, self._hops, self._reservations = readiness, journal, hops_in_use, reservations
        self._node, self._prefix, self._label_endpoints = node, prefix, label_endpoints
        self._commits = Commits(kv)
        self._clock = clock
        self._joined: dict[str, float] = {}

    def create(self, call: CreateEndpoint, deadline: Deadline) -> str:
        """Make link and endpoint; the MAC of the container end. Again for the same endpoint: what was made then."""
        record = self._network(call.network, deadline)
        self._refuse_reserved(call)
        existing = self._view.endpoint(call.endpoint)
        if existing is not None:
            return self._again(existing, call, record)
        mac = call.mac or mac_of(call.endpoint)
        with ExitStack() as undo:
            undo.callback(self._links.remove_later, call.endpoint)
            self._links.ensure(call.endpoint, mac, _options(record).mtu)
            mac = self._store(call, mac, record, deadline)
            undo.pop_all()
        self._journal.remove(ENDPOINT, call.endpoint)
        return mac

    def join(self, call: EndpointCall, deadline: Deadline) -> Joined:
        """Wait until policy and route are in force. Raises DeadlineExceeded that says whether the agent runs."""
        endpoint = self.find(call.endpoint, deadline)
        record = self._network(call.network, deadline)
        options = _options(record)
        link = names.host_interface(call.endpoint)
        again, sandbox = self._hops.held(link), call.sandbox or call.endpoint
        number = self._hops.take(sandbox, link)
        with ExitStack() as undo:
            if not again:
                undo.callback(self._hops.give_back, link)
            undo.callback(self._joined.pop, call.endpoint, None)
            self._joined[call.endpoint] = float("inf")
            versions: set[int] = {ip_address(address).version for address in addresses(endpoint)}
            if 6 in versions:
                veth.add_link_local(self._sockets, link, hops.ipv6(number))
            self._await_agent(endpoint, options, deadline)
            self._joined[call.endpoint] = self._clock()
            undo.pop_all()
        routed = self._pool_routes(record, options, versions)
        return joined(
            names.temporary_interface(call.endpoint), self._prefix, number, versions, record.internal, options, routed
        )

    def leave(self, call: EndpointCall) -> None:
        """The container no longer needs its hop. The link stays until DeleteEndpoint: Docker still moves it
        (docker-plugin 2.3).
        """
        self._hops.give_back(names.host_interface(call.endpoint))
        self._joined.pop(call.endpoint, None)

    def delete(self, endpoint: str, deadline: Deadline) -> None:
        """Remove the endpoint; unknown ones are gone already. What etcd could not be told now is done later."""
        self._hops.give_back(names.host_interface(endpoint))
        self._joined.pop(endpoint, None)
        self._links.remove_later(endpoint)
        key = self.key(endpoint)
        try:
            revision = self._commits.delete((key,), self.for_delete(deadline))
        except (DatastoreError, DeadlineExceeded) as error:
            self._journal.add(ENDPOINT, endpoint)
            raise DatastoreUnavailable(
                f"endpoint {endpoint[:12]} is gone from this host, and will be deleted from the datastore "
                f"as soon as it answers: {_etcd(error)}"
            ) from error
        self._view.removed(key, revision)
        self._reservations.release(endpoint)
        self._journal.remove(ENDPOINT, endpoint)

    def for_delete(self, deadline: Deadline) -> Deadline:
        """Docker forgets whatever we answer, so there is no use in keeping it waiting when etcd is known to be away."""
        return deadline.sooner(DELETE_SECONDS if self._view.in_touch else DELETE_SECONDS_AWAY)

    def just_joined(self, endpoint: str) -> bool:
        """Whether Docker is waiting for its Join, or has had the answer for a moment only."""
        return self._clock() - self._joined.get(endpoint, float("-inf")) < JUST_JOINED_SECONDS

    def is_gone(self, endpoint: str) -> bool:
        """Whether a stored endpoint has lost its container, and its link with it: by a power loss, say."""
        return not self.just_joined(endpoint) and veth.find(self._sockets, names.host_interface(endpoint)) is None

    def key(self, endpoint: str) -> str:
        return keys.resource("WorkloadEndpoint", names.workload_endpoint(self._node, endpoint), names.NAMESPACE)

    def _network(self, network: str, deadline: Deadline) -> NetworkRecord:
        record = self._view.await_network(network, deadline.sooner(NETWORK_SECONDS))
        if record is not None and record.profile:
            return record
        self._view.wait_synced(deadline.sooner(0.1))
        shown = f"network {record.name or network[:12]}" if record else f"network {network[:12]}"
        known = "has no name yet" if record else "is not known in the datastore"
        raise NotFound(
            shown, f"it {known}; calico-agent on this host, which learns networks from Docker, {self._agent()}"
        )

    def _refuse_reserved(self, call: CreateEndpoint) -> None:
        for record in self._view.networks():
            for address in call.addresses:
                name = record.reserved.get(str(address))
                if name is not None:
                    shown = record.name or record.network_id[:12]
                    raise InvalidInput("address", str(address), f"it is in use: network {shown} keeps it as {name!r}")

    def _store(self, call: CreateEndpoint, mac: str, record: NetworkRecord, deadline: Deadline) -> str:
        """One commit; the MAC that is stored in the end."""
        endpoint = workload_endpoint(self._node, call, mac, record.profile, self._label_endpoints)
        key, value = self.key(call.endpoint), codec.encode(endpoint)
        stale = self._stale_owners(call)
        try:
            revision = self._commits.create(
                key, value, deadline.sooner(DATASTORE_SECONDS), remove=[self.key(owner) for owner in stale]
            )
        except AlreadyExists as error:
            return self._adopt(call, error.current)
        except (DatastoreError, DeadlineExceeded) as error:
            # The commit may have been carried out all the same.
            self._journal.add(ENDPOINT, call.endpoint)
            raise DatastoreUnavailable(f"endpoint cannot be stored: {_etcd(error)}") from error
        for owner in stale:
            log.warning("removed an endpoint whose address was given to another", endpoint=owner, by=call.endpoint)
            self._view.removed(self.key(owner), revision)
            self._reservations.release(owner)
            self._links.remove_later(owner)
        self._view.wrote(key, value, revision)
        return mac

    def _stale_owners(self, call: CreateEndpoint) -> list[str]:
        owners = {self._view.owner_of(str(address)) for address in call.addresses}
        return sorted(owner for owner in owners if owner and owner != call.endpoint)

    def _again(self, existing: WorkloadEndpoint, call: CreateEndpoint, record: NetworkRecord) -> str:
        _check_same(existing, call)
        self._links.ensure(call.endpoint, existing.spec.mac, _options(record).mtu)
        return existing.spec.mac

    def _adopt(self, call: CreateEndpoint, current: object) -> str:
        """The endpoint was stored before the watch has told us: the first of two equal calls won."""
        if not isinstance(current, KeyValue):
            raise Conflict(f"endpoint {call.endpoint}", hint="it was created and deleted at the same time; try again")
        existing = codec.decode(WorkloadEndpoint, current.key, current.value)
        _check_same(existing, call)
        self._view.wrote(current.key, current.value, current.revision)
        return existing.spec.mac

    def find(self, endpoint: str, deadline: Deadline) -> WorkloadEndpoint:
        """The endpoint of this node. Raises NotFound."""
        known = self._view.endpoint(endpoint)
        if known is not None:
            return known
        # A driver that has just started may not have seen the list yet.
        try:
            item = self._kv.get(self.key(endpoint), deadline.sooner(DATASTORE_SECONDS))
        except DeadlineExceeded as error:
            raise DatastoreUnavailable(f"endpoint {endpoint[:12]} cannot be read: {_etcd(error)}") from error
        if item is None:
            raise NotFound(
                f"endpoint {endpoint[:12]}",
                "it was deleted, or never created on this host; start the container again",
            )
        return codec.decode(WorkloadEndpoint, item.key, item.value)

    def _await_agent(self, endpoint: WorkloadEndpoint, options: NetworkOptions, deadline: Deadline) -> None:
        name, until = endpoint.spec.endpoint, deadline.sooner(READY_SECONDS)
        if self._readiness.wait(name, until.sooner(LINK_SECONDS)):
            return
        # Unusually long: perhaps the agent waits for a link that somebody has removed.
        self._links.ensure(name, endpoint.spec.mac, options.mtu)
        if self._label_endpoints and self._starts_dark(name, until.sooner(LABEL_SECONDS)):
            return
        if not self._readiness.wait(name, until):
            raise DeadlineExceeded(
                f"endpoint {name[:12]} was not made ready in time: "
                f"calico-agent, which sets up its policy and route, {self._agent()}"
            )

    def _starts_dark(self, endpoint: str, deadline: Deadline) -> bool:
        """Whether its container is to start although its labels are not known. Docker tells the agent none while it
        starts itself, and would not start the container a second time. The agent lets no packet pass until then.
        """
        if self._readiness.wait(endpoint, deadline):
            return False
        known = self._view.endpoint(endpoint)
        if known is None or not known.awaits_labels or not self._readiness.agent_alive():
            return False
        log.warning("a container starts before its labels are known; it carries nothing until then", endpoint=endpoint)
        return True

    def _agent(self) -> str:
        if self._readiness.agent_alive():
            return "is running but has not got that far; see its log (/var/log/calico/calico-agent/current)"
        return "is not running: start calico-node on this host"

    def _pool_routes(self, record: NetworkRecord, options: NetworkOptions, versions: set[int]) -> tuple[str, ...]:
        """CIDRs that the container shall reach through this network by a route of their own."""
        if not (record.internal or options.pool_routes or not options.default_route):
            return ()
        own = [cidr for cidr in (*record.pools4, *record.pools6) if not cidr.endswith("/0")]
        everywhere = {ip.version for ip in map(_any, (*record.pools4, *record.pools6)) if ip is not None}
        own += [pool.spec.cidr for pool in self._view.pools() if pool.spec.version in everywhere and pool.spec.cidr]
        return tuple(dict.fromkeys(cidr for cidr in own if (6 if ":" in cidr else 4) in versions))


def mac_of(endpoint: str) -> str:
    """A locally administered MAC, the same whenever Docker asks for the same endpoint again."""
    return (b"\x02" + hashlib.sha256(endpoint.encode()).digest()[:5]).hex(":")


def workload_endpoint(
    node: str, call: CreateEndpoint, mac: str, profile: str, awaits_labels: bool = False
) -> WorkloadEndpoint:
    """The object that Felix and our agent understand (datamodel 3.2); marked where the agent is to find out the
    container's labels, of which Docker tells us nothing.
    """
    return WorkloadEndpoint(
        metadata=Metadata(
            name=names.workload_endpoint(node, call.endpoint),
            namespace=names.NAMESPACE,
            uid=str(uuid.uuid4()),
            creation_timestamp=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            labels={names.LABEL_NAMESPACE: names.NAMESPACE, names.LABEL_ORCHESTRATOR: names.ORCHESTRATOR},
            annotations={names.LABELS_AWAITED: "true"} if awaits_labels else {},
        ),
        spec=WorkloadEndpointSpec(
            orchestrator=names.ORCHESTRATOR,
            workload=names.WORKLOAD,
            node=node,
            endpoint=call.endpoint,
            ip_networks=tuple(f"{address}/{address.max_prefixlen}" for address in call.addresses),
            profiles=(profile,),
            interface_name=names.host_interface(call.endpoint),
            mac=mac,
        ),
    )


def joined(
    interface: str,
    prefix: str,
    number: int,
    versions: set[int],
    internal: bool,
    options: NetworkOptions,
    pool_routes: Sequence[str],
) -> Joined:
    """The answer to Join for hop `number`. Nothing of IPv6 for an endpoint without IPv6 address: Docker 20.10 could
    not start it.
    """
    hop: dict[int, IPv4Address | IPv6Address] = {4: hops.ipv4(number), 6: hops.ipv6(number)}
    default = options.default_route and not internal
    return Joined(
        interface=interface,
        prefix=prefix,
        gateway4=hops.ipv4(number) if default and 4 in versions else None,
        gateway6=hops.ipv6(number) if default and 6 in versions else None,
        connected=tuple(f"{hop[version]}/{hop[version].max_prefixlen}" for version in sorted(versions)),
        routed=tuple((cidr, str(hop[6 if ":" in cidr else 4])) for cidr in pool_routes),
    )


def _check_same(existing: WorkloadEndpoint, call: CreateEndpoint) -> None:
    wanted = {str(address) for address in call.addresses}
    if set(addresses(existing)) != wanted or (call.mac and call.mac != existing.spec.mac):
        raise Conflict(
            f"endpoint {call.endpoint}", existing, "it exists with other addresses or another MAC: delete it first"
        )


def _options(record: NetworkRecord) -> NetworkOptions:
    """A record may come from a newer driver, or from another host's agent: what we do not know counts as not given."""
    known = {name: value for name, value in record.options.items() if name in NETWORK_OPTIONS}
    try:
        return network_options(known)
    except InvalidInput as error:
        log.warning("a network's options count as not given", network=record.network_id, error=str(error))
        return NetworkOptions()


def _any(cidr: str) -> IPv4Address | IPv6Address | None:
    """The address part of 0.0.0.0/0 and ::/0, None for a real pool."""
    address, _, length = cidr.partition("/")
    return ip_address(address) if length == "0" else None


def _etcd(error: Exception) -> str:
    text = str(error)
    return text if "etcd" in text or "datastore" in text else f"etcd did not answer: {text}"
