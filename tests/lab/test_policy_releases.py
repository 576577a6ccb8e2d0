"""Policy beside Docker's own rules: both back ends of iptables, whoever starts first; labels on newer Dockers."""
from __future__ import annotations

import json
from typing import Iterator

import pytest

from tests.lab import lab as labs
from tests.lab import state
from tests.lab.connectivity import start_container
from tests.lab.lab import FABRIC, Lab
from tests.lab.releases import BOOKWORM, FORKY, TRIXIE
from tests.lab.spec import DockerRelease, LabSpec
from tests.lab.test_policy_walkthrough import LABELS, Firsts, only_5300
from tests.lab.wait import wait_for

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]
NETWORK = "beside"
CREATE = ("docker", "network", "create", "--driver", "calico", "--ipam-driver", "calico-ipam", NETWORK)
DENY = f"""\
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {{name: beside}}
spec:
  selector: has({NETWORK})
  types: [Ingress]
  ingress:
  - {{action: Allow, protocol: ICMP}}
  - {{action: Deny, protocol: TCP, destination: {{ports: [7000]}}}}
  - {{action: Allow}}
"""


def one_host(release: DockerRelease) -> Iterator[Lab]:
    own = state.claim_free("pytest-beside")
    try:
        yield labs.up(LabSpec(own.name, hosts=1, cluster_store=False, release=release))
    finally:
        state.clear(own.name, keep_logs=False)
        own.release()


@pytest.fixture(scope="module")
def host() -> Iterator[Lab]:
    yield from one_host(BOOKWORM)


@pytest.fixture(params=["nft", "legacy"])
def backend(host: Lab, request: pytest.FixtureRequest) -> Iterator[str]:
    """The host as if it had only this back end, with nothing running and no rule of anybody's."""
    machine = host["host1"]
    if host.docker("host1").answers():
        host.docker("host1").remove_all_containers()
        host.docker("host1").stop()
    for name in ("iptables", "ip6tables"):
        machine.run("ln", "-sf", f"/usr/sbin/{name}-{request.param}", f"/etc/alternatives/{name}")
        for table in ("filter", "nat"):
            machine.shell(f"{name}-legacy -t {table} -F; {name}-legacy -t {table} -X; {name}-legacy -P FORWARD ACCEPT")
    machine.run("nft", "flush", "ruleset")
    machine.run("sysctl", "-qw", "net.ipv4.ip_forward=0")
    yield request.param
    # While the driver is there to answer.
    host.docker("host1").remove_all_containers()
    machine.run("docker", "network", "rm", NETWORK)
    host.node("host1").stop()


def drops_forwarded(lab: Lab, backend: str) -> bool:
    """Whether Docker's own rules would let nothing of ours through."""
    listed = lab["host1"].run(f"iptables-{backend}", "-S", "FORWARD").stdout
    return "-P FORWARD DROP" in listed and "DOCKER-USER" in listed


def connects(lab: Lab, address: str, port: int) -> bool:
    words = ("timeout", "1", "bash", "-c", f"exec 3<>/dev/tcp/{address}/{port}")
    return lab[FABRIC].run(*words, check=False).returncode == 0


@pytest.mark.parametrize("first", ["docker", "calico"])
def test_docker_and_calico_side_by_side(host: Lab, backend: str, first: str) -> None:
    """Containers of ours reach one another, what policy forbids they do not; ordinary containers have their published
    ports. So after a restart of either.
    """
    docker, node, machine = host.docker("host1"), host.node("host1"), host["host1"]
    if first == "docker":
        docker.start()
        node.run()
    else:
        node.run()
        docker.start()
        # Docker drops what is forwarded where it had to switch forwarding on; others do it by themselves.
        machine.run(f"iptables-{backend}", "-P", "FORWARD", "DROP")
    assert drops_forwarded(host, backend)
    machine.run(*CREATE)
    servers = "sh -c 'nc -ll -p 7000 -e cat & nc -ll -p 7001 -e cat'"
    a, b = (start_container(host, "host1", f"beside-{name}", NETWORK, "--init", command=servers) for name in "ab")
    machine.run("docker", "run", "-d", "--init", "--name", "ordinary", "-p", "32010:80", "busybox",
                "nc", "-ll", "-p", "80", "-e", "cat")
    machine.run("calicoctl", "apply", "-f", "-", env=node.environment(), stdin=DENY.encode())

    def right() -> bool:
        def open_to(port: int) -> bool:
            script = f"nc -w 1 {b.address()} {port} < /dev/null"
            return machine.run("docker", "exec", a.name, "sh", "-c", script, check=False).returncode == 0

        return (a.pings(b.address()) and open_to(7001) and not open_to(7000)
                and connects(host, str(host.spec.address("host1").ip), 32010))

    try:
        wait_for("all as it should be", right, 30, 0.5)
        node.stop()
        node.run()
        assert right()
        docker.restart()
        machine.run("docker", "start", a.name, b.name, "ordinary")
        wait_for("all as it should be", right, 20, 0.5)
    finally:
        machine.run("calicoctl", "delete", "-s", "-f", "-", env=node.environment(), stdin=DENY.encode())


@pytest.fixture(scope="module", params=[TRIXIE, FORKY], ids=lambda release: release.label)
def newer(request: pytest.FixtureRequest) -> Iterator[Lab]:
    yield from one_host(request.param)


def test_labels_are_in_force_before_the_first_packet(newer: Lab) -> None:
    """On today's Docker too: found while Docker waits for Join, so no container starts in the dark."""
    machine, node = newer["host1"], newer.node("host1")
    node.run(**{LABELS: "true"})
    machine.run(*CREATE)
    target = start_container(newer, "host1", "beside-target", NETWORK, "--init")
    policy = only_5300("labels", "role == 'asker'")
    machine.run("calicoctl", "apply", "-f", "-", env=node.environment(), stdin=policy.encode())
    Firsts(machine, NETWORK, target).check(20, "--label", "org.projectcalico.label.role=asker")
    late = machine.run("sh", "-c", "grep -c 'before its labels' /var/log/calico/calico-driver/current || true").stdout
    assert int(late) == 0
    found = json.loads(node.ctl("get", "wep", "-A", "-o", "json"))["items"]
    assert [one["metadata"].get("annotations") for one in found] == [None]
