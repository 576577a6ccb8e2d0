"""calico-node and `calicoctl node` on whole machines (namespaces) with real etcd and BIRD, without Docker."""

from __future__ import annotations

import json
import signal
import time
from typing import Any, Iterator

import pytest

from tests.lab import bare, state
from tests.lab.lab import ETCD, FABRIC, Lab
from tests.lab.machine import Process
from tests.lab.services import PARTS, CalicoNode
from tests.lab.spec import LabSpec
from tests.lab.wait import wait_for

pytestmark = pytest.mark.root

RESTART_SECONDS = 15
STARTED = "Calico node started successfully"
NODE_STATUS = """\
apiVersion: projectcalico.org/v3
kind: CalicoNodeStatus
metadata: {name: of-host2}
spec: {node: host2, classes: [BGP, Agent], updatePeriodSeconds: 1}
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A fabric, an etcd, and four machines without Docker."""
    held = state.claim_free("node")
    made = Lab(LabSpec(held.name, hosts=4))
    try:
        for name in (FABRIC, ETCD, *made.hosts):
            made.boot(name)
        made.etcd.start()
        yield made
    finally:
        state.clear(held.name, keep_logs=True)
        held.release()


@pytest.fixture
def pair(lab: Lab) -> Iterator[tuple[CalicoNode, CalicoNode]]:
    """host1 and host2, running and in a mesh; afterwards nothing of them is left."""
    nodes = lab.node("host1"), lab.node("host2")
    for node in nodes:
        assert STARTED in node.run().splitlines()
    wait_for("the mesh", lambda: all(node.established() for node in nodes), 30)
    yield nodes
    for node in nodes:
        node.ctl("node", "reset", "--force", check=False)
    lab["etcd"].run("etcdctl", "del", "--prefix", "/calico", env={"ETCDCTL_API": "3"})


def calico_nodes(node: CalicoNode) -> list[Process]:
    """Processes of calico-node itself."""
    return [one for one in node.machine.processes() if any(word.endswith("/calico-node") for word in one.argv[:3])]


def test_status(pair: tuple[CalicoNode, CalicoNode]) -> None:
    """The original's table, the same as data, and from anywhere by a resource that the node keeps up to date."""
    node, _ = pair
    table_shows_the_mesh(node)
    data_shows_the_mesh(node)
    node.machine.run("calicoctl", "apply", "-f", "-", env=node.environment(), stdin=NODE_STATUS.encode())

    def told() -> dict[str, Any]:
        read = json.loads(node.ctl("get", "caliconodestatus", "of-host2", "-o", "json"))["status"]
        assert isinstance(read, dict)
        return read

    wait_for("a status", lambda: told()["lastUpdated"], 10)
    assert told()["bgp"]["numberEstablishedV4"] == 1 and told()["routes"] == {}
    node.machine.run("s6-svc", "-wD", "-d", "/var/run/calico/s6/bird")
    wait_for("the lost session", lambda: told()["bgp"]["numberNotEstablishedV4"] == 1, 15)
    stopped = json.loads(node.ctl("node", "status", "-o", "json"))["status"]
    assert stopped["agent"]["birdV4"] == {"state": "NotReady"}


def table_shows_the_mesh(node: CalicoNode) -> None:
    """The neighbour's address and an established session, exit status 0."""
    said = node.ctl("node", "status")
    assert said.startswith("Calico process is running.\n\nIPv4 BGP status\n+--")
    row = next(line for line in said.splitlines() if "172.20.62.105" in line)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:3] == ["172.20.62.105", "node-to-node mesh", "up"] and cells[4] == "Established"
    assert "No IPv6 peers found." in said


def data_shows_the_mesh(node: CalicoNode) -> None:
    """`-o json`, on the host itself."""
    found = json.loads(node.ctl("node", "status", "-o", "json"))
    status = found["status"]
    assert (found["kind"], found["spec"]["node"], status["problems"]) == ("CalicoNodeStatus", "host1", [])
    assert status["agent"]["birdV4"]["state"] == "Ready"
    (peer,) = status["bgp"]["peersV4"]
    assert (peer["peerIP"], peer["type"], peer["state"]) == ("172.20.62.105", "NodeMesh", "Established")
    assert "0.0.0.0/0" in [one["destination"] for one in status["routes"]["routesV4"]]


