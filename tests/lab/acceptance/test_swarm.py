"""Points 41 and 42 of the acceptance list: swarm, with node-local networks of the managed plugin."""
from __future__ import annotations

import subprocess
from typing import Iterator

import pytest

from tests.lab import lab as labs
from tests.lab import plugins, rootfs, state
from tests.lab.acceptance.dockers import mixed, refused
from tests.lab.conftest import wait_established
from tests.lab.connectivity import Container
from tests.lab.lab import Lab
from tests.lab.releases import RELEASES
from tests.lab.spec import LabSpec
from tests.lab.wait import wait_for

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]
DOCKERS = ("20.10", "26.1", "28.5")
TAGGED = "calico:latest"
SHARED = "/var/lib/docker/plugin-build"  # where the machine and the engine's own root meet
WORDS = ("--endpoint-mode", "dnsrr", "--mode", "global", "--network", "swnet", "--name", "web", "-d", "busybox",
         "sleep", "100000")


@pytest.fixture(scope="module", params=DOCKERS)
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A swarm of two hosts, the plugin on both."""
    rootfs.built()
    own = state.claim_free("pytest-swarm")
    made = labs.up(LabSpec(own.name, hosts=2, cluster_store=False, mixed=mixed(request.param)))
    try:
        for host in made.hosts:
            plugin(made, host)
        wait_established(made, 60)
        first = made["host1"]
        first.run("docker", "swarm", "init", "--advertise-addr", str(made.spec.address("host1").ip))
        token = first.run("docker", "swarm", "join-token", "-q", "worker").stdout.strip()
        made["host2"].run("docker", "swarm", "join", "--token", token, f"{made.spec.address('host1').ip}:2377")
        yield made
    finally:
        state.clear(own.name, keep_logs=bool(request.session.testsfailed))
        own.release()


@pytest.fixture(autouse=True)
def tidy(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test there is no service, and no network but the swarm's own."""
    lab: Lab | None = request.getfixturevalue("lab") if "lab" in request.fixturenames else None
    yield
    if lab is None:
        return
    lab["host1"].shell("docker service rm web; docker network rm swnet", check=False)
    for host in lab.hosts:
        wait_for("no task", lambda: not tasks(lab, host), 40, 0.5)
        lab[host].run("docker", "network", "rm", "calico-conf", check=False)


def plugin(lab: Lab, host: str) -> None:
    """The managed plugin, made and enabled."""
    machine = lab[host]
    subprocess.run(machine.command(["cp", "-a", str(rootfs.built()), SHARED]), check=True)
    machine.run("docker", "plugin", "create", plugins.ALIAS, SHARED, seconds=180)
    machine.run("docker", "plugin", "set", plugins.ALIAS, f"ETCD_ENDPOINTS={lab.spec.etcd_url}")
    machine.run("docker", "plugin", "enable", plugins.ALIAS, seconds=90)
    machine.run("rm", "-rf", SHARED)


def tasks(lab: Lab, host: str) -> list[str]:
    """Names of the running tasks of our service on a node."""
    return lab[host].run("docker", "ps", "--filter", "name=web", "--format", "{{.Names}}").stdout.split()


def make_network(lab: Lab) -> None:
    """As docs/plugin.md tells: the settings on each node, the network on the manager."""
    for host in lab.hosts:
        lab[host].run("docker", "network", "create", "--config-only", "--ipam-driver", TAGGED, "--subnet",
                      "192.168.0.0/16", "-o", "com.docker.network.driver.mtu=1400", "calico-conf")
    lab["host1"].run("docker", "network", "create", "-d", TAGGED, "--scope", "swarm", "--attachable", "--config-from",
                     "calico-conf", "swnet")


def local_networks(lab: Lab, host: str) -> list[str]:
    return lab[host].run("docker", "network", "ls", "-f", f"driver={TAGGED}", "--format", "{{.Name}}").stdout.split()


def test_p41_node_local_network(lab):
    """A global service has one task a node, they find each other by name; the network comes and goes with them."""
    make_network(lab)
    for _ in range(2):
        lab["host1"].run("docker", "service", "create", *WORDS, seconds=90)
        for host in lab.hosts:
            wait_for(f"a task on {host}", lambda: len(tasks(lab, host)) == 1, 60, 0.5)
        a, b = (Container(lab[host], tasks(lab, host)[0]) for host in lab.hosts)
        there = b.run("ip", "-4", "-o", "address", "show", "dev", "cali0").split()[3].split("/")[0]
        assert there.startswith("192.168.") and "mtu 1400" in b.run("ip", "link")
        wait_for("the way across", lambda: a.pings(there), 20)
        wait_for("by name", lambda: a.pings(b.name), 20)
        found = a.run("nslookup", "tasks.web", "127.0.0.11", check=False)
        assert there in found, found
        lab["host1"].run("docker", "service", "rm", "web")
        wait_for("no network on the worker", lambda: not local_networks(lab, "host2"), 60, 0.5)


def test_p41_attached_container(lab):
    """`docker run` on an attachable swarm network, on a worker too."""
    make_network(lab)
    said = lab["host2"].run("docker", "run", "--rm", "--net", "swnet", "busybox", "ip", "route", seconds=90).stdout
    assert "169.254.1.1" in said


def test_p42_disabled_plugin(lab):
    """No task on a node whose plugin is disabled; it comes as soon as the plugin is enabled."""
    make_network(lab)
    lab["host2"].run("docker", "plugin", "disable", "-f", plugins.ALIAS)
    try:
        lab["host1"].run("docker", "service", "create", *WORDS, seconds=90)
        wait_for("a task on host1", lambda: len(tasks(lab, "host1")) == 1, 60, 0.5)
        assert not tasks(lab, "host2")
    finally:
        lab["host2"].run("docker", "plugin", "enable", plugins.ALIAS, seconds=90)
    wait_for("a task on host2", lambda: len(tasks(lab, "host2")) == 1, 60, 0.5)


@pytest.mark.parametrize("label", DOCKERS)
def test_p42_host_form(label):
    """Swarm takes no driver that is a socket of the host's, and Docker says so."""
    own = state.claim_free("pytest-lonely")
    made = labs.up(LabSpec(own.name, hosts=1, cluster_store=False, release=RELEASES[label]))
    try:
        made.node("host1").run()
        host = made["host1"]
        host.run("docker", "swarm", "init", "--advertise-addr", str(made.spec.address("host1").ip))
        said = refused(made, "host1", "docker", "network", "create", "-d", "calico", "--scope", "swarm", "swlegacy")
        assert "legacy plugin" in said and "not supported in swarm mode" in said, said
    finally:
        state.clear(own.name, keep_logs=False)
        own.release()
