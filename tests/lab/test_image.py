"""calico-node as a container: `calicoctl node run --node-image`, on Docker hosts with a cluster store."""

from __future__ import annotations

import json

import pytest

from tests.lab import lab as labs
from tests.lab import leaks, releases, rootfs, state
from tests.lab.conftest import wait_established
from tests.lab.connectivity import Container, Stream, start_container
from tests.lab.diagnostics import bug_lines
from tests.lab.spec import LabSpec
from tests.lab.wait import wait_for

# Builds a root file system first: minutes, apart from the normal run (`make image-test`).
pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
CREATE = ("docker", "network", "create", "--driver", "calico", "--ipam-driver", "calico-ipam")
RUN = ("node", "run", f"--node-image={rootfs.IMAGE}")


@pytest.fixture(scope="module")
def hosts():
    """Two hosts that have the image; calico-node is started on them as a container."""
    rootfs.built()
    own = state.claim_free("pytest-image")
    lab = labs.up(LabSpec(own.name, docker_options=rootfs.PRIVILEGED))
    try:
        for host in lab.hosts:
            rootfs.import_image(lab[host])
            said = lab.node(host).ctl(*RUN, seconds=120)
            assert said.rstrip().endswith("Calico node started successfully"), said
        yield lab
        assert not bug_lines(lab)
    finally:
        state.clear(own.name, keep_logs=False)


def inspect(machine, what: str):
    """A part of what Docker knows of the container."""
    return json.loads(machine.run("docker", "inspect", "-f", f"{{{{json {what}}}}}", "calico-node").stdout)


def test_container_is_as_the_original_s(hosts):
    """Host network, privileged, restarted always, the original's mounts; its settings in the environment."""
    host = hosts["host1"]
    settings = inspect(host, ".HostConfig")
    assert settings["NetworkMode"] == "host" and settings["Privileged"]
    assert settings["RestartPolicy"]["Name"] == "always"
    places = ("/var/log/calico", "/var/run/calico", "/var/lib/calico", "/lib/modules", "/run", "/run/docker/plugins",
              "/var/run/docker.sock")
    assert sorted(settings["Binds"]) == sorted(f"{place}:{place}" for place in places)
    environment = inspect(host, ".Config.Env")
    assert f"ETCD_ENDPOINTS={hosts.spec.etcd_url}" in environment
    # Inside, the process of dockerd cannot be seen: calicoctl has found the cluster store for it.
    assert "CALICO_LIBNETWORK_SCOPE=global" in environment


def test_logs_read_well(hosts):
    """`docker logs` has the milestones of the start in order, and ends no line in the middle."""
    lines = hosts["host1"].run("docker", "logs", "calico-node").stdout.splitlines()
    text = "\n".join(lines)
    marks = ("Node name host1 determined", "Using autodetected IPv4 address on interface eth0", "calico-driver is up",
             "Calico node started successfully")
    places = [text.index(mark) for mark in marks]
    assert places == sorted(places)
    assert "Calico node started successfully" in lines
    assert "level=error" not in text


def test_containers_talk_across_hosts(hosts):
    """The experiment, with calico-node in containers: one network on both hosts, containers reach one another."""
    hosts["host1"].run(*CREATE, "cal_image")
    wait_for("the network on host2", lambda: "cal_image" in hosts["host2"].run("docker", "network", "ls").stdout, 10)
    a = start_container(hosts, "host1", "image-a", "cal_image", "--init")
    b = start_container(hosts, "host2", "image-b", "cal_image", "--init")
    wait_for("a ping from host to host", lambda: a.pings(b.address()), 20)
    status = hosts.node("host1").ctl("node", "status")
    assert "Established" in status


def test_health_check(hosts):
    """The image's health check passes once the sessions are up."""
    command = ["docker", "exec", "calico-node", *rootfs.healthcheck()]

    def ready() -> bool:
        answer = hosts["host1"].run(*command, check=False)
        assert answer.returncode == 0, answer.stdout
        return answer.stdout == "ready\n"

    wait_for("health", ready, 40, 1)


def doctor(machine, node, *command: str) -> list[dict[str, str]]:
    """What the doctor finds wrong; the form of calico-node must be told."""
    said = machine.run(*command, "calicoctl", "doctor", "-o", "json", env=node.environment(), check=False).stdout
    found = json.loads(said[said.index("["):])
    assert [one["summary"] for one in found if one["check"] == "calico-node"][0].startswith("runs as a container"), said
    return [one for one in found if one["level"] in ("warn", "fail")]


