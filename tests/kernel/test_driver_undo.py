"""Each step of a call fails in turn, and nothing is left; the janitor finds what only time can tell. In process, on
the real kernel.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Iterator, Sequence

import pytest

from calico_plugin.dataplane import veth
from calico_plugin.dataplane.netlink import Message, NetlinkPool, Reply
from calico_plugin.datastore.store import Store
from calico_plugin.datastore.watch import Listed
from calico_plugin.deadline import Deadline
from calico_plugin.driver.addresses import Addresses
from calico_plugin.driver.allocations import Allocations
from calico_plugin.driver.endpoints import Endpoints
from calico_plugin.driver.hops import Hops
from calico_plugin.driver.janitor import Janitor
from calico_plugin.driver.journal import Journal
from calico_plugin.driver.links import Links
from calico_plugin.driver.networks import Networks
from calico_plugin.driver.publishing import Publishing
from calico_plugin.driver.readiness import Readiness
from calico_plugin.driver.reservations import Reservations
from calico_plugin.driver.view import View
from calico_plugin.driver.wire import CreateEndpoint, EndpointCall, RequestAddress
from calico_plugin.errors import CalicoError, DataplaneError, DatastoreUnavailable, DeadlineExceeded
from calico_plugin.ipam.allocator import Allocator
from calico_plugin.model import codec, keys, names
from calico_plugin.model.docker import NetworkRecord
from tests.fakes.memory_kv import MemoryKV
from tests.kernel.driverlab import NODE, fill, namespace, wait_until

pytestmark = pytest.mark.root

NET, ENDPOINT = "a" * 64, "e" * 64
LINK = names.host_interface(ENDPOINT)


class FailingSockets:
    """Netlink whose n-th call fails, as if the kernel had refused it (0: none). Counts the calls of the test's own
    thread only: what Docker waits for, not what goes on in the background.
    """

    def __init__(self, sockets: NetlinkPool) -> None:
        self._sockets, self._thread = sockets, threading.current_thread()
        self.fail_at, self.seen = 0, 0

    def execute(self, *messages: Message) -> list[Reply]:
        self._count(messages)
        return self._sockets.execute(*messages)

    def send(self, messages: Sequence[Message]) -> list[Reply]:
        self._count(messages)
        return self._sockets.send(messages)

    def dump(self, message: Message) -> list[bytes]:
        return self._sockets.dump(message)

    def _count(self, messages: Sequence[Message]) -> None:
        self.seen += threading.current_thread() is self._thread
        if self.fail_at and self.seen == self.fail_at and threading.current_thread() is self._thread:
            raise DataplaneError(f"{messages[0].what}: the test says no", 1)


@dataclass
class Parts:
    kv: MemoryKV
    view: View
    sockets: FailingSockets
    real: NetlinkPool
    endpoints: Endpoints
    addresses: Addresses
    allocator: Allocator
    known: Allocations
    journal: Journal
    links: Links
    run_dir: Path
    readiness: Readiness

    def sync(self) -> None:
        """What the watch would bring."""
        items = {prefix: self.kv.list(prefix, Deadline(1)).items for prefix in self.view.prefixes}
        self.view.apply(Listed(items, self.kv.revision))

    def ready(self, endpoint: str) -> None:
        directory = self.run_dir / "endpoint-status"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / names.endpoint_status_file(endpoint)).write_text("{}")

    def janitor(self, later: float = 0.0, found: Sequence[veth.Link] = ()) -> Janitor:
        """One that lives `later` seconds from now."""
        return Janitor(
            self.kv,
            self.view,
            self.endpoints,
            self.addresses,
            self.known,
            self.journal,
            self.links,
            found,
            Publishing(self.kv, self.view, self.endpoints, self.readiness, Reservations()),  # type: ignore[arg-type]
            NODE,
            now=lambda: datetime.now(timezone.utc) + timedelta(seconds=later),
        )

    def given(self) -> set[str]:
        blocks = self.known._all_blocks(Deadline(1))
        from calico_plugin.driver.allocations import of_block

        return {str(one.address) for block in blocks for one in of_block(block)}

    def stored(self) -> int:
        return len(self.kv.list(keys.kind_prefix("WorkloadEndpoint"), Deadline(1)).items)

    def found_links(self) -> list[str]:
        return [link.name for link in veth.ours(self.real)]


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Parts]:
    kv = MemoryKV()
    fill(kv)  # type: ignore[arg-type]
    record = NetworkRecord(network_id=NET, name="web", profile="web", pools4=("0.0.0.0/0",))
    kv.put(keys.network(NET), codec.encode(record), Deadline(1))
    with namespace(f"cundo-{os.getpid()}-{time.monotonic_ns() % 100000}") as netns:
        real = NetlinkPool(netns)
        sockets = FailingSockets(real)
        view = View(NODE)
        links = Links(sockets, None, gather=0.01)
        run_dir = tmp_path / "run"
        readiness = Readiness(run_dir)
        journal = Journal(tmp_path / "lib")
        store: Any = kv
        hops, ports = Hops(run_dir), Reservations()
        endpoints = Endpoints(store, view, links, sockets, readiness, journal, hops, ports, NODE, "cali")
        allocator = Allocator(store, lambda text, labels: True, view)
        known = Allocations(store, view, NODE)
        addresses = Addresses(allocator, known, view, endpoints, journal, NODE)
        made = Parts(
            kv, view, sockets, real, endpoints, addresses, allocator, known, journal, links, run_dir, readiness
        )
        made.sync()
        yield made
        sockets.fail_at = 0
        links.close()
        readiness.close()
        real.close()


CREATE = CreateEndpoint(NET, ENDPOINT, (ip_address("10.77.1.1"), ip_address("fd77:77::1")), "")
JOIN = EndpointCall(NET, ENDPOINT, "/netns/box")


def test_every_step_of_create_and_join_fails_in_turn(parts: Parts) -> None:
    """After each failure Docker does what it does (DeleteEndpoint after a failed Join, nothing after a failed
    create).
    """
    parts.ready(ENDPOINT)
    failed = 0
    for step in range(1, 30):
        parts.sockets.seen, parts.sockets.fail_at = 0, step
        created = False
        try:
            parts.endpoints.create(CREATE, Deadline(5))
            created = True
            parts.endpoints.join(JOIN, Deadline(5))
        except DataplaneError as error:
            assert "the test says no" in str(error)
            failed += 1
        else:
            # More steps than there are: all went well.
            break
        finally:
            parts.sockets.fail_at = 0
        if created:
            parts.endpoints.delete(ENDPOINT, Deadline(5))
        wait_until(lambda: not parts.found_links(), f"links are gone after step {step}")
        assert parts.stored() == 0 and parts.view.endpoints() == () and not parts.endpoints._hops.held(LINK)
    assert failed >= 4
    parts.endpoints.delete(ENDPOINT, Deadline(5))


def test_a_commit_that_fails_takes_the_link_along(parts: Parts) -> None:
    """Whether etcd carried it out is not known: the journal sees to that it is not."""

    def fault(verb: str) -> None:
        if verb == "commit":
            raise DatastoreUnavailable("etcd is away")

    parts.kv.fault = fault
    with pytest.raises(DatastoreUnavailable, match="etcd"):
        parts.endpoints.create(CREATE, Deadline(5))
    parts.kv.fault = lambda verb: None
    wait_until(lambda: not parts.found_links(), "the link is gone")
    # As if etcd had carried it out after all.
    key = parts.endpoints.key(ENDPOINT)
    parts.kv.put(key, b"{}", Deadline(1))
    assert parts.janitor().work_off()
    assert parts.kv.get(key, Deadline(1)) is None and parts.journal.entries() == ()


def test_a_join_that_is_not_answered_by_the_agent_frees_its_hop(parts: Parts) -> None:
    parts.endpoints.create(CREATE, Deadline(5))
    with pytest.raises(DeadlineExceeded, match="calico-agent"):
        parts.endpoints.join(JOIN, Deadline(0.2))
    assert not parts.endpoints._hops.held(LINK)
    parts.endpoints.delete(ENDPOINT, Deadline(5))


def test_a_link_that_is_gone_is_made_again_by_join(parts: Parts) -> None:
    """Somebody removed it between the calls."""
    parts.endpoints.create(CREATE, Deadline(5))
    one = CreateEndpoint(NET, "1" * 64, (ip_address("10.77.1.9"),), "")
    parts.endpoints.create(one, Deadline(5))
    veth.remove_one(parts.real, names.host_interface("1" * 64))
    threading.Timer(1.5, parts.ready, ("1" * 64,)).start()
    parts.endpoints.join(EndpointCall(NET, "1" * 64, "/netns/box"), Deadline(5))
    assert names.host_interface("1" * 64) in parts.found_links()
    parts.endpoints.delete("1" * 64, Deadline(5))
    wait_until(lambda: parts.found_links() == [LINK], "it is gone again")
    assert parts.found_links() == [LINK]
    parts.endpoints.delete(ENDPOINT, Deadline(5))


def test_a_failed_create_network_leaves_no_record(parts: Parts) -> None:
    from calico_plugin.driver.options import NetworkOptions
    from calico_plugin.driver.wire import CreateNetwork

    def fault(verb: str) -> None:
        if verb == "commit":
            raise DatastoreUnavailable("etcd is away")

    networks = Networks(Store(parts.kv), parts.view, NODE)  # type: ignore[arg-type]
    parts.kv.fault = fault
    with pytest.raises(DatastoreUnavailable):
        networks.create(CreateNetwork("b" * 64, NetworkOptions(), {}, False, False, (), ()), Deadline(1))
    parts.kv.fault = lambda verb: None
    assert parts.view.network("b" * 64) is None


# The janitor


def give(parts: Parts, address: str = "") -> str:
    wanted = RequestAddress("CalicoPoolIPv4", ip_address(address) if address else None, False)
    return parts.addresses.request(wanted, Deadline(5)).split("/")[0]


def forget(parts: Parts) -> None:
    """As after a restart: the process no longer knows what it gave."""
    parts.addresses._given_here.clear()


def test_an_address_that_never_got_an_endpoint_is_freed(parts: Parts) -> None:
    """But not before the grace time, nor while this process knows that it gave it a moment ago."""
    address = give(parts)
    assert parts.janitor(later=3600).sweep(everywhere=False) == 0
    forget(parts)
    assert parts.janitor(later=30).sweep(everywhere=False) == 0
    assert parts.given() == {address}
    assert parts.janitor(later=90).sweep(everywhere=False) == 1
    assert parts.given() == set()


def test_addresses_in_use_stay(parts: Parts) -> None:
    """Of endpoints, also of those that the view has not heard of yet; of networks; of other nodes; and tunnels'."""
    mine = give(parts)
    parts.endpoints.create(CreateEndpoint(NET, ENDPOINT, (ip_address(mine),), ""), Deadline(5))
    unseen = give(parts)
    other = CreateEndpoint(NET, "d" * 64, (ip_address(unseen),), "")
    from calico_plugin.driver.endpoints import workload_endpoint

    parts.kv.put(
        parts.endpoints.key("d" * 64),
        codec.encode(workload_endpoint(NODE, other, "02:00:00:00:00:01", "web")),
        Deadline(1),
    )
    reserved = give(parts)
    record = NetworkRecord(network_id="b" * 64, reserved={reserved: "router"})
    parts.kv.put(keys.network("b" * 64), codec.encode(record), Deadline(1))
    tunnel = {"node": NODE, "type": "vxlanTunnelAddress"}
    parts.allocator.assign("10.77.5.5", NODE, deadline=Deadline(5), handle="vxlan-tunnel-addr-x", attributes=tunnel)
    parts.allocator.assign("10.77.5.6", NODE, deadline=Deadline(5), attributes={"node": "host-b"})
    parts.allocator.assign("10.77.5.7", NODE, deadline=Deadline(5))
    forget(parts)
    assert parts.janitor(later=3600).sweep(everywhere=True) == 0
    assert parts.given() == {mine, unseen, reserved, "10.77.5.5", "10.77.5.6", "10.77.5.7"}
    parts.endpoints.delete(ENDPOINT, Deadline(5))


