"""`calicoctl doctor` on whole machines (namespaces) with real etcd and BIRD: each fault that is put in is found, and
gone from the report when it is mended.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from contextlib import contextmanager
from typing import Any, Iterator

import pytest

from tests.lab import state
from tests.lab.lab import ETCD, FABRIC, Lab
from tests.lab.machine import Machine
from tests.lab.services import CalicoNode, ask_driver
from tests.lab.spec import LabSpec
from tests.lab.wait import wait_for

pytestmark = pytest.mark.root

PREFIX = "/calico/resources/v3/projectcalico.org/"
GHOST = """\
apiVersion: projectcalico.org/v3
kind: Node
metadata: {name: ghost}
spec: {bgp: {ipv4Address: 172.20.62.99/24}}
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A fabric, an etcd, and two machines without Docker that run calico-node in a mesh."""
    held = state.claim_free("doctor")
    made = Lab(LabSpec(held.name, hosts=2))
    try:
        for name in (FABRIC, ETCD, *made.hosts):
            made.boot(name)
        made.etcd.start()
        for host in made.hosts:
            made.node(host).run(CALICO_LIBNETWORK_SCOPE="local")
        wait_for("the mesh", lambda: all(made.node(host).established() for host in made.hosts), 30)
        yield made
    finally:
        state.clear(held.name, keep_logs=True)
        held.release()


@pytest.fixture
def node(lab: Lab) -> CalicoNode:
    """The first machine, on which the doctor looks."""
    return lab.node("host1")


def findings(node: CalicoNode, *only: str, **environment: str) -> list[dict[str, str]]:
    """What the doctor finds, as JSON; its exit status fits."""
    words = [word for name in only for word in ("--only", name)]
    done = node.machine.run(
        "calicoctl", "doctor", "-o", "json", *words, env={**node.environment(), **environment}, check=False
    )
    found: list[dict[str, str]] = json.loads(done.stdout[done.stdout.index("["):])
    assert done.returncode == int(any(one["level"] == "fail" for one in found))
    return found


def problems(node: CalicoNode, *only: str, **environment: str) -> list[dict[str, str]]:
    """Warnings and failures, except that there is no Docker on these machines; each says what it means and what
    to do.
    """
    found = [one for one in findings(node, *only, **environment) if one["level"] in ("warn", "fail")]
    assert all(one["meaning"] and one["command"] for one in found), found
    return [one for one in found if one["check"] != "docker"]


def expect(node: CalicoNode, check: str, level: str, *words: str, **environment: str) -> None:
    """The check finds a problem of that level whose text has the words."""
    found = problems(node, check, **environment)
    texts = [one["summary"] + " " + one["command"] for one in found if (one["check"], one["level"]) == (check, level)]
    assert any(all(word in text for word in words) for text in texts), found


def healthy(node: CalicoNode, *only: str) -> bool:
    return problems(node, *only) == []


@contextmanager
def mended(node: CalicoNode, check: str) -> Iterator[None]:
    """A fault inside of the block; after it the check finds nothing (any more)."""
    assert healthy(node, check), problems(node, check)
    yield
    wait_for(f"{check} to be well again", lambda: healthy(node, check), 30)


def test_a_good_host_has_no_problem(node: CalicoNode) -> None:
    """All checks look and find nothing; the text says so, with exit status 0."""
    wait_for("everything", lambda: healthy(node), 20)
    words = {one["check"] for one in findings(node) if one["level"] == "ok"}
    assert {"etcd", "clock", "driver", "agent", "policy", "bird", "bgp", "mtu", "pools", "node", "forwarding"} <= words
    done = node.machine.run("calicoctl", "doctor", env=node.environment())
    assert "0 failures" in done.stdout and "\x1b" not in done.stdout


def test_etcd_endpoint_that_does_not_answer(node: CalicoNode) -> None:
    """One dead endpoint among two is named, the other is fine."""
    both = f"{node.etcd_url},http://172.20.62.127:9"
    expect(node, "etcd", "fail", "http://172.20.62.127:9", "endpoint health", ETCD_ENDPOINTS=both)


def test_no_etcd(lab: Lab, node: CalicoNode) -> None:
    """A frozen etcd: the doctor still answers, and tells what it could not look at."""
    process = lab.etcd.process()
    process.send(signal.SIGSTOP)
    try:
        found = findings(node, "etcd", "pools", "forwarding")
    finally:
        process.send(signal.SIGCONT)
    levels = {one["check"]: one["level"] for one in found}
    assert levels == {"etcd": "fail", "pools": "skip", "forwarding": "ok"}
    wait_for("the host", lambda: healthy(node, "etcd", "agent"), 30)


def test_other_datastore_than_calico_node(node: CalicoNode) -> None:
    """sudo dropped the variable: calicoctl asks another etcd than the services of this host."""
    done = node.machine.run("calicoctl", "doctor", "--only", "connection", "-o", "json", check=False)
    (found,) = json.loads(done.stdout)
    assert done.returncode == 1 and node.etcd_url in found["summary"] and "sudo -E" in found["command"]


def test_clock(lab: Lab, node: CalicoNode) -> None:
    """A node whose clock is ahead writes times that lie in the future."""
    with mended(node, "clock"):
        key = "/calico/felix/v2/no-region/host/host2/status"
        etcdctl(lab, "put", key, '{"time":"2999-01-01T00:00:00Z","uptime":1.0,"first_update":false}')
        expect(node, "clock", "fail", "host2")
        etcdctl(lab, "del", key)


def test_locked_datastore(node: CalicoNode) -> None:
    """A lock that was forgotten."""
    with mended(node, "lock"):
        node.ctl("datastore", "migrate", "lock")
        expect(node, "lock", "fail", "datastore migrate unlock")
        node.ctl("datastore", "migrate", "unlock")


def test_value_that_does_not_parse(lab: Lab, node: CalicoNode) -> None:
    """A policy that nobody can read is named, with the command that removes it."""
    with mended(node, "values"):
        etcdctl(lab, "put", PREFIX + "globalnetworkpolicies/broken", "{nonsense")
        expect(node, "values", "fail", "globalnetworkpolicies/broken", "calicoctl delete globalnetworkpolicy broken")
        node.ctl("delete", "gnp", "broken")


def test_driver_is_dead(node: CalicoNode) -> None:
    """No socket answers."""
    with mended(node, "driver"), stopped(node, "calico-driver"):
        expect(node, "driver", "fail", "calico.sock", "calico-driver/current")


def test_agent_is_dead(node: CalicoNode) -> None:
    """The lock is free."""
    with mended(node, "agent"), stopped(node, "calico-agent"):
        expect(node, "agent", "fail", "does not run", "calico-agent/current")


def test_agent_is_frozen(node: CalicoNode) -> None:
    """It has its lock, and does not answer."""
    with mended(node, "agent"):
        (process,) = node.part("agent")
        process.send(signal.SIGSTOP)
        expect(node, "agent", "fail", "not ready")
        process.send(signal.SIGCONT)


def test_bird_is_dead(node: CalicoNode) -> None:
    """The control socket is gone; sessions cannot be told."""
    with mended(node, "bird"), stopped(node, "bird"):
        expect(node, "bird", "fail", "BIRD is not running")
    wait_for("the session", lambda: healthy(node, "bgp"), 30)


def test_bgp_session_with_its_cause(lab: Lab, node: CalicoNode) -> None:
    """The neighbour's BIRD is stopped: the session is named with its node and the reason."""
    with mended(node, "bgp"), stopped(lab.node("host2"), "bird"):
        wait_for("the session to fall", lambda: not healthy(node, "bgp"), 30)
        expect(node, "bgp", "fail", "172.20.62.105 (node host2) is down: nothing listens")


