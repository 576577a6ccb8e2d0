"""Who is called what, and who may know."""

from __future__ import annotations

import itertools
import random

import pytest

from calico_plugin.model.docker import EndpointNames
from calico_plugin.naming import wire
from calico_plugin.naming.index import EndpointId, Index

HERE, THERE = "host1", "host2"


def add(index: Index, node: str, endpoint: str, network: str, *names: str, address: str, container: str = "") -> None:
    key = (node, endpoint)
    index.on_names(key, EndpointNames(container=container or f"{node} {names[0]}", network=network, names=names))
    index.on_addresses(key, (address,))


def world() -> Index:
    """`web` and `db` on host2 in net1; here a member of net1, one of net2, and one of both."""
    index = Index(HERE)
    add(index, THERE, "e1", "net1", "web", "www", address="10.0.2.1")
    add(index, THERE, "e2", "net1", "db", "www", address="10.0.2.2")
    add(index, THERE, "e3", "net2", "db", address="10.0.2.3")
    add(index, HERE, "e4", "net1", "one", address="10.0.1.1")
    add(index, HERE, "e5", "net2", "two", address="10.0.1.2")
    add(index, HERE, "e6", "net1", "both", address="10.0.1.3", container="c")
    add(index, HERE, "e7", "net2", "both", address="10.0.1.4", container="c")
    return index


@pytest.mark.parametrize(
    "asker, name, found",
    [
        ("10.0.1.1", "web", ("10.0.2.1",)),
        ("10.0.1.1", "web.net1", ("10.0.2.1",)),
        ("10.0.1.1", "www", ("10.0.2.1", "10.0.2.2")),
        ("10.0.1.1", "db", ("10.0.2.2",)),
        ("10.0.1.1", "db.net2", None),
        ("10.0.1.2", "db", ("10.0.2.3",)),
        ("10.0.1.2", "web", None),
        ("10.0.1.3", "db", ("10.0.2.2", "10.0.2.3")),
        ("10.0.1.4", "web", ("10.0.2.1",)),
        ("10.0.1.1", "both", ("10.0.1.3",)),
        ("10.0.1.1", "nobody", None),
    ],
)
def test_a_container_finds_those_of_its_networks(asker: str, name: str, found: tuple[str, ...] | None) -> None:
    """All of its networks, whichever address it asks from; by name, alias and name.network."""
    index = world()
    networks = index.networks_of(asker)
    assert networks is not None and index.addresses(name, networks) == found


def test_askers() -> None:
    """Containers of this host only; also from an address that is another driver's."""
    index = world()
    index.on_askers({"172.18.0.2": "c", "172.18.0.3": "no container of ours"})
    assert index.networks_of("172.18.0.2") == {"net1", "net2"}
    assert index.networks_of("172.18.0.3") is None and index.networks_of("10.0.2.1") is None


@pytest.mark.parametrize(
    "name, found",
    [
        ("web", ("10.0.2.1",)),
        ("www", ("10.0.2.1", "10.0.2.2")),
        ("db", None),
        ("db.net1", ("10.0.2.2",)),
        ("db.net2", ("10.0.2.3",)),
        ("one", None),
        ("one.net1", None),
        ("nobody", None),
    ],
)
def test_where_docker_asks_for_somebody_here(name: str, found: tuple[str, ...] | None) -> None:
    """A bare name that two networks have is not answered, nor one that Docker itself has answered."""
    assert world().addresses_for_host(name) == found


def test_a_network_that_nobody_here_is_on_is_none_of_this_hosts_business() -> None:
    """Its names do not make others ambiguous, and are not answered themselves."""
    index = world()
    add(index, THERE, "e8", "net3", "web", "only", address="10.0.2.8")
    assert index.addresses_for_host("web") == ("10.0.2.1",)
    assert index.addresses_for_host("only") is None and index.addresses_for_host("only.net3") is None


def test_a_name_here_leaves_the_other_network() -> None:
    """Who asks for what is here in net1 is not in net1: net2 is meant."""
    index = world()
    add(index, HERE, "e9", "net1", "db", address="10.0.1.9")
    assert index.addresses_for_host("db") == ("10.0.2.3",)


