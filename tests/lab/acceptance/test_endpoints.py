"""Points 19 to 32 of the acceptance list: containers on our networks."""
from __future__ import annotations

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.lab import leaks
from tests.lab.acceptance.dockers import address, ends, network_of, refused, since
from tests.lab.connectivity import Container
from tests.lab.wait import wait_for

# On 20.10 with a cluster store, most of it is also in tests/lab/test_experiment.py, which is quicker.
pytestmark = [pytest.mark.long, pytest.mark.timeout(400)]
FIXED = ("--subnet", "192.168.0.0/16")


def test_p07_fifty_containers_at_once(lab, network):
    """Fifty `docker run` on two hosts, all at once: all run, each with an address of its own, and reach each other."""
    net = network("acc_fifty")

    def start(number: int) -> str:
        host = lab.hosts[number % 2]
        return lab[host].run("docker", "run", "-d", "--init", "--name", f"fifty-{number}", "--net", net, "busybox",
                             "sleep", "1000", seconds=240).stdout

    with ThreadPoolExecutor(50) as pool:
        list(pool.map(start, range(50)))
    found = [one.address for host in lab.hosts for one in leaks.attachments(lab, host)]
    assert len(found) == len(set(found)) == 50
    first = Container(lab["host1"], "fifty-0")
    wait_for("all to be reached", lambda: all(first.pings(one) for one in found), 30)
    # One after the other: Docker 20.10 miscounts a network's endpoints when many go at once (docs/networks.md).
    for number in range(50):
        lab[lab.hosts[number % 2]].run("docker", "rm", "-f", f"fifty-{number}")


def test_p19_p20_inspect_and_mac(network, run):
    """inspect shows the MAC, a /32 and the gateway as they are inside; a MAC of the user's is kept."""
    net = network("acc_inspect", *FIXED)
    for options in ((), ("--mac-address", "02:42:ac:1f:00:07")):
        one = run("host1", f"inspect{len(options)}", net, *options)
        shown = ends(one)[net]
        assert (shown["IPPrefixLen"], shown["Gateway"]) == (32, "169.254.1.1")
        assert not options or shown["MacAddress"] == options[1]
        inside = one.run("ip", "address") + one.run("ip", "route")
        assert f"inet {shown['IPAddress']}/32" in inside and f"link/ether {shown['MacAddress']}" in inside
        assert "default via 169.254.1.1" in inside


def test_p21_fixed_address(lab, network, run):
    """`--ip` in a subnet of the user's; refused while in use, free again right after `rm`, on any host."""
    net = network("acc_fixed", *FIXED)
    one = run("host1", "fixed-a", net, "--ip", "192.168.77.7")
    assert one.address() == "192.168.77.7"
    said = refused(lab, "host2", "docker", "run", "--rm", "--net", net, "--ip", "192.168.77.7", "busybox", "true")
    assert "192.168.77.7" in said and "in use on node host1" in said
    one.remove()
    again = run("host2", "fixed-b", net, "--ip", "192.168.77.7")
    near = run("host1", "fixed-c", net)
    wait_for("the way to it", lambda: near.pings("192.168.77.7"), 15)
    assert again.address() == "192.168.77.7"


def test_p22_fixed_address_without_a_subnet(lab, network):
    """Docker itself refuses `--ip` in a network without `--subnet`; nothing of ours changes."""
    net = network("acc_unfixed")
    said = refused(lab, "host1", "docker", "run", "--rm", "--net", net, "--ip", "192.168.77.7", "busybox", "true")
    assert "configured subnet" in said, said
    assert not leaks.container_addresses(lab)


def test_p23_start_and_stop(lab, network, run):
    """The same container stopped and started twenty times: each time connected, and nothing is left of the old."""
    net = network("acc_again")
    near = run("host2", "again-near", net)
    one = run("host1", "again", net)
    for _ in range(20):
        lab["host1"].run("docker", "stop", "-t", "1", one.name)
        lab["host1"].run("docker", "start", one.name)
        assert one.run("ping", "-c", "1", "-W", "2", one.address())
    wait_for("the way to it", lambda: near.pings(one.address()), 15)
    wait_for("nothing else", lambda: leaks.none(lab), 15)


