"""Containers of two hosts find each other by name, while names of the world come from a real DNS server.

The server is the fabric's, 172.20.62.1, as each host's /etc/resolv.conf says.
"""
from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Callable, Iterator

import pytest

from tests.lab import twohosts
from tests.lab.connectivity import Container, start_container
from tests.lab.lab import FABRIC, Lab
from tests.lab.spec import GATEWAY
from tests.lab.twohosts import CREATE, everywhere
from tests.lab.wait import wait_for

SERVER = Path(__file__).parents[1] / "dns_server.py"
OUTSIDE, OUTSIDE_ADDRESS = "up.test", "192.0.2.7"
# A name is known elsewhere, and forgotten, within so much (it takes 0.1 s; to ask takes longer).
SECONDS, PATIENCE = 5.0, 20.0
tidy = pytest.fixture(autouse=True)(twohosts.tidy)
Run = Callable[..., Container]


@pytest.fixture(scope="module", autouse=True)
def server(pair: Lab) -> Iterator[None]:
    """The world's DNS server."""
    words = (sys.executable, str(SERVER), str(GATEWAY.ip), f"{OUTSIDE}={OUTSIDE_ADDRESS}")
    log = pair[FABRIC].logs / "dns.log"
    log.unlink(missing_ok=True)
    pair[FABRIC].spawn(log.name, *words)
    wait_for("the DNS server", lambda: log.exists() and "ready" in log.read_text(), 20)
    yield
    for process in pair[FABRIC].processes():
        if str(SERVER) in process.argv:
            process.end()


@pytest.fixture
def run(pair: Lab) -> Run:
    """`run(host, name, network, *docker_options)`; all are removed after the test."""
    def start(host: str, name: str, network: str, *options: str) -> Container:
        return start_container(pair, host, name, network, "--init", *options)

    return start


@pytest.fixture
def network(pair: Lab) -> Callable[..., str]:
    """`network(name, *options)` on both hosts."""
    def make(name: str, *options: str) -> str:
        pair["host1"].run(*CREATE, *options, name)
        everywhere(pair, name)
        return name

    return make


def found(asker: Container, name: str) -> set[str] | None:
    """Addresses that a program in the container finds; None for no such name. No part of the answer may say so."""
    # busybox waits for a second only, which is short where much else is going on.
    return wait_for(f"any answer about {name}", lambda: _asked(asker, name), PATIENCE)[0]


def _asked(asker: Container, name: str) -> tuple[set[str] | None]:
    """What `nslookup` says; an AssertionError for no answer at all."""
    lines = asker.run("nslookup", name, check=False).splitlines()
    if any("NXDOMAIN" in line for line in lines):
        return (None,)
    assert lines and not any("timed out" in line or "SERVFAIL" in line for line in lines), lines
    # The first is the server's.
    return ({line.split()[-1] for line in lines if line.startswith("Address")} - {"127.0.0.11:53"},)


def soon(asker: Container, name: str, wanted: set[str] | None) -> float:
    """Wait until that is found; how long it took."""
    began = time.monotonic()

    def as_wanted() -> bool:
        seen = found(asker, name)
        assert seen == wanted, f"{asker.name} finds {name} at {seen}"
        return True

    wait_for(f"{name} at {wanted}", as_wanted, PATIENCE, 0.05)
    return time.monotonic() - began


def test_by_name_on_both_hosts(pair: Lab, network: Callable[..., str], run: Run) -> None:
    """Name, alias, name.network, short id, host name, both ways, at once; the outside as ever, also without the agent;
    renamed; gone.
    """
    net = network("nam_one")
    one, two = (run(host, f"nam-{host}", net, "--network-alias", f"alias-{host}", "--network-alias", "both",
                    "--hostname", f"hostname-{host}") for host in pair.hosts)
    for asker, other in ((one, two), (two, one)):
        host, address = other.machine.name, {other.address()}
        assert soon(asker, other.name, address) < SECONDS
        for name in (f"{other.name}.{net}", f"alias-{host}", f"alias-{host}.{net}", f"hostname-{host}",
                     other.inspect("{{.Id}}")[:12]):
            assert found(asker, name) == address, name
        assert asker.pings(other.name)
        # What is here, Docker answers itself.
        assert found(asker, asker.name) == {asker.address()} == found(asker, "both")
        assert found(asker, OUTSIDE) == {OUTSIDE_ADDRESS} and found(asker, "nobody") is None
        wait_for("the name of an address", lambda: f"{other.name}.{net}" in asker.run(
            "nslookup", other.address(), check=False), PATIENCE)
    address = two.address()
    pair.node("host1").kill("agent")
    assert found(one, OUTSIDE) == {OUTSIDE_ADDRESS} and found(one, "both") == {one.address()}
    soon(one, two.name, {address})
    two.machine.run("docker", "rename", two.name, "nam-renamed")
    assert soon(one, "nam-renamed", {address}) < SECONDS
    assert found(one, "nam-host2") is None
    two.machine.run("docker", "kill", "nam-renamed")
    assert soon(one, "nam-renamed", None) < SECONDS
    assert found(one, "alias-host2") is None