def test_doctor(hosts):
    """It looks at a calico-node in a container, from the host and from inside, and says what to type for that form."""
    machine, node = hosts["host1"], hosts.node("host1")
    inside = ("docker", "exec", "calico-node")
    wait_for("no problem", lambda: doctor(machine, node) == [], 30)
    assert doctor(machine, node, *inside) == []
    machine.run(*inside, "s6-svc", "-wD", "-d", "/var/run/calico/s6/calico-driver")
    for command in ((), inside):
        (found,) = doctor(machine, node, *command)
        assert found["check"] == "driver" and found["command"].startswith("docker restart calico-node; ")
    machine.run(*inside, "s6-svc", "-u", "/var/run/calico/s6/calico-driver")
    wait_for("no problem", lambda: doctor(machine, node) == [], 30)


def test_started_again_while_traffic_flows(hosts):
    """`node run` removes the running container and starts anew; a stream does not notice."""
    one, other = (Container(hosts[host], name) for host, name in (("host1", "image-a"), ("host2", "image-b")))
    with Stream(one, other) as stream:
        said = hosts.node("host1").ctl(*RUN, seconds=120)
        wait_established(hosts)
    assert "Removing the calico-node container" in said
    stream.unbroken(0.5)


def test_host_form_and_stop_know_the_container(hosts):
    """`node stop` ends the container (never the process that has its number on the host); `node run` does too."""
    machine = hosts["host2"]
    said = hosts.node("host2").stop()
    assert "Stopped and removed the calico-node container" in said
    assert machine.run("docker", "ps", "-aq", "--filter", "name=calico-node").stdout == ""
    assert machine.running() and "calico-node" not in machine.shell("ps -eo args | grep -v grep")
    hosts.node("host2").ctl(*RUN, seconds=120)


def test_outcomes_are_told_apart(hosts):
    """A container that ends at once: exit 1, with the reason it gave."""
    said = hosts.node("host2").ctl(*RUN, "--ip=nonsense", check=False)
    assert "IP" in said and "nonsense" in said
    machine = hosts["host2"]
    answer = machine.run("calicoctl", *RUN, "--wait=60", check=False, seconds=90, env={"CALICO_CTL_CONTAINER": "1",
                         "ETCD_ENDPOINTS": "http://172.20.62.127:1", "WAIT_FOR_DATASTORE": "false"})
    assert answer.returncode == 1 and "172.20.62.127:1" in answer.stdout
    assert hosts.node("host2").ctl(*RUN, seconds=120).rstrip().endswith("Calico node started successfully")


def test_compose(hosts):
    """`docker compose up -d` of deploy/compose.yaml does the same as `node run`; `down` leaves traffic alone."""
    releases.ensure(releases.FORKY)
    machine, node = hosts["host2"], hosts.node("host2")
    node.stop()
    plugin = releases.FORKY.root / "usr/libexec/docker/cli-plugins/docker-compose"
    machine.shell(f"mkdir -p /run/client/cli-plugins && ln -sf {plugin} /run/client/cli-plugins/")
    settings = {"DOCKER_CONFIG": "/run/client", "CALICO_LIBNETWORK_SCOPE": "global", **node.environment()}
    compose = ("docker", "compose", "-f", str(rootfs.ROOT / "deploy" / "compose.yaml"))
    machine.run(*compose, "up", "-d", env=settings)
    wait_established(hosts, 60)
    wait_for("the start line", lambda: "Calico node started successfully" in machine.run(
        *compose, "logs", env=settings).stdout, 20, 0.5)
    one, other = (Container(hosts[host], name) for host, name in (("host1", "image-a"), ("host2", "image-b")))
    mounts = [sorted(bind.removesuffix(":rw") for bind in inspect(host, ".HostConfig.Binds"))
              for host in (machine, hosts["host1"])]
    assert mounts[0] == sorted(["/etc/calico:/etc/calico:ro", *mounts[1]])
    with Stream(one, other) as stream:
        machine.run(*compose, "down", env=settings)
        node.ctl(*RUN, seconds=120)
    stream.unbroken(0.5)


def test_nothing_is_left(hosts):
    """Containers and network removed, everything of theirs has gone."""
    for host, name in (("host1", "image-a"), ("host2", "image-b")):
        hosts[host].run("docker", "rm", "-f", name)
    wait_for("nothing left", lambda: leaks.none(hosts), 15, 0.3)
    hosts["host1"].run("docker", "network", "rm", "cal_image")
