"""The whole way of a user, on each Docker and on two of them together."""
from __future__ import annotations

import pytest

from tests.lab.acceptance.dockers import CREATE, address, networks
from tests.lab.connectivity import Container, start_container
from tests.lab.wait import wait_for

POLICY = """
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: acc-no-ping}
spec:
  selector: has(acc_main)
  ingress:
  - {action: Deny, protocol: ICMP}
  - {action: Allow}
"""
SERVE = ("nc", "-ll", "-p", "80", "-e", "echo", "served")


def calicoctl(lab, *words: str, stdin: str = "") -> None:
    lab["host1"].run("calicoctl", *words, env=lab.node("host1").environment(), stdin=stdin.encode())


def connecting(place: str, port: int) -> tuple[str, ...]:
    """A command that prints what is served at a port."""
    return "timeout", "3", "busybox", "nc", place, str(port)


@pytest.fixture
def no_policy(lab):
    yield
    calicoctl(lab, "delete", "globalnetworkpolicy", "acc-no-ping", "--skip-not-exists")


def test_the_way_of_a_user(lab, no_policy):
    """Create, run on both hosts, ping by address and by name, publish, a second network, policy, remove."""
    lab["host1"].run(*CREATE, "acc_main")
    wait_for("the network on host2", lambda: "acc_main" in networks(lab, "host2"), 10)
    a, b = (start_container(lab, host, f"main-{host}", "acc_main", "--init", "-p", "8080:80") for host in lab.hosts)
    wait_for("the way across", lambda: a.pings(b.address()), 15)
    assert b.pings(a.address())
    names(lab, a, b)
    published(lab, b)
    second_network(lab, a, b)
    policy(lab, a, b)
    for one in (a, b):
        one.remove()
    lab["host1"].run("docker", "network", "rm", "acc_main")
    wait_for("no network on host2", lambda: "acc_main" not in networks(lab, "host2"), 15)


def names(lab, a: Container, b: Container) -> None:
    """Both find each other by name, from host to host."""
    wait_for("b by name", lambda: a.pings(b.name), 15)
    wait_for("a by name", lambda: b.pings(a.name), 15)


def published(lab, b: Container) -> None:
    """What b serves is reached at its host's port from the other host, and from its own."""
    b.machine.run("docker", "exec", "-d", b.name, *SERVE)
    words = connecting(str(lab.spec.address("host2").ip), 8080)
    for host in lab.hosts:
        wait_for(f"what it serves on {host}", lambda: lab[host].run(*words, check=False).stdout == "served\n", 10)


def second_network(lab, a: Container, b: Container) -> None:
    """A second network: a member of it reaches b there, and not in the first."""
    lab["host2"].run(*CREATE, "acc_second")
    wait_for("the network on host1", lambda: "acc_second" in networks(lab, "host1"), 10)
    lab["host2"].run("docker", "network", "connect", "acc_second", b.name)
    c = start_container(lab, "host1", "second", "acc_second", "--init")
    wait_for("the way to b", lambda: c.pings(address(b, "acc_second")), 15)
    assert not c.pings(address(b, "acc_main")) and a.pings(address(b, "acc_main"))
    c.remove()
    lab["host2"].run("docker", "network", "disconnect", "acc_second", b.name)
    lab["host2"].run("docker", "network", "rm", "acc_second")
    wait_for("no second network", lambda: "acc_second" not in networks(lab, "host1"), 15)


def policy(lab, a: Container, b: Container) -> None:
    """A policy that denies pings and nothing else, and its removal."""
    calicoctl(lab, "apply", "-f", "-", stdin=POLICY)
    there = address(b, "acc_main")
    wait_for("no ping", lambda: not a.pings(there), 10)
    assert a.run(*connecting(there, 80), check=False) == "served\n"
    calicoctl(lab, "delete", "globalnetworkpolicy", "acc-no-ping")
    wait_for("a ping", lambda: a.pings(there), 10)
