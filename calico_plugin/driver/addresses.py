"""What the IPAM calls mean.

An address is given in one commit and taken back in one. Containers' addresses carry the node and the time; a gateway
or auxiliary address of a network carries a handle and attributes that say so. ReleaseAddress is all that Docker sends
for a container that a crash of dockerd took away (v1 plugins): the endpoint that still has the address goes with it.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from datetime import datetime, timezone
from ipaddress import ip_address, ip_network

import structlog

from calico_plugin.deadline import Clock, Deadline
from calico_plugin.driver import allocations, pools
from calico_plugin.driver.allocations import NODE, TIMESTAMP, TYPE, Allocation, Allocations
from calico_plugin.driver.endpoints import DATASTORE_SECONDS, Endpoints
from calico_plugin.driver.journal import ADDRESS, Journal
from calico_plugin.driver.pools import Granted, Pool
from calico_plugin.driver.view import View
from calico_plugin.driver.wire import CreateNetwork, IPAddress, ReleaseAddress, RequestAddress, RequestPool
from calico_plugin.errors import (
    AlreadyExists,
    CalicoError,
    Conflict,
    DatastoreError,
    DatastoreUnavailable,
    DeadlineExceeded,
    InvalidInput,
    PoolExhausted,
)
from calico_plugin.ipam.allocator import Allocator
from calico_plugin.ipam.releasing import Release

log = structlog.get_logger(part="addresses")

# Docker (up to 29) asks again without end when an automatic pool overlaps something on the host: thousands of times a
# second.
_STORM_CALLS, _STORM_SECONDS = 200, 2.0
# Longer than Docker takes from RequestAddress to CreateEndpoint's answer.
_UNBOUND_SECONDS = 30.0


class Addresses:
    """Shared by all threads."""

    def __init__(
        self,
        allocator: Allocator,
        known: Allocations,
        view: View,
        endpoints: Endpoints,
        journal: Journal,
        node: str,
        clock: Clock = time.monotonic,
    ) -> None:
        self._allocator, self._known, self._view = allocator, known, view
        self._endpoints, self._journal, self._node, self._clock = endpoints, journal, node, clock
        self._lock = threading.Lock()
        # Addresses that this process gave, and when.
        self._given_here: dict[str, float] = {}
        # Reserved addresses that were granted once more, and to no network yet: how often.
        self._shared: Counter[str] = Counter()
        self._storm = _Storm(clock)

    def request_pool(self, call: RequestPool, deadline: Deadline) -> Granted:
        self._view.wait_synced(deadline.sooner(DATASTORE_SECONDS))
        granted = pools.grant(call, self._view.pools())
        if call.pool is None and call.version == 6:
            self._storm.count(granted)
        return granted

    def request(self, call: RequestAddress, deadline: Deadline) -> str:
        """An address with its prefix length: that of one host, since containers are routed, not bridged."""
        within = deadline.sooner(DATASTORE_SECONDS)
        try:
            self._view.wait_synced(within)
            pool = pools.parse(call.pool_id, self._view.pools())
            if call.address is None:
                return self._automatic(pool, within)
            return self._given(call, call.address, pool, within)
        except DeadlineExceeded as error:
            raise DatastoreUnavailable(f"no address can be given: etcd did not answer in time ({error})") from error

    def release(self, call: ReleaseAddress, deadline: Deadline) -> None:
        """Take an address back. One that is nobody's, or another's by now, is left alone."""
        address = call.address
        if address is None or self._unshare(str(address)) or self._is_reserved_twice(str(address)):
            return
        try:
            if self._unbind(str(address), deadline):
                self._take_back(address, self._endpoints.for_delete(deadline))
        except (DatastoreError, DeadlineExceeded) as error:
            self._journal.add(ADDRESS, str(address))
            raise DatastoreUnavailable(
                f"address {address} will be given back as soon as the datastore answers; etcd: {error}"
            ) from error

    def name_reserved(self, call: CreateNetwork, deadline: Deadline) -> None:
        """The gateway and auxiliary addresses of a new network say from now on what they are."""
        for address, name in call.reserved.items():
            kind = allocations.GATEWAY_TYPE if name == "gateway" else allocations.AUXILIARY_TYPE
            if self._view.inputs(deadline).pool_of(address.version, int(address)) is not None:
                self._known.name(address, kind, name, deadline)
                self._forget(str(address))
                self._unshare(str(address))

    def finish_release(self, address: str, since: float, deadline: Deadline) -> None:
        """Take back what a failed ReleaseAddress at Unix time `since` was about, unless it was given anew since."""
        owner = self._known.find(ip_address(address), deadline)
        if (
            owner is None
            or not owner.by_driver
            or owner.node != self._node
            or self._view.owner_of(address) is not None
        ):
            return
        # Times are stored in whole seconds; this node's own clock wrote both.
        if owner.since is not None and owner.since.timestamp() > since:
            return
        self.free(owner, deadline)

    def free(self, owner: Allocation, deadline: Deadline) -> None:
        """Take back exactly the allocation that was seen. Raises Conflict when it is another by now."""
        self._allocator.release([Release(owner.address, sequence=owner.sequence)], deadline)
        self._forget(str(owner.address))

    def recent(self, address: str, seconds: float) -> bool:
        """Whether this process gave the address so recently that its endpoint may still be on its way."""
        return self._clock() - self._given_here.get(address, float("-inf")) < seconds

    def _automatic(self, pool: Pool, deadline: Deadline) -> str:
        assigned = self._allocator.auto_assign(
            self._node,
            version=pool.version,
            deadline=deadline,
            attributes=self._attributes(),
            pools=[str(pool.cidr)] if pool.cidr is not None else None,
            within=str(pool.within) if pool.within is not None else None,
        )
        given = assigned.addresses[0].ip
        self._remember(str(given))
        return f"{given}/{given.max_prefixlen}"

    def _given(self, call: RequestAddress, address: IPAddress, pool: Pool, deadline: Deadline) -> str:
        if not pool.holds(address):
            raise InvalidInput("Address", str(address), f"it lies outside of {pool.cidr or pool.id}")
        handle = allocations.handle(allocations.GATEWAY_TYPE, address) if call.gateway else None
        attributes = {**self._attributes(), **({TYPE: allocations.GATEWAY_TYPE} if call.gateway else {})}
        try:
            self._allocator.assign(address, self._node, deadline=deadline, handle=handle, attributes=attributes)
        except AlreadyExists as error:
            if self._check_same_use(call, address, error, deadline):
                return self._given(call, address, pool, deadline)
        else:
            if not call.gateway:
                self._remember(str(address))
        length = pool.cidr.prefixlen if call.gateway and pool.cidr is not None else address.max_prefixlen
        return f"{address}/{length}"

    def _check_same_use(
        self, call: RequestAddress, address: IPAddress, error: CalicoError, deadline: Deadline
    ) -> bool:
        """No conflict is what the same network on another host has reserved in the same way, nor what a container that
        is gone has left: that is freed, and True tells to try again. All else is one.

        Docker asks for an auxiliary address as for a container's: a container is refused in CreateEndpoint.
        """
        owner = self._known.find(address, deadline)
        if owner is None:
            raise error
        if not call.gateway and self._is_left_over(owner):
            log.warning("an address that a container left behind is given anew", address=str(address))
            self.free(owner, deadline)
            return True
        if owner.type == (allocations.GATEWAY_TYPE if call.gateway else allocations.AUXILIARY_TYPE):
            with self._lock:
                self._shared[str(address)] += 1
            return False
        where = f" on node {owner.node}" if owner.node else ""
        what = f" ({owner.type})" if owner.type else ""
        hint = f"the address is in use{where}{what}: choose another one, or leave the choice to calico-ipam"
        raise InvalidInput("address", str(address), hint) from error

    def _is_left_over(self, owner: Allocation) -> bool:
        """Whether it was a container's of this node that is no more. After a power loss, or while no driver answered,
        nobody has released it; Docker asks for it again by its number, for the same container.
        """
        if owner.node != self._node or not owner.by_driver or owner.type:
            return False
        endpoint = self._view.owner_of(str(owner.address))
        if endpoint is not None:
            return self._endpoints.is_gone(endpoint)
        # Its endpoint may still be on its way.
        age = (datetime.now(timezone.utc) - owner.since).total_seconds() if owner.since else 0.0
        return age > _UNBOUND_SECONDS and not self.recent(str(owner.address), _UNBOUND_SECONDS)

    def _unbind(self, address: str, deadline: Deadline) -> bool:
        """Remove the endpoint that still has the address; False when the endpoint is alive and must keep it."""
        owner = self._view.owner_of(address)
        if owner is None:
            return True
        if ":" in address and self._endpoints.just_joined(owner):
            # Docker 29 gives the IPv6 address of a running container back when its sysctls forbid IPv6. An IPv4 address
            # comes back when the container is no more, however short its life was: dockerd may have crashed.
            log.info("kept the address of a running container", address=address, endpoint=owner)
            return False
        log.warning("removing the endpoint of a released address", address=address, endpoint=owner)
        self._endpoints.delete(owner, deadline)
        return True

    def _take_back(self, address: IPAddress, deadline: Deadline) -> None:
        wanted = Release(address, handle="")
        if str(address) not in self._given_here:
            # Given before this process started, or never: look whose it is, lest a late call takes another's away.
            owner = self._known.find(address, deadline)
            # What networks of several hosts have reserved may be another node's: the last of them is ours.
            if owner is None or not owner.by_driver or (owner.node != self._node and not owner.type):
                return
            wanted = Release(address, sequence=owner.sequence)
        try:
            self._allocator.release([wanted], deadline)
        except Conflict as error:
            log.warning("a released address is another's by now", address=str(address), error=str(error))
        self._forget(str(address))
        self._journal.remove(ADDRESS, str(address))

    def _unshare(self, address: str) -> bool:
        """Take one grant of an address back that another network has reserved; False when there was none."""
        with self._lock:
            self._shared[address] -= 1
            was_shared = self._shared[address] >= 0
            self._shared += Counter()
            return was_shared

    def _is_reserved_twice(self, address: str) -> bool:
        """What networks of several hosts have reserved goes with the last of them. (Docker releases before
        DeleteNetwork.)
        """
        return sum(address in record.reserved for record in self._view.networks()) > 1

    def _attributes(self) -> dict[str, str]:
        return {NODE: self._node, TIMESTAMP: allocations.now()}

    def _remember(self, address: str) -> None:
        with self._lock:
            self._given_here[address] = self._clock()

    def _forget(self, address: str) -> None:
        with self._lock:
            self._given_here.pop(address, None)


class _Storm:
    """Ends Docker's endless questions for an automatic IPv6 pool that overlaps a name server of the host."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._start, self._calls = 0.0, 0

    def count(self, granted: Granted) -> None:
        with self._lock:
            now = self._clock()
            if now - self._start > _STORM_SECONDS:
                self._start, self._calls = now, 0
            self._calls += 1
            if self._calls <= _STORM_CALLS:
                return
        raise PoolExhausted(
            f"the automatic IPv6 pool {ip_network(granted.pool)} overlaps an address that this host uses, "
            "perhaps a name server: name the pool with --subnet"
        )
