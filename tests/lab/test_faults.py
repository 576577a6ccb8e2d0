"""What a first user meets: parts that die, a Docker that restarts, a datastore that is away. Traffic never stops."""
from __future__ import annotations

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Iterator

import pytest

from tests.lab import leaks
from tests.lab.conftest import wait_established
from tests.lab.connectivity import Container, Stream
from tests.lab.services import PARTS, ask_driver
from tests.lab.wait import wait_for

pytestmark = pytest.mark.usefixtures("no_leaks")
# Ten probes a second; a pause of half a second is a few of them, on a machine that may be busy with other things.
LONGEST_PAUSE = 0.5
RESTART_SECONDS = 15  # published: calico-node restarts a part of itself that dies within this time
OUTAGE_SECONDS = 30
ROUNDS = 10
MANY_ROUNDS = 100


@pytest.fixture
def pair(network, run) -> tuple[Container, Container]:
    """A container on each host, on one network, that reach each other."""
    net = network("cal_fault")
    a, b = run("host1", "fault-a", net), run("host2", "fault-b", net)
    wait_for("the pair to be connected", lambda: a.pings(b.address()), 20)
    return a, b


@contextmanager
def unbroken_traffic(a: Container, b: Container) -> Iterator[None]:
    """Ping and a TCP connection, both ways, that must not pause while the block runs."""
    streams = [Stream(a, b, "ping"), Stream(b, a, "ping"), Stream(a, b, "tcp"), Stream(b, a, "tcp", port=7008)]
    with ExitStack() as stack:
        for stream in streams:
            stack.enter_context(stream)
        yield
    for stream in streams:
        stream.unbroken(LONGEST_PAUSE)


def run_and_check(lab, host: str, network: str, target: Container, name: str) -> None:
    """A new container starts, and reaches an old one at once."""
    script = f"ping -c1 -W1 {target.address()}"
    done = lab[host].run("docker", "run", "--rm", "--name", name, "--net", network, "busybox", "sh", "-c", script)
    assert "1 packets received" in done.stdout


@pytest.mark.parametrize("part", PARTS)
def test_killed_part_comes_back(lab, pair, part):
    """kill -9 of driver, agent or BIRD: restarted within 15 s, traffic never stops, new containers start."""
    node = lab.node("host1")
    with unbroken_traffic(*pair):
        ended = {one.pid for one in node.kill(part)}
        assert ended, f"no process of {part} is found on host1"
        wait_for(f"a new {part}", lambda: [one for one in node.part(part) if one.pid not in ended], RESTART_SECONDS)
        wait_established(lab)
        run_and_check(lab, "host1", "cal_fault", pair[1], f"after-{part}")
        run_and_check(lab, "host2", "cal_fault", pair[0], f"after-{part}")


@pytest.mark.parametrize("which", [0, -1], ids=["first", "last"])
def test_one_killed_process_of_the_driver(lab, pair, which):
    """The driver has several processes; whichever is killed alone, it soon answers again and no stale one is left."""
    node = lab.node("host1")
    victim = node.part("driver")[which]
    victim.kill()
    wait_for("a driver that answers", lambda: _try_run(lab), RESTART_SECONDS, 0.5)
    usual = len(lab.node("host2").part("driver"))
    wait_for("its usual number of processes", lambda: len(node.part("driver")) == usual, 15)
    run_and_check(lab, "host1", "cal_fault", pair[1], "after-one")


def test_stopped_node_leaves_traffic_flowing(lab, pair):
    """`calicoctl node stop` ends every part and disturbs no traffic; `node run` takes over what is there."""
    node = lab.node("host1")
    with unbroken_traffic(*pair):
        node.stop()
        wait_for("the end of all parts", lambda: not any(node.part(part) for part in PARTS), 20)
        time.sleep(3)  # long enough for thirty probes to fail if the stop broke anything
        node.run()
        wait_established(lab)
    run_and_check(lab, "host1", "cal_fault", pair[1], "after-stop")


@pytest.mark.parametrize("how", ["restart", "kill"])
def test_docker_restarts(lab, network, run, how):
    """dockerd restarted, or killed with -9 and started: containers with a restart policy come back and are connected.

    Those without stay down and leave nothing behind; the other host's traffic is not touched.
    """
    net = network("cal_dock")
    docker = lab.docker("host1")
    kept = run("host1", "dock-kept", net, "--restart", "always")
    run("host1", "dock-lost", net)
    far, far2 = run("host2", "dock-far", net), run("host2", "dock-far2", net)
    wait_for("the route", lambda: far.pings(kept.address()), 20)
    with unbroken_traffic(far, far2):
        if how == "restart":
            docker.stop()
        else:
            docker.kill()
        docker.start()
        wait_for("the kept container", lambda: kept.inspect("{{.State.Running}}") == "true", 60)
        wait_for("its connection", lambda: far.pings(kept.address()) and kept.pings(far.address()), 20)
    assert far.pings("dock-kept"), "not reachable by name"
    running = lab["host1"].run("docker", "ps", "--format", "{{.Names}}").stdout.split()
    assert running == ["dock-kept"]
    wait_for("nothing of the lost one is left", lambda: leaks.none(lab), 40, 0.5)


def test_killed_docker_leaves_traffic_flowing(lab, pair):
    """While dockerd is dead its containers go on talking."""
    docker = lab.docker("host1")
    with unbroken_traffic(*pair):
        docker.kill()
        time.sleep(5)  # fifty probes
    docker.start()


