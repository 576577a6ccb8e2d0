"""Docker containers on a pool that wraps packets between the hosts, or hides addresses; it changes while they run."""
from __future__ import annotations

import json
import re
import subprocess

import pytest

from tests.lab.connectivity import Stream
from tests.lab.wait import wait_for

pytestmark = pytest.mark.usefixtures("no_leaks")
POOL = "default-ipv4-ippool"


@pytest.fixture
def mode(lab):
    """``mode("Always")`` changes the pool's; afterwards it is plain again, and nothing of the tunnels is left."""
    node = lab.node("host1")

    def change(wanted: str) -> None:
        node.ctl("patch", "ippool", POOL, "-p", json.dumps({"spec": {"vxlanMode": wanted}}))

    yield change
    change("Never")
    for host in lab.hosts:
        wait_for("the end of the device", lambda: "vxlan.calico" not in lab[host].shell("ip -br link"), 15)
        wait_for("the end of its address", lambda: "VXLANTunnelAddr" not in node.ctl(
            "get", "node", host, "-o", "yaml"), 15)


def reach(source, target) -> None:
    wait_for(f"{source.name} to reach {target.name}", lambda: source.pings(target.address()), 15)


def received(machine) -> int:
    """Packets out of the tunnel."""
    shown = machine.shell("ip -s -j link show dev vxlan.calico")
    return json.loads(shown)[0]["stats64"]["rx"]["packets"]


def test_mode_changes_under_running_containers(lab, network, run, mode):
    """Plain, wrapped, plain again: containers reach each other all the time, by name too; new ones get a smaller MTU;
    `ipam check` knows the tunnels' addresses."""
    net = network("cal_wrapped")
    a, b = run("host1", "wrap-a", net), run("host2", "wrap-b", net)
    reach(a, b)
    mode("Always")
    for host in lab.hosts:
        wait_for("the device", lambda: "proto 80 onlink" in lab[host].shell("ip route show dev vxlan.calico"), 15)
    reach(a, b)
    assert a.pings("wrap-b")
    before = received(lab["host2"])
    assert a.pings(b.address())
    assert received(lab["host2"]) > before
    late = run("host1", "wrap-late", net)
    assert "mtu 1450" in late.run("ip", "link", "show", "cali0") and "mtu 1500" in a.run("ip", "link", "show", "cali0")
    reach(late, b)
    said = lab.node("host1").ctl("ipam", "check")
    assert "Found 2 node tunnel IPs." in said and "0 IPs" not in said.splitlines()[-1]
    mode("Never")
    reach(a, b)
    reach(b, late)


@pytest.mark.parametrize("kind", ["ping", "tcp"])
def test_traffic_goes_on_through_the_change(network, run, mode, kind):
    """A stream between the hosts pauses for a few seconds at most, and no connection breaks."""
    net = network("cal_change")
    a, b = run("host1", "change-a", net), run("host2", "change-b", net)
    reach(a, b)
    with Stream(a, b, kind) as stream:
        for wanted in ("Always", "CrossSubnet", "Never"):
            mode(wanted)
            wait_for("the ping", lambda: a.pings(b.address()), 15)
    stream.unbroken(longest=5)
    print(f"{kind}: longest pause {stream.longest:.2f} s, {stream.lost} lost")


@pytest.mark.long
def test_nat_outgoing_hides_containers_from_others_only(lab, network, run):
    """Who is no node and in no pool sees the host's address where the pool says so; containers see each other's."""
    node, outside = lab.node("host1"), "172.20.62.127"
    net = network("cal_nat")
    a, b = run("host1", "nat-a", net), run("host2", "nat-b", net)
    reach(a, b)
    node.ctl("patch", "ippool", POOL, "-p", json.dumps({"spec": {"natOutgoing": True}}))
    try:
        hosts_own = str(lab.spec.address("host1").ip)
        with Heard(lab["etcd"]) as heard:
            wait_for("the host's address", lambda: a.pings(outside) and hosts_own in heard.now(), 15)
        with Heard(lab["etcd"]) as heard:
            assert a.pings(outside)
        assert heard.sources == {hosts_own}
        with Heard(lab["host2"]) as heard:
            assert a.pings(b.address())
        assert heard.sources == {a.address()}
    finally:
        node.ctl("patch", "ippool", POOL, "-p", json.dumps({"spec": {"natOutgoing": False}}))
    with Heard(lab["etcd"]) as heard:
        wait_for("the plain address", lambda: not a.pings(outside) or a.address() in heard.now(), 15)
    assert a.address() in heard.sources


class Heard:
    """Who sends echo requests that come to a machine from the others."""

    def __init__(self, machine) -> None:
        self._file = machine.logs / "heard.txt"
        with self._file.open("wb") as file:
            self._capture = machine.popen("tcpdump", "-nlQ", "in", "--immediate-mode", "-i", "eth0",
                                          "icmp[icmptype] == icmp-echo", stdout=file, stderr=subprocess.STDOUT)

    def __enter__(self) -> Heard:
        wait_for("tcpdump to listen", lambda: "listening" in self._file.read_text(), 10)
        return self

    def __exit__(self, *_: object) -> None:
        self._capture.terminate()
        self._capture.wait(10)
        self.sources = self.now()

    def now(self) -> set[str]:
        return set(re.findall(r"IP (\S+) > \S+: ICMP echo request", self._file.read_text()))