def test_an_endpoint_that_does_not_parse_stops_the_sweep(parts: Parts) -> None:
    """It might have any address: nothing is freed until somebody repaired or deleted it."""
    give(parts)
    forget(parts)
    parts.kv.put(parts.endpoints.key(ENDPOINT), b"{broken", Deadline(1))
    with pytest.raises(CalicoError, match="does not parse"):
        parts.janitor(later=3600).sweep(everywhere=False)
    assert len(parts.given()) == 1


def test_an_address_given_anew_between_look_and_release_stays(parts: Parts) -> None:
    """The sequence number tells the two owners apart."""
    address = give(parts)
    (seen,) = parts.known.of_node(Deadline(1), everywhere=False)
    parts.allocator.release([address], Deadline(1))
    parts.allocator.assign(address, NODE, deadline=Deadline(1), attributes={"node": NODE})
    assert not parts.janitor()._free(seen, Deadline(1))
    assert parts.given() == {address}


def test_borrowed_addresses_are_found_in_other_hosts_blocks(parts: Parts) -> None:
    """An address of ours in another's block is seen only when all blocks are looked at."""
    fill(parts.kv, ("host-b",))  # type: ignore[arg-type]
    parts.sync()
    theirs = str(
        parts.allocator.auto_assign("host-b", deadline=Deadline(5), attributes={"node": NODE}).addresses[0].ip
    )
    assert parts.janitor(later=3600).sweep(everywhere=False) == 0
    assert parts.janitor(later=3600).sweep(everywhere=True) == 1
    assert theirs not in parts.given()