def test_bgp_port_that_is_filtered(lab: Lab, node: CalicoNode) -> None:
    """The neighbour drops BGP: a TCP probe says that nothing comes back."""
    other = lab["host2"]
    with mended(node, "bgp"):
        other.shell("nft add table inet t; nft 'add chain inet t i { type filter hook input priority -300; }'; "
                    "nft 'add chain inet t o { type filter hook output priority -300; }'; "
                    "nft add rule inet t i tcp dport 179 drop; nft add rule inet t o tcp dport 179 drop")
        lab.node("host2").kill("bird")
        wait_for("the session to fall", lambda: not healthy(node, "bgp"), 30)
        expect(node, "bgp", "fail", "172.20.62.105", "timed out")
        other.run("nft", "delete", "table", "inet", "t")


def test_stale_node(node: CalicoNode) -> None:
    """A node that nobody has ever heard of, and how to remove it."""
    with mended(node, "nodes"):
        node.machine.run("calicoctl", "create", "-f", "-", env=node.environment(), stdin=GHOST.encode())
        wait_for("its session", lambda: not healthy(node, "nodes"), 20)
        expect(node, "nodes", "warn", "ghost", "calicoctl delete node ghost")
        node.ctl("delete", "node", "ghost")


def test_two_nodes_with_one_address(node: CalicoNode) -> None:
    """Another node claims this host's address."""
    with mended(node, "node"):
        twin = GHOST.replace("172.20.62.99", "172.20.62.110")
        node.machine.run("calicoctl", "create", "-f", "-", env=node.environment(), stdin=twin.encode())
        expect(node, "node", "fail", "ghost", "172.20.62.110")
        node.ctl("delete", "node", "ghost")