def test_p24_connect_and_disconnect(lab, network, run):
    """On a running and on a stopped container; `disconnect -f` too."""
    first, second = network("acc_connect1"), network("acc_connect2")
    host = lab["host1"]
    one, near = run("host1", "connect", first), run("host2", "connect-near", second)
    host.run("docker", "network", "connect", second, one.name)
    wait_for("a route", lambda: near.pings(address(one, second)), 15)
    host.run("docker", "network", "disconnect", second, one.name)
    assert set(ends(one)) == {first} and len(leaks.attachments(lab, "host1")) == 1
    host.run("docker", "stop", "-t", "1", one.name)
    host.run("docker", "network", "connect", second, one.name)
    host.run("docker", "network", "disconnect", first, one.name)
    host.run("docker", "start", one.name)
    wait_for("a route", lambda: near.pings(address(one, second)), 15)
    host.run("docker", "network", "disconnect", "-f", second, one.name)
    wait_for("nothing of it", lambda: leaks.none(lab), 15)
    assert not leaks.attachments(lab, "host1")


def default_network(one: Container) -> str:
    """The network that has a container's default route, by the address of the device of that route."""
    device = one.run("ip", "route", "show", "default").split("dev ")[1].split()[0]
    inside = one.run("ip", "address", "show", "dev", device)
    return next(name for name, end in ends(one).items() if f"inet {end['IPAddress']}/" in inside)


def test_p25_several_networks_and_a_bridge(lab, network, run):
    """Three Calico networks and a bridge: each address is reached; when the default one goes, the next takes over."""
    names = [network(f"acc_many{number}") for number in (1, 2, 3)]
    host = lab["host1"]
    host.run("docker", "network", "create", "acc_xbridge")
    try:
        both = run("host1", "many", names[1])
        for name in (names[2], "acc_xbridge", names[0]):
            host.run("docker", "network", "connect", name, both.name)
        members = {name: run("host2", f"many-of-{name}", name) for name in names}
        members["acc_xbridge"] = run("host1", "many-of-bridge", "acc_xbridge")
        for name, member in members.items():
            wait_for(f"an answer in {name}", lambda: member.pings(address(both, name)), 15)
        for name in names:
            assert default_network(both) == name  # the first in the alphabet
            assert both.pings(members[name].address())
            host.run("docker", "network", "disconnect", name, both.name)
        assert default_network(both) == "acc_xbridge"
        assert members["acc_xbridge"].pings(address(both, "acc_xbridge"))
    finally:
        lab.docker("host1").remove_all_containers()
        host.run("docker", "network", "rm", "acc_xbridge")


def test_p28_failed_join(lab, network, run):
    """Without agent no container starts: an error that says so, nothing is left; with the agent all is well again."""
    net, node = network("acc_join"), lab.node("host1")
    agents = node.part("agent")
    for one in agents:
        one.send(19)  # SIGSTOP: it lives, and does nothing
    try:
        said = refused(lab, "host1", "docker", "run", "--name", "join", "--net", net, "busybox", "true")
        assert "calico-agent" in said, said
        state = lab["host1"].run("docker", "inspect", "-f", "{{.State.Running}}", "join").stdout.strip()
        assert state == "false"
    finally:
        for one in agents:
            one.send(18)
    wait_for("nothing left", lambda: leaks.none(lab), 30)
    lab["host1"].run("docker", "start", "-a", "join")


