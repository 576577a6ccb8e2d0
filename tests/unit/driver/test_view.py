"""The driver's picture of etcd: events and own writes in any order end in the same picture."""

from __future__ import annotations

import threading
from ipaddress import ip_address

import pytest

from calico_plugin.datastore.kv import Change, KeyValue
from calico_plugin.datastore.watch import Broken, Changes, Listed
from calico_plugin.deadline import Deadline
from calico_plugin.driver.endpoints import workload_endpoint
from calico_plugin.driver.view import View
from calico_plugin.driver.wire import CreateEndpoint
from calico_plugin.errors import DatastoreUnavailable
from calico_plugin.model import codec, keys, names
from calico_plugin.model.docker import NetworkRecord
from calico_plugin.model.resources import IPPool, IPReservation, Metadata, Node
from calico_plugin.model.resources.ipam import IPPoolSpec, IPReservationSpec

NODE = "rack1-h7"


def endpoint(name: str, address: str = "10.9.0.1", node: str = NODE) -> tuple[str, bytes]:
    value = workload_endpoint(
        node, CreateEndpoint("net", name, (ip_address(address),), ""), "02:00:00:00:00:01", "web"
    )
    return keys.resource("WorkloadEndpoint", value.name, names.NAMESPACE), codec.encode(value)


def put(key: str, value: bytes, revision: int) -> Changes:
    return Changes((Change(key, KeyValue(key, value, revision, revision), revision),))


def gone(key: str, revision: int) -> Changes:
    return Changes((Change(key, None, revision),))


def listed(revision: int, **items: tuple[str, bytes, int]) -> Listed:
    return Listed({"any": tuple(KeyValue(key, value, at, at) for key, value, at in items.values())}, revision)


def test_nothing_is_known_before_the_first_list() -> None:
    """The error says what etcd did; it is the user's first sight of a wrong address."""
    view = View(NODE)
    view.apply(Broken(DatastoreUnavailable("etcd at http://1.2.3.4:2379 refuses connections")))
    with pytest.raises(DatastoreUnavailable, match="1.2.3.4"):
        view.wait_synced(Deadline(0.01))
    view.apply(listed(1))
    view.wait_synced(Deadline(0.01))


def test_endpoints_of_this_node_only() -> None:
    """The prefix of node rack1 also matches the keys of rack1-h7: the object decides."""
    view = View("rack1")
    mine, other = endpoint("aaa", node="rack1"), endpoint("bbb", "10.9.0.2", node="rack1-h7")
    view.apply(listed(5, one=(*mine, 3), two=(*other, 4)))
    assert [known.spec.endpoint for known in view.endpoints()] == ["aaa"]
    assert (view.owner_of("10.9.0.1"), view.owner_of("10.9.0.2")) == ("aaa", None)


def test_own_writes_are_seen_at_once() -> None:
    view = View(NODE)
    view.apply(listed(5))
    view.wrote(*endpoint("aaa"), 6)
    assert view.endpoint("aaa") is not None and view.owner_of("10.9.0.1") == "aaa"


def test_a_late_event_does_not_bring_back_what_we_deleted() -> None:
    """The watch tells of the create after we have deleted already."""
    view = View(NODE)
    view.apply(listed(5))
    key, value = endpoint("aaa")
    view.wrote(key, value, 6)
    view.removed(key, 7)
    view.apply(put(key, value, 6))
    assert view.endpoint("aaa") is None and view.owner_of("10.9.0.1") is None
    view.apply(gone(key, 7))
    view.apply(put(key, value, 8))
    assert view.endpoint("aaa") is not None


def test_a_late_delete_does_not_take_away_what_was_made_anew() -> None:
    view = View(NODE)
    view.apply(listed(5))
    key, value = endpoint("aaa")
    view.wrote(key, value, 9)
    view.apply(gone(key, 7))
    assert view.endpoint("aaa") is not None


def test_a_list_that_is_older_than_our_write_changes_nothing_of_it() -> None:
    """After a broken stream everything is listed again; what we wrote meanwhile may not be in that list."""
    view = View(NODE)
    view.apply(listed(5))
    key, value = endpoint("aaa")
    view.wrote(key, value, 9)
    view.apply(listed(8))
    assert view.endpoint("aaa") is not None
    view.apply(listed(10))
    assert view.endpoint("aaa") is None


def test_an_address_follows_its_newest_endpoint() -> None:
    view = View(NODE)
    view.apply(listed(5, one=(*endpoint("aaa"), 3)))
    view.wrote(*endpoint("bbb"), 6)
    view.removed(endpoint("aaa")[0], 6)
    assert view.owner_of("10.9.0.1") == "bbb"


def test_a_value_that_does_not_parse_counts_as_absent() -> None:
    view = View(NODE)
    view.apply(listed(5, one=(endpoint("aaa")[0], b"{broken", 3), two=(keys.network("net"), b"[]", 4)))
    assert view.endpoints() == () and view.networks() == ()


def test_waiting_for_a_network_ends_when_it_is_named() -> None:
    """Docker tells the driver of a network, the agent names it a moment later."""
    view = View(NODE)
    view.apply(listed(5))
    key = keys.network("net")
    view.wrote(key, codec.encode(NetworkRecord(network_id="net")), 6)
    assert view.await_network("net", Deadline(0.01)) == NetworkRecord(network_id="net")
    named = NetworkRecord(network_id="net", name="web", profile="web")
    threading.Timer(0.05, lambda: view.apply(put(key, codec.encode(named), 7))).start()
    assert view.await_network("net", Deadline(5)) == named


def test_the_allocators_inputs_are_kept_until_something_changes() -> None:
    """Same object as long as nothing changed; the revision of the reservations moves on with them."""
    view = View(NODE)
    pool = IPPool(metadata=Metadata(name="a"), spec=IPPoolSpec(cidr="10.9.0.0/16"))
    node = Node(metadata=Metadata(name=NODE, labels={"rack": "1"}))
    view.apply(
        listed(
            5,
            pool=(keys.resource("IPPool", "a"), codec.encode(pool), 3),
            node=(keys.resource("Node", NODE), codec.encode(node), 4),
        )
    )
    before = view.inputs(Deadline(1))
    assert [str(one.cidr) for one in before.pools] == ["10.9.0.0/16"]
    assert view.inputs(Deadline(1)) is before
    found = view.node(NODE, Deadline(1))
    assert found is not None and (dict(found.labels), found.revision) == ({"rack": "1"}, 4)
    assert view.node("another", Deadline(1)) is None
    reservation = IPReservation(metadata=Metadata(name="r"), spec=IPReservationSpec(reserved_cidrs=("10.9.1.0/24",)))
    view.apply(put(keys.resource("IPReservation", "r"), codec.encode(reservation), 9))
    after = view.inputs(Deadline(1))
    assert after is not before and int(ip_address("10.9.1.7")) in after.reservations[4]
    assert {compare.revision for compare in after.compares if compare.prefix} == {9}
