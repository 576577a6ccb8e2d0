"""The experiment of the mission on two real Docker hosts: what a first user does, in order."""
from __future__ import annotations

import json
import re
import subprocess

import pytest

from tests.lab.connectivity import matrix
from tests.lab.leaks import attachments, differences
from tests.lab.wait import wait_for

pytestmark = pytest.mark.usefixtures("no_leaks")
POOL = "192.168."


def test_node_status_is_established(lab):
    """Each host's `calicoctl node status` shows the other as an established mesh peer, in the original's table."""
    for host, other in (("host1", "host2"), ("host2", "host1")):
        text = lab.node(host).ctl("node", "status")
        peer = re.escape(str(lab.spec.address(other).ip))
        assert "Calico process is running." in text
        assert re.search(rf"\| {peer} +\| node-to-node mesh +\| up +\| \S+ +\| Established +\|", text), text


def test_network_is_visible_everywhere(lab, network):
    """A network made on one host is there on the other, as driver calico and scope global."""
    network("cal_seen")
    for host in lab.hosts:
        line = lab[host].run("docker", "network", "ls", "-f", "name=cal_seen", "--format",
                             "{{.Name}} {{.Driver}} {{.Scope}}").stdout.strip()
        assert line == "cal_seen calico global"


def test_containers_reach_each_other_by_address_and_name(lab, network, run):
    """On one host and across hosts, by address and by container name."""
    net = network("cal_reach")
    a, b, c = run("host1", "reach-a", net), run("host1", "reach-b", net), run("host2", "reach-c", net)
    assert all(one.address().startswith(POOL) for one in (a, b, c))
    wait_for("the route to the other host's block", lambda: a.pings(c.address()), 15)
    assert all(matrix([a, b, c]).values())
    for source, name in ((a, "reach-b"), (a, "reach-c"), (c, "reach-a")):
        assert source.pings(name), f"{source.name} does not reach {name} by name"
    # Docker's own store carries them here; where it does not, calico-agent does (test_names.py).
    assert lab.etcd.keys("/calico/docker/v1/endpoint-names/") == []


def test_networks_are_isolated(network, run):
    """Members of a second network reach each other, and nobody of the first; nor the other way round."""
    first, second = network("cal_one"), network("cal_two")
    a, b = run("host1", "iso-a", first), run("host2", "iso-b", first)
    x, y = run("host1", "iso-x", second), run("host2", "iso-y", second)
    wait_for("routes between the hosts", lambda: a.pings(b.address()) and x.pings(y.address()), 15)
    inside = {frozenset((a.name, b.name)), frozenset((x.name, y.name))}
    seen = matrix([a, b, x, y])
    assert seen == {pair: frozenset(pair) in inside for pair in seen}


def test_container_reaches_its_host_and_the_outside(lab, network, run):
    """Egress is open: the own host, the other host and etcd answer (outgoing NAT of the default pool)."""
    a = run("host1", "out-a", network("cal_out"))
    for target in ("172.20.62.110", "172.20.62.105", "172.20.62.127", "172.20.62.1"):
        assert a.pings(target, wait=2), target


