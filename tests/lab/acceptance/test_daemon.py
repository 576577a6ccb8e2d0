"""Points 21, 26, 35 to 38 and 43 of the acceptance list: what dies and comes back."""
from __future__ import annotations

import threading
import time

import pytest

from tests.lab import leaks
from tests.lab.acceptance.dockers import address, ends
from tests.lab.conftest import wait_established
from tests.lab.connectivity import Container, Stream
from tests.lab.wait import wait_for

pytestmark = [pytest.mark.long, pytest.mark.timeout(400)]
FIXED = ("--subnet", "192.168.0.0/16")
ALWAYS = ("--restart", "always")
# Docker looks for a plugin for so long, each time that it needs it.
LOOKUP_SECONDS = 15
# The agent gives Docker a minute to remember a lost endpoint; at its next look the driver's janitor frees the address.
FORGOTTEN_SECONDS = 90


def running(one: Container) -> bool:
    done = one.machine.run("docker", "inspect", "-f", "{{.State.Running}}", one.name, check=False)
    return done.stdout.strip() == "true"


@pytest.fixture
def three(network, run):
    """On host1: one with a fixed address and one on three networks, both with a restart policy; one without any.
    On host2: one that talks to the first.
    """
    net = network("acc_crash", *FIXED)
    others = [network("acc_crash2"), network("acc_crash3")]
    fixed = run("host1", "crash-fixed", net, "--ip", "192.168.77.7", *ALWAYS)
    many = run("host1", "crash-many", net, *ALWAYS)
    for name in others:
        many.machine.run("docker", "network", "connect", name, many.name)
    lost = run("host1", "crash-lost", net)
    far = run("host2", "crash-far", net)
    wait_for("the way to it", lambda: far.pings("192.168.77.7"), 20)
    return fixed, many, lost, far


def all_back(lab, three, seconds: float = 60) -> None:
    """Those with a policy run and are connected as before; of the one without nothing is left."""
    fixed, many, lost, far = (Container(lab[one.machine.name], one.name) for one in three)
    for one in (fixed, many):
        wait_for(f"{one.name} to run", lambda: running(one), seconds, 0.3)
    assert not running(lost)
    assert fixed.address() == "192.168.77.7"
    wait_for("the way to it", lambda: far.pings("192.168.77.7") and fixed.pings(far.address()), 30)
    assert set(ends(many)) == {"acc_crash", "acc_crash2", "acc_crash3"}
    wait_for("the way to the other", lambda: far.pings(address(many, "acc_crash")), 15)
    assert all(address(many, name) in many.run("ip", "address") for name in ends(many))
    wait_for("nothing of the lost one", lambda: leaks.none(lab), FORGOTTEN_SECONDS, 0.5)


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_p21_p26_p35_docker_restarts(lab, three, how):
    """dockerd stopped in order, or killed with -9, and started: all as it was, the fixed address the same."""
    docker = lab.docker("host1")
    getattr(docker, how)()
    docker.start()
    all_back(lab, three)


@pytest.mark.parametrize("when", ["before", "soon", "after"])
def test_p36_power_loss(lab, three, when):
    """The plug is pulled; after the boot calico-node starts before Docker, a moment later, or when Docker gave up."""
    lab["host1"].power_off()
    lab.boot("host1")
    node, docker = lab.node("host1"), lab.docker("host1")
    if when == "before":
        node.run()
    starting = threading.Thread(target=docker.start, args=[200])
    starting.start()
    if when == "after":
        starting.join()
    else:
        time.sleep(5)  # Docker has asked in vain, and asks again
    if when != "before":
        node.run()
    starting.join()
    wait_established(lab, 60)
    all_back(lab, three, 120)


def test_p36_etcd_is_late(lab, three):
    """As after the blackout of a whole room: etcd comes back last."""
    lab["host1"].power_off()
    lab.etcd.stop()
    lab.boot("host1")
    node, docker = lab.node("host1"), lab.docker("host1")
    # As systemd does: again and again until it works.
    node_starts = threading.Thread(target=wait_for, args=("calico-node", node.starts, 200, 2))
    node_starts.start()
    starting = threading.Thread(target=docker.start)
    starting.start()
    time.sleep(5)
    lab.etcd.start()
    starting.join()
    node_starts.join()
    wait_established(lab, 60)
    all_back(lab, three, 120)


def test_p37_live_restore(lab, network, run):
    """dockerd restarts under running containers, calico-node too: traffic goes on, and a later stop is clean."""
    machine, docker = lab["host1"], lab.docker("host1")
    net = network("acc_live")
    a, b = run("host1", "live-a", net), run("host2", "live-b", net)
    wait_for("the way across", lambda: a.pings(b.address()), 20)
    machine.shell("""echo '{"live-restore": true}' > /etc/docker/daemon.json""")
    docker.process().send(1)
    try:
        wait_for("live-restore", lambda: "Live Restore Enabled: true" in machine.run("docker", "info").stdout, 10)
        with Stream(b, a, "tcp") as stream:
            docker.stop()
            lab.node("host1").stop()
            lab.node("host1").run()
            docker.start()
            wait_established(lab)
        stream.unbroken(0.5)
        assert running(a) and a.pings(b.address())
        machine.run("docker", "stop", "-t", "1", a.name)
        wait_for("nothing of it", lambda: leaks.none(lab), 20)
    finally:
        machine.shell("echo '{}' > /etc/docker/daemon.json")
        docker.process().send(1)


def test_p38_boot_without_the_plugin(lab, network):
    """How long dockerd takes to start where networks of ours exist and nobody answers for them: see the docs."""
    for number in range(3):
        network(f"acc_boot{number}")
    docker = lab.docker("host1")
    docker.stop()
    lab.node("host1").stop()
    began = time.monotonic()
    docker.start()
    took = time.monotonic() - began
    lab.node("host1").run()
    print(f"dockerd of {docker.release.label} with 3 networks and no plugin took {took:.1f} s")
    assert took < 3 * LOOKUP_SECONDS + 15


def test_p43_forwarding_policy(lab, network, run):
    """Docker forwards nothing by itself: after `network create`, and after its restart, ours passes all the same."""
    net = network("acc_forward")
    a, b, c = run("host1", "forward-a", net, *ALWAYS), run("host1", "forward-b", net, *ALWAYS), run(
        "host2", "forward-c", net)
    machine = lab["host1"]
    machine.shell("iptables -P FORWARD DROP")

    def passes() -> bool:
        return a.pings(b.address()) and a.pings(c.address()) and c.pings(a.address())

    wait_for("all ways", passes, 15)
    machine.run("docker", "network", "create", "acc_forward_bridge")
    try:
        assert "-P FORWARD DROP" in machine.shell("iptables -S FORWARD")
        wait_for("all ways", passes, 5)
        lab.docker("host1").restart()
        machine.shell("iptables -P FORWARD DROP")
        wait_for("both", lambda: running(a) and running(b), 60)
        wait_for("all ways", passes, 20)
    finally:
        machine.run("docker", "network", "rm", "acc_forward_bridge")