def test_status_needs_a_running_node_and_root(lab: Lab) -> None:
    """Not running: that line and status 1; not root: the original's words and status 1."""
    node = lab.node("host3")
    done = node.machine.run("calicoctl", "node", "status", check=False)
    assert (done.stdout, done.returncode) == ("Calico process is not running.\n", 1)
    done = node.machine.run("setpriv", "--reuid=65534", "--clear-groups", "calicoctl", "node", "status", check=False)
    assert "Need super user privileges: Operation not permitted" in done.stdout and done.returncode == 1


def test_a_dead_part_is_started_again(pair: tuple[CalicoNode, CalicoNode]) -> None:
    """kill -9 of driver, agent and BIRD in turn: back within 15 s, the session with the neighbour too."""
    node, other = pair
    for part in PARTS:
        ended = {one.pid for one in node.kill(part)}
        assert ended, f"no process of {part}"
        wait_for(f"a new {part}", lambda: [one for one in node.part(part) if one.pid not in ended], RESTART_SECONDS)
        wait_for("the mesh", lambda: node.established() and other.established(), 30)


def test_killed_s6_is_started_again(pair: tuple[CalicoNode, CalicoNode]) -> None:
    """Even kill -9 of s6-svscan is mended by calico-node."""
    node, _ = pair
    scans = [one for one in node.machine.processes() if one.argv[0].endswith("s6-svscan")]
    assert len(scans) == 1
    scans[0].send(signal.SIGKILL)
    wait_for("a new s6-svscan and all parts", lambda: all(node.part(part) for part in PARTS) and any(
        one.argv[0].endswith("s6-svscan") and one.pid != scans[0].pid for one in node.machine.processes()
    ), RESTART_SECONDS)  # fmt: skip
    wait_for("the mesh", node.established, 30)
    supervisors = [one for one in node.machine.processes() if one.argv[0] == "s6-supervise"]
    assert len(supervisors) == 2 * len(PARTS)


def test_killed_calico_node_is_replaced(pair: tuple[CalicoNode, CalicoNode]) -> None:
    """kill -9 of calico-node leaves its parts working; `node run` ends these in order and starts anew."""
    node, other = pair
    (main,) = calico_nodes(node)
    main.send(signal.SIGKILL)
    assert node.established() == ["172.20.62.105"], "the parts go on"
    said = node.run()
    assert "its parts were left" in said and STARTED in said.splitlines()
    assert len(node.part("bird")) == 1 and len(calico_nodes(node)) == 1
    wait_for("the mesh", lambda: node.established() and other.established(), 30)


def test_only_one_calico_node(pair: tuple[CalicoNode, CalicoNode]) -> None:
    """A second one is refused and names the process that runs; `node run` replaces it."""
    node, _ = pair
    done = node.machine.run("calico-node", env=node.environment(), check=False)
    assert done.returncode == 1 and "Calico node failed to start" in done.stdout
    assert "calico-node already runs on this host (process " in done.stdout
    before = calico_nodes(node)
    assert "Ended the calico-node that was running" in node.run()
    after = calico_nodes(node)
    assert len(after) == 1 and after != before


def test_sigterm_keeps_routes(lab: Lab, pair: tuple[CalicoNode, CalicoNode]) -> None:
    """SIGTERM ends everything within 10 s with status 0; this host's and the neighbour's routes stay."""
    node, other = pair
    give_block(lab, "host1", "192.168.7.0/26")
    wait_for("the route", lambda: "192.168.7.0/26 via" in other.machine.shell("ip route"), 15)
    begin = time.monotonic()
    assert "Stopped calico-node" in node.stop()
    assert time.monotonic() - begin < 10
    left = [one.text for one in node.machine.processes() if "calico" in one.text or one.argv[0].endswith("bird")]
    assert left == []
    assert "blackhole 192.168.7.0/26 proto bird" in node.machine.shell("ip route")
    time.sleep(2)  # a withdrawal would have come by now
    assert "192.168.7.0/26 via 172.20.62.110" in other.machine.shell("ip route")
    assert node.machine.run("calicoctl", "node", "status", check=False).returncode == 1
    assert node.stop() == "Calico process is not running.\n"