def test_p29_internal_network(lab, network, run):
    """No default route, and no question to a name server leaves it; members of both hosts reach each other."""
    inside, plain = network("acc_internal", "--internal"), network("acc_open")
    a, b, c = run("host1", "internal-a", inside), run("host2", "internal-b", inside), run("host1", "open", plain)
    wait_for("a route", lambda: a.pings(b.address()), 15)
    assert "default" not in a.run("ip", "route") and not a.pings("172.20.62.127")
    assert c.pings("172.20.62.127")
    capture = lab["fabric"].popen("timeout", "20", "tcpdump", "-n", "-l", "-i", "br0", "udp port 53",
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        wait_for("tcpdump to listen", lambda: "listening" in capture.stdout.readline(), 10)
        for one, name in ((a, "secret.example"), (c, "marker.example")):
            one.run("timeout", "3", "nslookup", name, check=False)
        heard = capture.stdout.readline()
    finally:
        capture.kill()
    assert "marker.example" in heard and "secret.example" not in heard


@pytest.fixture
def six(lab):
    """The hosts have IPv6 addresses, and BGP sessions for IPv6."""
    for number, host in enumerate(lab.hosts, 1):
        lab[host].run("ip", "address", "add", f"fd00:20::{number}/64", "dev", "eth0", "nodad")
        lab.node(host).run(IP6="autodetect")
    yield
    for number, host in enumerate(lab.hosts, 1):
        lab[host].run("ip", "address", "del", f"fd00:20::{number}/64", "dev", "eth0")
        lab.node(host).run(IP6="none")
        # What is stored stays: BIRD would wait for sessions of that address before it gives new routes to the kernel.
        lab.node(host).ctl("patch", "node", host, "-p", '{"spec": {"bgp": {"ipv6Address": null}}}')
    for host in lab.hosts:
        wait_for("the restart to be over", lambda: "graceful restart" not in lab.node(host).ctl("node", "status"), 40)


def test_p30_two_families(lab, six, network, pool, run):
    """`--ipv6` with `--ip6`; the container's addresses of both families are reached from the other host."""
    net = network("acc_dual", "--ipv6", *FIXED, "--subnet", pool("dual", "fd00:77::/64"))
    a = run("host1", "dual-a", net, "--ip6", "fd00:77::a")
    b = run("host2", "dual-b", net)
    assert ends(a)[net]["GlobalIPv6Address"] == "fd00:77::a"
    wait_for("IPv4", lambda: b.pings(address(a, net)), 20)
    wait_for("IPv6", lambda: b.pings("fd00:77::a"), 20)
    assert a.pings(ends(b)[net]["GlobalIPv6Address"])
    # IPv6 switched off by the user in one container of it: Docker's error or a container with IPv4, never a hang.
    said = lab["host1"].run("docker", "run", "--rm", "--net", net, "--sysctl", "net.ipv6.conf.all.disable_ipv6=1",
                            "busybox", "ip", "route", check=False, seconds=40)
    assert said.returncode == 0 and "169.254.1.1" in said.stdout or "ipv6" in said.stdout.lower(), said.stdout


def test_p30_ipv6_only(lab, six, network, pool, run):
    """Docker 28: `--ipv4=false --ipv6`."""
    since(lab, 28)
    net = network("acc_six", "--ipv4=false", "--ipv6", "--subnet", pool("six", "fd00:77::/64"))
    a, b = run("host1", "six-a", net), run("host2", "six-b", net)
    assert not ends(a)[net]["IPAddress"]
    wait_for("IPv6", lambda: b.pings(ends(a)[net]["GlobalIPv6Address"]), 20)
    assert "inet " not in a.run("ip", "address", "show", "dev", "cali0")


def test_p31_stats_and_inspect_after_disconnect(lab, network, run):
    """`docker stats`, `inspect`, `network inspect` with two networks, and after one of them was taken away."""
    first, second = network("acc_stats1"), network("acc_stats2")
    host, one = lab["host1"], run("host1", "stats", first)
    host.run("docker", "network", "connect", second, one.name)
    for expected in ({first, second}, {second}):
        shown = json.loads(host.run("docker", "stats", "--no-stream", "--format", "{{json .}}", one.name).stdout)
        assert "/" in shown["NetIO"] and shown["NetIO"] != "-- / --"
        assert set(ends(one)) == expected
        members = {name: [each["Name"] for each in network_of(lab, "host1", name)["Containers"].values()]
                   for name in (first, second)}
        assert members == {name: [one.name] if name in expected else [] for name in (first, second)}
        host.run("docker", "network", "disconnect", first, one.name, check=False)


def test_p32_gateway_priority(lab, network, run):
    """Docker 28: `connect --gw-priority` moves the default route; it moves back when that network goes."""
    since(lab, 28)
    first, second = network("acc_prio1"), network("acc_prio2")
    one, near = run("host1", "prio", first), run("host2", "prio-near", second)
    assert default_network(one) == first
    lab["host1"].run("docker", "network", "connect", "--gw-priority", "1", second, one.name)
    assert default_network(one) == second
    wait_for("a route", lambda: near.pings(address(one, second)) and one.pings(near.address()), 15)
    lab["host1"].run("docker", "network", "disconnect", second, one.name)
    assert default_network(one) == first


def test_restart_policy(lab, network, run):
    """`--restart` brings back a container whose process dies; it is connected anew."""
    net = network("acc_policy")
    one, near = run("host1", "policy", net, "--restart", "always"), run("host2", "policy-near", net)
    before = one.inspect("{{.State.Pid}}")
    lab["host1"].run("docker", "exec", one.name, "kill", "1", check=False)
    wait_for("another process", lambda: one.inspect("{{.State.Pid}}") not in (before, "0"), 15)
    wait_for("the way to it", lambda: near.pings(one.address()), 15)