def test_a_journalled_release_spares_a_later_owner(parts: Parts) -> None:
    """The release was carried out although its answer was lost, and the address was given anew."""
    address = give(parts)
    parts.journal.add("address", address)
    parts.allocator.release([address], Deadline(1))
    time.sleep(1.1)
    again = give(parts, address)
    assert parts.janitor().work_off()
    assert parts.given() == {again} and parts.journal.entries() == ()


def test_links_of_a_killed_predecessor_go(parts: Parts) -> None:
    """Without endpoint and without a container at the other end. Those with either stay."""
    for number, endpoint in enumerate(("1" * 64, "2" * 64, "3" * 64)):
        pair = veth.Veth(names.host_interface(endpoint), names.temporary_interface(endpoint), "02:00:00:00:00:11")
        veth.create(parts.real, pair)
    parts.endpoints.create(CreateEndpoint(NET, "2" * 64, (ip_address("10.77.1.2"),), ""), Deadline(5))
    found = [
        veth.Link(link.name, link.index, running=link.name == names.host_interface("3" * 64))
        for link in veth.ours(parts.real)
    ]
    parts.janitor(found=found).remove_orphans()
    kept = {names.host_interface("2" * 64), names.host_interface("3" * 64)}
    wait_until(lambda: set(parts.found_links()) == kept, "the orphan is gone")
    parts.endpoints.delete("2" * 64, Deadline(5))


def test_the_janitors_thread_works_and_stops(parts: Parts) -> None:
    """It wakes for the journal, and `close` does not wait for its next sweep."""
    parts.kv.put(parts.endpoints.key(ENDPOINT), b"{}", Deadline(1))
    janitor = parts.janitor()
    janitor.start()
    parts.journal.add("endpoint", ENDPOINT)
    wait_until(lambda: parts.stored() == 0, "the endpoint is deleted")
    started = time.monotonic()
    janitor.close()
    assert time.monotonic() - started < 2