def test_a_working_node_is_not_ended_for_one_that_cannot_start(pair: tuple[CalicoNode, CalicoNode]) -> None:
    """`node run` with an address of another node, or without etcd, is refused; what runs goes on."""
    node, _ = pair
    before = calico_nodes(node)
    for environment, why in (
        ({**node.environment(), "IP": "172.20.62.105/24"}, "Calico node 'host2' is already using"),
        ({"ETCD_ENDPOINTS": "http://172.20.62.127:9"}, "etcd"),
    ):
        done = node.machine.run("calicoctl", "node", "run", env=environment, check=False)
        assert done.returncode == 1 and why in done.stdout and "was left alone" in done.stdout
    assert calico_nodes(node) == before and node.established()


def give_block(lab: Lab, host: str, cidr: str) -> None:
    """An affinity as the allocator writes it."""
    key = f"/calico/ipam/v2/host/{host}/ipv4/block/{cidr.replace('/', '-')}"
    lab["etcd"].run("etcdctl", "put", key, '{"state":"confirmed","deleted":false}', env={"ETCDCTL_API": "3"})


def test_address_of_another_node(lab: Lab, pair: tuple[CalicoNode, CalicoNode]) -> None:
    """A claimed address is refused: who has it, how to delete a stale node, how to choose another; status 1."""
    host3 = lab.node("host3")
    machine = host3.machine
    environment = {**host3.environment(), "IP": "172.20.62.110/24"}
    done = machine.run("calicoctl", "node", "run", env=environment, check=False, seconds=90)
    assert done.returncode == 1
    for part in ("Calico node 'host1' is already using the IPv4 address 172.20.62.110", "calicoctl delete node host1"):
        assert part in done.stdout
    assert "Traceback" not in done.stdout and "calico-node has terminated (status 1)" in done.stdout
    assert "/calico/resources/v3/projectcalico.org/nodes/host3" not in lab.etcd.keys()


def test_bad_settings_are_told_together(lab: Lab) -> None:
    """Several mistakes give one answer, before anything is started."""
    machine = lab["host3"]
    words = ("calicoctl", "node", "run", "--ip", "fd00::1", "--as", "x", "--backend", "gobgp")
    done = machine.run(*words, check=False)
    assert done.returncode == 1 and all(name in done.stdout for name in ("IP = ", "AS = ", "CALICO_NETWORKING_BACKEND"))


def test_unreachable_etcd(lab: Lab) -> None:
    """The error names the datastore, the endpoint and its source; nothing keeps running."""
    node = CalicoNode(lab["host3"], "http://172.20.62.127:9")
    done = node.machine.run("calicoctl", "node", "run", env=node.environment(), check=False, seconds=60)
    assert done.returncode == 1
    assert "Error accessing the Calico datastore" in done.stdout and "172.20.62.127:9" in done.stdout
    assert not [one for one in node.machine.processes() if one.argv[0].startswith("s6-")]


def test_missing_program(lab: Lab) -> None:
    """A host without BIRD is told which Debian package has it."""
    machine = lab["host3"]
    script = machine.shell("command -v calico-node").strip()
    hide = f"mount --bind /dev/null /usr/sbin/bird; exec {script}"
    done = machine.run("unshare", "-m", "sh", "-c", hide, env=lab.node("host3").environment(), check=False)
    assert done.returncode == 1 and "bird (Debian package bird2)" in done.stdout
    assert "apt-get install bird2" in done.stdout


def test_embedded_etcd_and_a_bare_host_afterwards(lab: Lab) -> None:
    """Nothing set and nothing there: an etcd of its own; `node reset` leaves the host as it was before."""
    machine = lab["host4"]  # untouched so far
    before = bare.look(machine)
    said = machine.run("calicoctl", "node", "run", seconds=90).stdout
    assert STARTED in said.splitlines()
    listening = {line.split()[3] for line in machine.shell("ss -tlnH 'sport = :2379'").splitlines()}
    assert listening == {"127.0.0.1:2379", "172.20.62.12:2379"}
    assert "host4" in machine.run("calicoctl", "get", "nodes").stdout
    machine.run("calicoctl", "node", "reset")
    assert bare.differences(before, bare.look(machine)) == []