def test_reversed() -> None:
    """Name and network, for those who may know."""
    index = world()
    assert index.titles("10.0.2.1", {"net1"}) == ("web.net1",) == index.titles("10.0.2.1", None)
    assert index.titles("10.0.2.1", {"net2"}) is None and index.titles("10.9.9.9", None) is None


def test_a_name_ends_with_its_endpoint() -> None:
    """Whoever forgot the record; and comes back with it. Order does not matter."""
    index = world()
    index.on_addresses((THERE, "e1"), None)
    assert index.addresses("web", {"net1"}) is None and index.addresses("www", {"net1"}) == ("10.0.2.2",)
    index.on_addresses((THERE, "e1"), ("10.0.2.9", "fd00::9"))
    assert index.addresses("WEB".lower(), {"net1"}) == ("10.0.2.9", "fd00::9")


def test_renamed() -> None:
    index = world()
    index.on_names((THERE, "e1"), EndpointNames(container="x", network="net1", names=("shop",)))
    assert index.addresses("web", {"net1"}) is None and index.addresses("shop", {"net1"}) == ("10.0.2.1",)


def test_names_that_dns_cannot_hold_are_left_out() -> None:
    """They do no harm to the others."""
    index = Index(HERE)
    add(index, THERE, "e1", "net1", "web", "a" * 64, "", "grün", "a..b", "a b", "Big", address="10.0.2.1")
    for name in ("a" * 64, "", "grün", "a..b", "a b"):
        assert index.addresses(name, {"net1"}) is None
    assert index.addresses("big", {"net1"}) == ("10.0.2.1",)


def test_state_depends_on_content_only() -> None:
    """Any order of changes, each twice, with detours: the same as from nothing."""
    steps: list[tuple[str, EndpointId, object]] = []
    for number, (node, network) in enumerate(itertools.product((HERE, THERE), ("net1", "net2"))):
        for name in ("a", "b"):
            key = (node, f"{number}{name}")
            record = EndpointNames(container=f"{node}{name}", network=network, names=(name, f"alias{number}"))
            steps += [("on_names", key, record), ("on_addresses", key, (f"10.0.{number}.{ord(name)}",))]

    def ask(index: Index) -> list[object]:
        names = [name for name in ("a", "b", "alias0", "a.net1", "b.net2")]
        return [
            len(index), index.prefixes,
            *(sorted(index.addresses(name, {"net1", "net2"}) or ()) for name in names),
            *(sorted(index.addresses_for_host(name) or ()) for name in names),
            *(index.networks_of(f"10.0.{number}.97") for number in range(4)),
        ]

    wanted = Index(HERE)
    for verb, key, value in steps:
        getattr(wanted, verb)(key, value)
    chance = random.Random(7)
    for _ in range(20):
        index = Index(HERE)
        for verb, key, value in [*chance.sample(steps, len(steps)), *chance.sample(steps, len(steps))]:
            if chance.random() < 0.3:
                getattr(index, verb)(key, None)
            getattr(index, verb)(key, value)
        assert ask(index) == ask(wanted)
        for verb, key, _ in chance.sample(steps, len(steps)):
            getattr(index, verb)(key, None)
        assert ask(index) == ask(Index(HERE))


@pytest.mark.parametrize(
    "name, first",
    [("web", "03574542"), ("WEB.net1", "03574542"), ("a", "01410000"), ("ab", "02414200"), ("a.bc", "01410242"),
     ("a-b_c", "05410d42"), ("1.0.0.10.in-addr.arpa", "01110110")],
)
def test_first_bytes(name: str, first: str) -> None:
    """As the kernel sees them, without case."""
    assert wire.prefix(name).hex() == first


def test_prefixes_are_those_of_all_questions() -> None:
    index = Index(HERE)
    add(index, THERE, "e1", "net1", "web", address="10.0.0.1")
    assert index.prefixes == {wire.prefix(name) for name in ("web", "web.net1", "1.0.0.10.in-addr.arpa")}
    index.on_addresses((THERE, "e1"), None)
    assert index.prefixes == set()
