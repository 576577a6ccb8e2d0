"""The managed plugin on Docker 26.1 and 28.5: the commands of a user as written, and a restart of dockerd."""

from __future__ import annotations

import subprocess

import pytest

from tests.lab import lab as labs
from tests.lab import plugins, rootfs, state
from tests.lab.connectivity import start_container
from tests.lab.releases import FORKY, TRIXIE
from tests.lab.spec import LabSpec
from tests.lab.wait import wait_for

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
NETWORK = "cal_release"
CREATE = ("docker", "network", "create", "--driver", "calico", "--ipam-driver", "calico-ipam", NETWORK)
# Where the machine and the engine's own root meet.
SHARED = "/var/lib/docker/plugin-build"


@pytest.fixture(scope="module", params=[TRIXIE, FORKY], ids=lambda release: release.label)
def host(request: pytest.FixtureRequest):
    """One host with that engine, the plugin enabled."""
    made = rootfs.built()
    own = state.claim_free("pytest-release")
    lab = labs.up(LabSpec(own.name, hosts=1, cluster_store=False, release=request.param))
    try:
        machine = lab["host1"]
        subprocess.run(machine.command(["cp", "-a", str(made), SHARED]), check=True)
        machine.run("docker", "plugin", "create", plugins.ALIAS, SHARED, seconds=180)
        machine.run("docker", "plugin", "set", plugins.ALIAS, f"ETCD_ENDPOINTS={lab.spec.etcd_url}")
        machine.run("docker", "plugin", "enable", plugins.ALIAS, seconds=90)
        machine.run(*CREATE)
        yield lab
    finally:
        state.clear(own.name, keep_logs=False)
        own.release()


def test_the_commands_of_a_user(host):
    """Plain names at once after the plugin was enabled; containers reach one another; scope local."""
    a, b = (start_container(host, "host1", f"release-{name}", NETWORK, "--init", "--restart=always") for name in "ab")
    wait_for("a ping", lambda: a.pings(b.address()), 15)
    told = host["host1"].run("docker", "network", "inspect", "-f", "{{.Driver}} {{.Scope}}", NETWORK).stdout
    assert told.strip() == "calico local"


def test_the_tagged_name(host):
    """`calico:latest` for both roles."""
    machine = host["host1"]
    machine.run("docker", "network", "create", "--driver=calico:latest", "--ipam-driver=calico:latest", "cal_tagged")
    machine.run("docker", "run", "--rm", "--net", "cal_tagged", "busybox", "true")
    machine.run("docker", "network", "rm", "cal_tagged")


def test_restart_of_dockerd(host):
    """Containers with a restart policy are back on their network."""
    machine = host["host1"]
    before = plugins.starts(machine)
    host.docker("host1").restart()
    plugins.wait_started(machine, before + 1)
    running = ("docker", "ps", "--filter", "name=release-", "--format", "{{.Names}}")
    wait_for("both containers", lambda: len(machine.run(*running).stdout.split()) == 2, 40, 0.5)
    machine.run("docker", "run", "--rm", "--net", NETWORK, "busybox", "true")