@pytest.mark.long
def test_aliases_that_many_share(pair: Lab, network: Callable[..., str], run: Run) -> None:
    """All of them, on hosts that have none themselves; one less when it stops, also by `docker network disconnect`."""
    net = network("nam_many")
    asker = run("host1", "nam-asker", net)
    many = [run("host2", f"nam-{number}", net, "--network-alias", "shared") for number in range(3)]
    soon(asker, "shared", {one.address() for one in many})
    many[0].remove()
    soon(asker, "shared", {one.address() for one in many[1:]})
    address = many[2].address()
    many[1].machine.run("docker", "network", "disconnect", net, many[1].name)
    soon(asker, "shared", {address})
    many[1].machine.run("docker", "network", "connect", "--alias", "again", net, many[1].name)
    soon(asker, "again", {many[1].address()})
    many[1].machine.run("docker", "restart", "-t", "1", many[1].name)
    soon(asker, "again", {many[1].address()})


@pytest.mark.long
def test_networks_are_apart(pair: Lab, network: Callable[..., str], run: Run) -> None:
    """Who is on one network does not find those of another; who is on both finds both."""
    first, second = network("nam_first"), network("nam_second")
    of_first, of_second = run("host1", "nam-of-first", first), run("host1", "nam-of-second", second)
    both = run("host1", "nam-both", first)
    both.machine.run("docker", "network", "connect", second, both.name)
    a, b = run("host2", "nam-a", first), run("host2", "nam-b", second)
    soon(both, "nam-a", {a.address()})
    soon(both, "nam-b", {b.address()})
    soon(of_first, "nam-a", {a.address()})
    soon(of_second, "nam-b", {b.address()})
    if by_containers(pair):
        assert found(of_first, "nam-b") is None and found(of_second, "nam-a.nam_first") is None
    # One name in both: a bare one means the asker's network, where it can be told who asks.
    twin = run("host2", "nam-twin", first, "--network-alias", "twin")
    other = run("host2", "nam-twin-2", second, "--network-alias", "twin")
    for asker in (both, of_first, of_second):
        soon(asker, "twin.nam_first" if asker is not of_second else "twin.nam_second",
             {(other if asker is of_second else twin).address()})
    if by_containers(pair):
        soon(of_first, "twin", {twin.address()})
        soon(of_second, "twin", {other.address()})
        soon(both, "twin", {twin.address(), other.address()})
    else:
        assert found(of_first, "twin") is None
        asked = run("host1", "nam-own-server", first, "--dns", str(GATEWAY.ip))
        soon(asked, "twin", {twin.address()})


def by_containers(pair: Lab) -> bool:
    """Whether host1's Docker asks from the containers' own namespaces."""
    return pair.spec.release_of("host1").label != "28.5"


@pytest.mark.long
def test_a_bridge_may_have_the_default_route(pair: Lab, network: Callable[..., str], run: Run) -> None:
    """A container that asks from an address of Docker's bridge is known all the same."""
    net = network("nam_net")
    host = pair["host1"]
    host.run("docker", "network", "create", "a_bridge")
    try:
        far = run("host2", "nam-far", net)
        asker = run("host1", "nam-asker", net)
        host.run("docker", "network", "connect", "a_bridge", asker.name)
        soon(asker, far.name, {far.address()})
        beside = run("host1", "nam-beside", "a_bridge")
        assert found(beside, far.name) is None or not by_containers(pair)
    finally:
        pair.docker("host1").remove_all_containers()
        host.run("docker", "network", "rm", "a_bridge")


CLOSED = """apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: nam-closed}
spec:
  types: [Egress]
  egress:
  - {action: Deny, protocol: UDP, destination: {ports: [53]}}
  - {action: Allow}
"""


@pytest.mark.long
def test_no_way_to_the_server(pair: Lab, network: Callable[..., str], run: Run) -> None:
    """Policy forbids it, it is down, or none is there: names of containers are found, others are not."""
    net = network("nam_closed")
    one, far = run("host1", "nam-one", net), run("host2", "nam-far", net)
    lost = run("host1", "nam-lost", net, "--dns", "203.0.113.53")
    soon(one, far.name, {far.address()})
    assert found(lost, far.name) == {far.address()}
    pair["host1"].run("sh", "-c", "cat >/run/closed.yaml", stdin=CLOSED.encode())
    pair.node("host1").ctl("create", "-f", "/run/closed.yaml")
    try:
        own = run("host1", "nam-own-server", net, "--dns", str(GATEWAY.ip))
        wait_for("policy", lambda: OUTSIDE_ADDRESS not in own.run("nslookup", OUTSIDE, check=False), PATIENCE)
        assert found(own, far.name) == {far.address()}
    finally:
        pair.node("host1").ctl("delete", "globalnetworkpolicy", "nam-closed")


@pytest.mark.long
def test_a_host_that_goes(pair: Lab, network: Callable[..., str], run: Run) -> None:
    """Its dockerd killed and started anew: names of what ended with it go, whoever should have removed them."""
    net = network("nam_gone")
    one, far = run("host1", "nam-one", net), run("host2", "nam-far", net)
    soon(one, far.name, {far.address()})
    pair.docker("host2").kill()
    assert found(one, far.name) is not None
    pair.docker("host2").start()
    soon(one, far.name, None)
    far.machine.run("docker", "start", far.name)
    soon(one, far.name, {far.address()})