def test_address_that_the_host_does_not_have(node: CalicoNode) -> None:
    """The stored address is on no link."""
    with mended(node, "node"):
        patch = '{"spec":{"bgp":{"ipv4Address":"%s/24"}}}'
        node.ctl("patch", "node", "host1", "-p", patch % "172.20.62.77")
        expect(node, "node", "fail", "172.20.62.77", "IP=autodetect")
        node.ctl("patch", "node", "host1", "-p", patch % "172.20.62.110")


@pytest.mark.parametrize(
    ("check", "level", "name", "bad", "good"),
    [
        ("forwarding", "fail", "net.ipv4.ip_forward", "0", "1"),
        ("rp_filter", "warn", "net.ipv4.conf.all.rp_filter", "2", "0"),
    ],
)
def test_kernel_settings(check: str, level: str, name: str, bad: str, good: str, node: CalicoNode) -> None:
    """Forwarding off; a loose check of sources. The command that mends it does so."""
    with mended(node, check):
        node.machine.run("sysctl", "-qw", f"{name}={bad}")
        expect(node, check, level, name, "sysctl -w")
        node.machine.run("sysctl", "-qw", f"{name}={good}")


def test_forward_policy_drop(node: CalicoNode) -> None:
    """Docker's DROP without our accept rules, which the agent would have put back."""
    with mended(node, "firewall"):
        (process,) = node.part("agent")
        process.send(signal.SIGSTOP)
        try:
            node.machine.run("iptables-nft", "-P", "FORWARD", "DROP")
            expect(node, "firewall", "fail", "FORWARD", "iptables-nft")
        finally:
            process.send(signal.SIGCONT)
        node.machine.run("iptables-nft", "-P", "FORWARD", "ACCEPT")


def test_mtu(node: CalicoNode) -> None:
    """A container's link is wider than the uplink."""
    with mended(node, "mtu"):
        node.machine.run("ip", "link", "add", "cali0123456789a", "mtu", "9000", "type", "veth", "peer", "name", "peer0")
        expect(node, "mtu", "fail", "cali0123456789a", "9000", "CALICO_LIBNETWORK_VETH_MTU=1500")
        node.machine.run("ip", "link", "del", "cali0123456789a", check=False)  # the agent may have swept it


def test_route_inside_a_pool(node: CalicoNode) -> None:
    """A route of the host takes a part of the pool away."""
    with mended(node, "pool routes"):
        node.machine.run("ip", "route", "add", "192.168.77.0/24", "via", "172.20.62.1")
        expect(node, "pool routes", "fail", "192.168.77.0/24", "192.168.0.0/16", "ip route del 192.168.77.0/24")
        node.machine.run("ip", "route", "del", "192.168.77.0/24")