def test_live_restore_survives_docker_restart(lab, pair):
    """With --live-restore a container goes on talking through a dockerd restart, and stops cleanly after it."""
    # A running engine takes the setting by SIGHUP; so its containers are there before the restart.
    machine = lab["host1"]
    machine.shell("""echo '{"live-restore": true}' > /etc/docker/daemon.json""")
    docker = lab.docker("host1")
    docker.process().send(signal.SIGHUP)
    try:
        with unbroken_traffic(*pair):
            wait_for("live-restore", lambda: "Live Restore Enabled: true" in machine.run("docker", "info").stdout, 10)
            docker.restart()
            run_and_check(lab, "host1", "cal_fault", pair[1], "after-live-restore")
    finally:
        machine.shell("echo '{}' > /etc/docker/daemon.json")
        docker.process().send(signal.SIGHUP)


def test_datastore_outage(lab, pair):
    """etcd away for 30 s: traffic goes on, the driver answers within 20 s and names the datastore; then all heals.

    Docker keeps its networks in the same etcd here, so `docker run` fails on its own before it asks the driver; the
    driver is therefore asked at its socket. test_local_scope.py has the `docker run` that does reach it.
    """
    with unbroken_traffic(*pair):
        lab.etcd.stop()
        try:
            began = time.monotonic()
            words = ("docker", "run", "--rm", "--name", "outage", "--net", "cal_fault", "busybox", "true")
            lab["host1"].run(*words, check=False, seconds=60)
            assert time.monotonic() - began < 21
            asked = time.monotonic()
            status, answer = ask_driver(lab["host1"], "IpamDriver.RequestAddress", {"PoolID": "CalicoPoolIPv4"})
            assert time.monotonic() - asked < 20
            assert status == 500 and ("etcd" in answer["Err"] or "datastore" in answer["Err"]), answer
            time.sleep(max(0.0, OUTAGE_SECONDS - (time.monotonic() - began)))
        finally:
            lab.etcd.start()
        wait_for("docker run to work again", lambda: _try_run(lab), 30, 1)
    for host in lab.hosts:
        run_and_check(lab, host, "cal_fault", pair[0], f"after-outage-{host}")
    wait_established(lab)


def _try_run(lab) -> bool:
    words = ("docker", "run", "--rm", "--name", "healed", "--net", "cal_fault", "busybox", "true")
    return lab["host1"].run(*words, check=False).returncode == 0


@pytest.mark.long
@pytest.mark.timeout(400)
def test_container_removed_while_calico_is_down(lab, pair):
    """Docker forgets a container while no driver answers: all that it had goes by itself."""
    node = lab.node("host1")
    node.stop()
    wait_for("the end of the driver", lambda: not node.part("driver"), 20)
    lab["host1"].run("docker", "rm", "-f", pair[0].name, seconds=150, check=False)
    node.run()
    # Nobody tells: it is found by looking, once it has been so for longer than any call to the driver takes.
    wait_for("all traces to go", lambda: leaks.none(lab), 100, 0.5)
    wait_established(lab)


def test_power_cut(lab, network, run):
    """A host loses power and starts again: its containers' addresses and endpoints are freed, restart policies hold."""
    net = network("cal_power")
    kept = run("host2", "power-kept", net, "--restart", "always")
    run("host2", "power-lost", net)
    near = run("host1", "power-near", net)
    wait_for("the route", lambda: near.pings(kept.address()), 20)
    lab["host2"].power_off()
    lab.boot("host2")
    # First the driver, then Docker: it starts its containers once, at its own start.
    lab.node("host2").run()
    lab.docker("host2").start()
    wait_established(lab, 60)
    back = Container(lab["host2"], kept.name)
    wait_for("the kept container", lambda: back.inspect("{{.State.Running}}") == "true", 60)
    wait_for("its connection", lambda: near.pings(back.address()), 30)
    wait_for("nothing of the lost one is left", lambda: leaks.none(lab), 60, 0.5)
    lab["host2"].run("docker", "rm", "-f", "power-kept", "power-lost")


def test_rounds_leave_nothing(lab, network):
    """Ten start/stop rounds with four containers at once on each host: nothing is left, and `ipam check` is content."""
    rounds(lab, network("cal_rounds"), ROUNDS)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_hundred_rounds_leave_nothing(lab, network):
    """The same, a hundred times, with a part killed now and then."""
    rounds(lab, network("cal_many"), MANY_ROUNDS, kill_every=9)


def rounds(lab, net: str, count: int, kill_every: int = 0) -> None:
    """Start and remove containers on both hosts; then compare with what Docker says, and ask ``ipam check``."""
    parts = list(PARTS)

    def one(host: str, name: str) -> None:
        name += f"-{host}"  # names are unique in a network that all hosts share
        lab[host].run("docker", "run", "-d", "--init", "--name", name, "--net", net, "busybox", "sleep", "1000",
                      check=not kill_every)
        lab[host].run("docker", "rm", "-f", name, check=False)

    with ThreadPoolExecutor(max_workers=8) as pool:
        for number in range(count):
            if kill_every and number % kill_every == kill_every - 1:
                lab.node("host1").kill(parts[number // kill_every % len(parts)])
            work = [pool.submit(one, host, f"round{number}-{slot}") for host in lab.hosts for slot in range(4)]
            for task in work:
                task.result()
    wait_for("nothing left", lambda: leaks.none(lab), 40, 0.5)
    said = lab["host1"].run("calicoctl", "ipam", "check", env=lab.node("host1").environment())
    assert said.returncode == 0, said.stdout
