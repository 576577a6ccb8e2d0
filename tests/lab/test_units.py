"""The systemd units of `deploy/` on hosts that systemd boots: order at a boot, a datastore that is away, a restart."""

from __future__ import annotations

from pathlib import Path
from typing import Iterator

import pytest

from tests.lab import rootfs, state
from tests.lab.conftest import wait_established
from tests.lab.connectivity import Container, Stream, start_container
from tests.lab.diagnostics import bug_lines
from tests.lab.lab import ETCD, FABRIC, Lab
from tests.lab.machine import SYSTEM_PATH, Machine
from tests.lab.spec import LabSpec
from tests.lab.wait import wait_for

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]
DEPLOY = Path(__file__).parents[2] / "deploy"
UNITS = "/etc/systemd/system"
# Docker asks a driver that is not there for 15 s, once a network.
DOCKER_SECONDS = 10


@pytest.fixture(scope="module")
def hosts() -> Iterator[Lab]:
    """Two hosts with a network and a container on each, Docker and calico-node enabled as the README says."""
    own = state.claim_free("pytest-units")
    lab = Lab(LabSpec(own.name, systemd=True, docker_options=rootfs.PRIVILEGED))
    try:
        for name in (FABRIC, ETCD, *lab.hosts):
            lab.boot(name)
        lab.etcd.start()
        for host in lab.hosts:
            install(lab, host)
        wait_established(lab)
        lab["host1"].run("docker", "network", "create", "--driver", "calico", "--ipam-driver", "calico-ipam", "units")
        wait_for("the network on host2", lambda: "units" in lab["host2"].run("docker", "network", "ls").stdout, 10)
        for host in lab.hosts:
            start_container(lab, host, f"units-{host}", "units", "--init", "--restart=always")
        yield lab
        assert not bug_lines(lab)
    finally:
        state.clear(own.name, keep_logs=False)


def install(lab: Lab, host: str) -> None:
    """What the head of the unit file says, and Docker's own unit with the options of this lab."""
    machine = lab[host]
    wait_for("systemd", lambda: machine.run("systemctl", "list-jobs", check=False).returncode == 0, 30)
    options = " ".join(lab.docker(host).options())
    paths = f"{machine.environment()['PATH'].partition(':')[0]}:{SYSTEM_PATH}"
    machine.shell(f"""set -e
        mkdir -p {UNITS}/docker.service.d {UNITS}/calico-node.service.d
        printf '[Service]\\nEnvironment="DOCKER_OPTS={options}"\\n' >{UNITS}/docker.service.d/lab.conf
        printf '[Service]\\nEnvironment=PATH={paths}\\n' >{UNITS}/calico-node.service.d/lab.conf
        cp {DEPLOY}/calico-node.service {UNITS}
        sed 's|^#ETCD_ENDPOINTS=.*|ETCD_ENDPOINTS={lab.spec.etcd_url}|' {DEPLOY}/calico.env >/etc/calico/calico.env
        systemctl daemon-reload
        systemctl enable --now docker calico-node""", seconds=120)
    lab.docker(host).load_image()


def moments(machine: Machine, unit: str) -> tuple[float, float]:
    """When a unit's start began and when it was done, in seconds since the kernel's boot."""
    names = ("InactiveExitTimestampMonotonic", "ActiveEnterTimestampMonotonic")
    told = dict(line.split("=") for line in machine.run("systemctl", "show", unit).stdout.splitlines()
                if line.partition("=")[0] in names)
    return int(told[names[0]]) / 1e6, int(told[names[1]]) / 1e6


def active(machine: Machine, unit: str) -> bool:
    """Whether a unit runs."""
    return machine.run("systemctl", "is-active", unit, check=False).stdout.strip() == "active"


def power_cut(lab: Lab, host: str) -> Machine:
    """Off, and on again."""
    lab[host].power_off()
    return lab.boot(host)


def test_power_cut(hosts: Lab) -> None:
    """calico-node is up before Docker starts, so Docker finds the driver; its container is back, and reachable."""
    machine = power_cut(hosts, "host1")
    wait_for("Docker", lambda: active(machine, "docker"), 60, 0.2)
    begun, done = moments(machine, "docker")
    assert moments(machine, "calico-node")[1] <= begun
    print(f"Docker took {done - begun:.1f} s to start")
    assert done - begun < DOCKER_SECONDS
    one, other = (Container(hosts[host], f"units-{host}") for host in hosts.hosts)
    wait_for("the container", lambda: one.pings(other.address()), 30)
    assert "global" in machine.run("docker", "network", "ls", "--filter", "name=units").stdout


def test_etcd_is_away_at_a_boot(hosts: Lab) -> None:
    """Docker starts all the same; calico-node comes by itself when etcd is back, and the container with it."""
    hosts.etcd.stop()
    machine = power_cut(hosts, "host2")
    wait_for("Docker", lambda: active(machine, "docker"), 150, 1)
    assert not active(machine, "calico-node")
    hosts.etcd.start()
    wait_for("calico-node", lambda: active(machine, "calico-node"), 60, 0.5)
    one, other = (Container(hosts[host], f"units-{host}") for host in hosts.hosts)
    machine.run("docker", "start", other.name, seconds=60)
    wait_for("the container", lambda: one.pings(other.address()), 30)


def test_restart_of_the_unit(hosts: Lab) -> None:
    """`systemctl restart calico-node` while a stream flows; systemd sees a clean end."""
    one, other = (Container(hosts[host], f"units-{host}") for host in hosts.hosts)
    with Stream(one, other) as stream:
        hosts["host1"].run("systemctl", "restart", "calico-node")
        wait_established(hosts)
    stream.unbroken(0.5)
    assert "Result=success" in hosts["host1"].run("systemctl", "show", "-p", "Result", "calico-node").stdout


def test_killed(hosts: Lab) -> None:
    """kill -9 of calico-node: systemd starts it again, and Docker is not touched."""
    machine = hosts["host1"]
    before = moments(machine, "docker")
    (main,) = (one for one in machine.processes() if any(word.endswith("/calico-node") for word in one.argv[:3]))
    main.kill()
    wait_for("calico-node", lambda: active(machine, "calico-node") and bool(machine.processes()), 60, 0.5)
    wait_established(hosts)
    assert moments(machine, "docker") == before


def test_container_unit(hosts: Lab) -> None:
    """calico-node as a container that systemd starts: it takes over, also after a power cut, and ends in order."""
    machine, unit = hosts["host2"], "calico-node-container"
    machine.run("systemctl", "disable", "--now", "calico-node")
    rootfs.import_image(machine)
    machine.shell(f"""set -e
        cp {DEPLOY}/{unit}.service {UNITS}
        echo CALICO_LIBNETWORK_SCOPE=global >>/etc/calico/calico.env
        systemctl daemon-reload
        systemctl enable --now {unit}""")
    wait_for("the session", hosts.node("host2").established, 60, 0.5)
    assert machine.run("docker", "ps", "-q", "--filter", "name=calico-node").stdout
    machine = power_cut(hosts, "host2")
    wait_for("the session", hosts.node("host2").established, 120, 1)
    one, other = (Container(hosts[host], f"units-{host}") for host in hosts.hosts)
    wait_for("the container, which calico-node has started", lambda: other.pings(one.address()), 60, 1)
    machine.run("systemctl", "stop", unit)
    assert machine.run("docker", "ps", "-aq", "--filter", "name=calico-node").stdout == ""
    assert "Result=success" in machine.run("systemctl", "show", "-p", "Result", unit).stdout