def test_reset_with_a_shared_etcd(lab: Lab, pair: tuple[CalicoNode, CalicoNode]) -> None:
    """The node is gone from the datastore, the neighbour loses session and routes at once; twice is no error."""
    node, other = pair
    give_block(lab, "host1", "192.168.7.0/26")
    wait_for("the route", lambda: "192.168.7.0/26 via" in other.machine.shell("ip route"), 15)
    said = node.ctl("node", "reset")
    assert "Deleted Node(host1)" in said and "This host is bare" in said
    wait_for("the end of the route", lambda: "192.168.7.0/26" not in other.machine.shell("ip route"), 10)
    assert not [key for key in lab.etcd.keys() if "nodes/host1" in key]
    assert node.machine.shell("ip route").count("proto bird") == 0
    assert "This host is bare" in node.ctl("node", "reset")


def test_vxlan_and_what_is_not_in_force(lab: Lab) -> None:
    """A pool that wraps packets: device and tunnel address come with the start and go with the pool's mode; a peer that
    BIRD refuses is named by `node status`; `node reset` removes all.
    """
    node = lab.node("host3")
    machine = node.machine
    try:
        node.run(CALICO_IPV4POOL_VXLAN="CrossSubnet")
        wait_for("the device", lambda: "vxlan.calico" in machine.shell("ip -br link"), 10)
        address = machine.shell("ip -br -4 addr show dev vxlan.calico").split()[2].removesuffix("/32")
        shown = node.ctl("get", "node", "host3", "-o", "yaml")
        assert f"ipv4VXLANTunnelAddr: {address}" in shown and "vxlanTunnelMACAddr:" in shown
        assert "Not in force" not in node.ctl("node", "status")
        peer = "{apiVersion: projectcalico.org/v3, kind: BGPPeer, metadata: {name: bad}, spec: {%s}}"
        apply = f"calicoctl apply -f - <<'E'\n{peer % 'peerIP: 10.0.0.9, asNumber: 65001, keepaliveTime: 300s'}\nE\n"
        machine.run("sh", "-c", apply, env=node.environment())
        wait_for("the peer to be named", lambda: "BGPPeer(bad)" in node.ctl("node", "status"), 15)
        said = node.ctl("node", "status")
        assert "Not in force as configured:" in said and "Keepalive time must be at most hold time" in said
        node.ctl("patch", "ippool", "default-ipv4-ippool", "-p", '{"spec": {"vxlanMode": "Never"}}')
        wait_for("the end of the device", lambda: "vxlan.calico" not in machine.shell("ip -br link"), 10)
        wait_for("the end of its address", lambda: "VXLAN" not in node.ctl("get", "node", "host3", "-o", "yaml"), 10)
        node.ctl("patch", "ippool", "default-ipv4-ippool", "-p", '{"spec": {"vxlanMode": "Always"}}')
        wait_for("the device", lambda: "vxlan.calico" in machine.shell("ip -br link"), 10)
    finally:
        node.ctl("node", "reset", "--force", check=False)
    assert "vxlan.calico" not in machine.shell("ip -br link") and "proto 80" not in machine.shell("ip route")
    lab["etcd"].run("etcdctl", "del", "--prefix", "/calico", env={"ETCDCTL_API": "3"})


def test_backend_without_bgp(lab: Lab) -> None:
    """`--backend vxlan`: address and tunnel, and no BIRD; `node status` says so."""
    node = lab.node("host3")
    machine = node.machine
    try:
        environment = {**node.environment(), "CALICO_IPV4POOL_VXLAN": "Always"}
        said = machine.run("calicoctl", "node", "run", "--backend", "vxlan", env=environment, seconds=90).stdout
        assert STARTED in said.splitlines() and node.part("bird") == []
        wait_for("the device", lambda: "vxlan.calico" in machine.shell("ip -br link"), 10)
        assert "None of the BGP backend processes (BIRD) are running." in node.ctl("node", "status")
    finally:
        node.ctl("node", "reset", "--force", check=False)
        lab["etcd"].run("etcdctl", "del", "--prefix", "/calico", env={"ETCDCTL_API": "3"})
