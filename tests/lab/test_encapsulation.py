"""Docker containers on a pool that wraps packets between the hosts; the mode changes while they run."""
from __future__ import annotations

import json

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