def test_no_enabled_pool(node: CalicoNode) -> None:
    """All pools are disabled."""
    with mended(node, "pools"):
        patch = '{"spec":{"disabled":%s}}'
        node.ctl("patch", "ippool", "default-ipv4-ippool", "-p", patch % "true")
        expect(node, "pools", "fail", "disabled")
        node.ctl("patch", "ippool", "default-ipv4-ippool", "-p", patch % "false")


def test_leaked_address(lab: Lab, node: CalicoNode) -> None:
    """An address that a host, which is gone, never gave back."""
    with mended(node, "addresses"):
        status, pool = ask_driver(node.machine, "IpamDriver.RequestPool", {"AddressSpace": "CalicoLocalAddressSpace"})
        assert status == 200
        status, given = ask_driver(node.machine, "IpamDriver.RequestAddress", {"PoolID": pool["PoolID"]})
        address = given["Address"].partition("/")[0]
        assert healthy(node, "addresses"), "an address that was just given is no leak"
        for key, value in lab.etcd.values("/calico/ipam/v2/assignment/").items():
            etcdctl(lab, "put", key, json.dumps(_older(json.loads(value))))
        expect(node, "addresses", "warn", address, "gone-host", "ipam release")
        node.ctl("ipam", "release", f"--ip={address}")


def _older(block: dict[str, Any]) -> dict[str, Any]:
    for one in block["attributes"]:
        if (one.get("secondary") or {}).get("timestamp"):
            one["secondary"] = {"node": "gone-host", "timestamp": "2026-01-01T00:00:00Z"}
    return block


def test_another_name(node: CalicoNode) -> None:
    """NODENAME is not the name of the last start."""
    expect(node, "node", "warn", "renamed", "host1", NODENAME="renamed")


def test_wrong_setting(node: CalicoNode) -> None:
    """A variable that calico-node would refuse."""
    expect(node, "settings", "fail", "CALICO_NETWORKING_BACKEND", CALICO_NETWORKING_BACKEND="brid")


def test_killed_calico_node(node: CalicoNode) -> None:
    """The supervisor is gone, its parts run; then nothing runs."""
    for process in node.machine.processes():
        if any(word.endswith("/calico-node") for word in process.argv[:3]):
            process.kill()
    expect(node, "calico-node", "fail", "was killed", "calicoctl node run")
    node.stop()
    found = {one["check"]: one["level"] for one in findings(node, "calico-node", "driver", "agent", "bird")}
    assert found == {"calico-node": "fail", "driver": "skip", "agent": "skip", "bird": "skip"}
    node.run(CALICO_LIBNETWORK_SCOPE="local")
    wait_for("the host", lambda: healthy(node), 30)


@contextmanager
def stopped(node: CalicoNode, part: str) -> Iterator[None]:
    """A part that s6 was told to leave down."""
    folder = f"/var/run/calico/s6/{part}"
    node.machine.run("s6-svc", "-wD", "-d", folder)
    try:
        yield
    finally:
        node.machine.run("s6-svc", "-u", folder)


def etcdctl(lab: Lab, *words: str) -> None:
    machine: Machine = lab["etcd"]
    machine.run("etcdctl", "--endpoints=http://127.0.0.1:2379", *words, env={"ETCDCTL_API": "3"})


# Tries until the agent is gone.
HOLDER = """
from calico_plugin.dataplane.nfqueue import Queue
from calico_plugin.errors import DataplaneError
while True:
    try:
        held = Queue(88)
        break
    except DataplaneError:
        pass
print("held", flush=True)
input()
"""


@pytest.mark.long
def test_names_cannot_be_answered(node: CalicoNode) -> None:
    """Another program has the agent's queue; the agent takes it once that program ends."""
    assert problems(node, "names") == []
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with node.machine.popen(sys.executable, "-c", HOLDER, **pipes) as holder:
        node.kill("agent")
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        wait_for("a word about it", lambda: problems(node, "names"), 20)
        expect(node, "names", "warn", "nfqueue 88", "another program")
    wait_for("no word about it", lambda: not problems(node, "names"), 20)