def test_traffic_on_the_wire_is_plain(lab, network, run):
    """Between the hosts go ICMP packets with the containers' own addresses: no tunnel, no NAT."""
    net = network("cal_wire")
    a, b = run("host1", "wire-a", net), run("host2", "wire-b", net)
    wait_for("a route", lambda: a.pings(b.address()), 15)
    capture = lab["host2"].popen("timeout", "10", "tcpdump", "-n", "-l", "-c", "4", "-i", "eth0",
                                 f"host {a.address()} or proto 4 or udp port 4789",
                                 stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for("tcpdump to listen", lambda: "listening" in capture.stdout.readline(), 10)
    a.run("ping", "-c", "2", b.address())
    text = capture.communicate(timeout=20)[0]
    assert text.count(f"IP {a.address()} > {b.address()}: ICMP echo request") == 2, text
    assert text.count(f"IP {b.address()} > {a.address()}: ICMP echo reply") == 2, text


def test_routes_are_those_of_calico(lab, network, run):
    """A /32 to the local container without a next hop, the other host's block by BIRD, and 169.254.1.1 inside."""
    net = network("cal_route")
    a, b = run("host1", "route-a", net), run("host2", "route-b", net)
    wait_for("a route", lambda: a.pings(b.address()), 15)
    routes = json.loads(lab["host1"].run("ip", "-j", "route").stdout)
    local = [route for route in routes if route["dst"] == a.address()]
    assert [(route["dev"], route["scope"]) for route in local] == [(a.interface(), "link")]
    block = [route for route in routes if route.get("protocol") == "bird" and route.get("gateway") == "172.20.62.105"]
    assert block and all(route["dev"] == "eth0" for route in block), routes
    inside = a.run("ip", "route")
    assert "default via 169.254.1.1 dev" in inside and re.search(r"169\.254\.1\.1 dev \S+ scope link", inside), inside


def test_inspect_tells_the_truth(lab, network, run):
    """docker inspect, the container and etcd agree on address, MAC and endpoint."""
    a = run("host1", "truth-a", network("cal_truth"))
    mac = a.inspect("{{range .NetworkSettings.Networks}}{{.MacAddress}}{{end}}")
    inside = a.run("ip", "address")
    assert f"inet {a.address()}/32" in inside and mac and f"link/ether {mac}" in inside, inside
    assert [one.address for one in attachments(lab, "host1")] == [a.address()]


def test_stopped_container_leaves_nothing(lab, network, run):
    """Within 10 s of a stop the link, route, rules, address and endpoint are gone (see also no_leaks)."""
    a = run("host1", "stop-a", network("cal_stop"))
    lab["host1"].run("docker", "stop", a.name)
    wait_for("nothing left", lambda: not differences(lab), 10)


def test_several_networks_in_one_container(network, run):
    """Members of either network reach a container on both; it reaches out through the network that is its default."""
    first, second = network("cal_m1"), network("cal_m2")
    a, x = run("host1", "multi-a", first), run("host2", "multi-x", second)
    both = run("host1", "multi-both", first)
    both.machine.run("docker", "network", "connect", second, both.name)
    template = '{{{{(index .NetworkSettings.Networks "{}").IPAddress}}}}'
    one, other = both.inspect(template.format(first)), both.inspect(template.format(second))
    wait_for("a route", lambda: x.pings(other), 15)
    assert a.pings(one) and not a.pings(other) and not x.pings(one)
    assert both.pings(a.address())
    both.machine.run("docker", "network", "disconnect", first, both.name)
    assert x.pings(other) and both.pings(x.address())


def test_network_with_a_subnet_and_a_fixed_address(lab, network, run):
    """`--subnet` is a pool's CIDR; `--ip` then chooses the address; one in use is refused with the address."""
    net = network("cal_fixed", "--subnet", "192.168.0.0/16")
    a = run("host1", "fixed-a", net, "--ip", "192.168.77.7")
    assert a.address() == "192.168.77.7"
    words = ("docker", "run", "--rm", "--net", net, "--ip", "192.168.77.7", "busybox", "true")
    refused = lab["host1"].run(*words, check=False)
    assert refused.returncode != 0 and "192.168.77.7" in refused.stdout


def test_unknown_subnet_is_refused_by_name(lab):
    """A subnet that no pool holds: the refusal names the CIDR."""
    answer = lab["host1"].run("docker", "network", "create", "--driver", "calico", "--ipam-driver", "calico-ipam",
                              "--subnet", "10.99.0.0/16", "cal_bad", check=False)
    assert answer.returncode != 0 and "10.99.0.0/16" in answer.stdout, answer.stdout


def test_unknown_option_is_refused_by_name(lab):
    """An unknown --opt: the refusal names it."""
    answer = lab["host1"].run("docker", "network", "create", "--driver", "calico", "--ipam-driver", "calico-ipam",
                              "--opt", "no.such.option=1", "cal_bad", check=False)
    assert answer.returncode != 0 and "no.such.option" in answer.stdout, answer.stdout


def test_policy_is_in_force_before_the_first_packet(lab, network, run):
    """A container's very first probe at a foreign network's member fails, and at its own network's member succeeds.

    Ten fresh containers each try both at once: a moment without policy, or without a route, would show.
    """
    own, foreign = network("cal_own"), network("cal_foreign")
    friend, stranger = run("host1", "first-friend", own), run("host1", "first-stranger", foreign)
    script = (f"ping -c1 -W1 {friend.address()} >/dev/null && echo friend-ok; "
              f"ping -c1 -W1 {stranger.address()} >/dev/null && echo STRANGER-REACHED; true")
    for _ in range(10):
        said = lab["host1"].run("docker", "run", "--rm", "--net", own, "busybox", "sh", "-c", script).stdout
        assert said.split() == ["friend-ok"], said
