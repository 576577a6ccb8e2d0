"""Points 9 to 18 of the acceptance list: networks and IPAM."""
from __future__ import annotations

import pytest

from tests.lab import leaks
from tests.lab.acceptance.dockers import CREATE, network_of, networks, refused
from tests.lab.wait import wait_for


def stored(lab) -> tuple[set[str], set[str], list[str]]:
    """All that a network has in etcd: addresses, handles, records."""
    return leaks.container_addresses(lab), leaks.handles(lab), lab.etcd.keys("/calico/docker/")


def test_p09_p10_options_reach_the_driver(lab, network, pool, run):
    """`-o` (also with Calico's prefix), `--ipam-opt` and `--label` are shown by inspect and mean something."""
    pool("acceptance", "10.77.0.0/24")
    words = ("-o", "org.projectcalico.pool-routes=true", "-o", "com.docker.network.driver.mtu=1400",
             "--ipam-opt", "pool=acceptance", "--label", "team=blue")
    net = network("acc_options", *words)
    for host in lab.hosts:
        shown = network_of(lab, host, net)
        assert shown["Options"] == {"org.projectcalico.pool-routes": "true", "com.docker.network.driver.mtu": "1400"}
        assert shown["IPAM"]["Options"] == {"pool": "acceptance"} and shown["Labels"] == {"team": "blue"}
    one = run("host2", "options", net)
    assert one.address().startswith("10.77.0.")
    assert "mtu 1400" in one.run("ip", "link")
    assert "10.77.0.0/24 via 169.254.1.1" in one.run("ip", "route")


def test_p09_unknown_options_are_refused_with_help(lab):
    """One line that names the option, what was probably meant, and the known ones."""
    said = refused(lab, "host1", *CREATE, "-o", "mtu=1400", "acc_bad")
    assert "--opt mtu: not known to driver calico; did you mean com.docker.network.driver.mtu? known:" in said
    said = refused(lab, "host1", *CREATE, "--ipam-opt", "pol=x", "acc_bad")
    assert "--ipam-opt pol: not known to calico-ipam; did you mean pool? known: inside-pool, pool" in said
    assert stored(lab) == (set(), set(), [])


@pytest.mark.long
def test_p11_our_addresses_on_dockers_bridge(lab):
    """`--driver bridge --ipam-driver calico-ipam`: refused by Docker without a `--subnet`, works with one."""
    words = ("docker", "network", "create", "-d", "bridge", "--ipam-driver", "calico-ipam")
    host, subnet = lab["host1"], ("--subnet", "192.168.0.0/16", "--gateway", "192.168.7.1")
    said = refused(lab, "host1", *words, "acc_bridge")
    assert "Error response from daemon" in said and len(said.splitlines()) == 1, said
    host.run(*words, *subnet, "acc_bridge")
    shown = network_of(lab, "host1", "acc_bridge")
    host.run("docker", "network", "rm", "acc_bridge")
    assert (shown["Driver"], shown["IPAM"]["Driver"]) == ("bridge", "calico-ipam")
    wait_for("nothing of it", lambda: stored(lab) == (set(), set(), []), 10)


@pytest.mark.parametrize("ipam", ["default", "null"])
def test_p12_foreign_addresses_on_our_network(lab, ipam):
    """`--driver calico` without our IPAM: refused with the words to add."""
    said = refused(lab, "host1", "docker", "network", "create", "-d", "calico", "--ipam-driver", ipam, "acc_foreign")
    assert "add --ipam-driver calico-ipam" in said and len(said.splitlines()) == 1, said
    assert not networks(lab, "host1")


@pytest.mark.long
def test_p13_no_storm_where_the_lan_overlaps(lab, pool):
    """The host has an address inside our pools and a name server of IPv6: networks without subnet are made at once."""
    pool("six", "fd00:77::/64")
    host = lab["host1"]
    host.shell("ip address add 192.168.9.1/24 dev eth0 && cp /etc/resolv.conf /run/resolv.conf && "
               "echo nameserver fd00:99::53 >>/etc/resolv.conf")
    try:
        for words in ((), ("--ipv6",)):
            host.run(*CREATE, *words, "acc_overlap", seconds=10)
            host.run("docker", "network", "rm", "acc_overlap")
    finally:
        host.shell("ip address del 192.168.9.1/24 dev eth0; cat /run/resolv.conf >/etc/resolv.conf")


def test_p14_subnet_range_gateway_and_auxiliary_addresses(lab, network, pool, run):
    """Addresses come out of the range; gateway and auxiliary ones are never given; a full range says so."""
    net = network("acc_range", "--subnet", pool("range", "10.77.0.0/24"), "--ip-range", "10.77.0.8/30",
                  "--gateway", "10.77.0.9", "--aux-address", "printer=10.77.0.10", "--aux-address", "far=10.77.0.77")
    given = {run("host1", "range-a", net).address(), run("host1", "range-b", net).address()}
    assert given == {"10.77.0.8", "10.77.0.11"}
    said = refused(lab, "host1", "docker", "run", "--rm", "--net", net, "busybox", "true")
    assert "10.77.0.8/30" in said, said
    for taken in ("10.77.0.9", "10.77.0.77"):
        said = refused(lab, "host1", "docker", "run", "--rm", "--net", net, "--ip", taken, "busybox", "true")
        assert taken in said, said


@pytest.mark.long
def test_p14_subnet_inside_a_pool(lab, network, pool, run):
    """A part of a pool needs the option, which the refusal names."""
    pool("inside", "10.77.0.0/24")
    said = refused(lab, "host1", *CREATE, "--subnet", "10.77.0.64/26", "acc_inside")
    assert "10.77.0.64/26" in said and "--ipam-opt inside-pool=true" in said
    net = network("acc_inside", "--subnet", "10.77.0.64/26", "--ipam-opt", "inside-pool=true")
    assert 64 <= int(run("host2", "inside", net).address().split(".")[3]) < 128


@pytest.mark.long
def test_p14_several_pools(network, pool, run):
    """Two `--subnet`s: addresses from either (Docker chooses), `--ip` in either."""
    net = network("acc_several", "--subnet", pool("first", "10.77.0.0/24"), "--subnet", pool("second", "10.78.0.0/24"))
    assert run("host1", "several-a", net).address().startswith(("10.77.0.", "10.78.0."))
    far = run("host2", "several-b", net, "--ip", "10.78.0.5")
    assert far.address() == "10.78.0.5"
    near = run("host1", "several-c", net)
    wait_for("a route", lambda: near.pings(far.address()), 15)


@pytest.mark.long
def test_p15_two_networks_of_one_subnet(lab, network, pool, run):
    """They share the pool, and are apart by policy; removing one takes nothing from the other."""
    cidr = pool("shared", "10.77.0.0/24")
    one, other = network("acc_same1", "--subnet", cidr), network("acc_same2", "--subnet", cidr)
    a, b, c = run("host1", "same-a", one), run("host1", "same-b", other), run("host2", "same-c", other)
    assert len({a.address(), b.address(), c.address()}) == 3
    wait_for("a route", lambda: b.pings(c.address()), 15)
    assert not a.pings(b.address())
    a.remove()
    lab["host1"].run("docker", "network", "rm", one)
    assert b.pings(c.address()) and {b.address(), c.address()} <= leaks.container_addresses(lab)


@pytest.mark.long
def test_p16_removal(lab, network, pool, run):
    """Refused while in use; then all goes; the same name can be made anew, with other words."""
    net = network("acc_removal", "--subnet", pool("removal", "10.77.0.0/24"), "--gateway", "10.77.0.1",
                  "--aux-address", "x=10.77.0.2")
    assert leaks.handles(lab) == {"docker-gateway-10.77.0.1", "docker-aux-10.77.0.2"}
    one = run("host1", "removal", net)
    said = refused(lab, "host1", "docker", "network", "rm", net)
    assert "active endpoints" in said and one.pings(one.address())
    one.remove()
    lab["host1"].run("docker", "network", "rm", net)
    wait_for("nothing of it", lambda: stored(lab) == (set(), set(), []), 20)
    network("acc_removal", "--label", "second=1")
    assert network_of(lab, "host1", net)["Labels"] == {"second": "1"}


def test_p17_failed_creation_leaves_nothing(lab, pool):
    """A refused CreateNetwork gives gateway and auxiliary addresses back; a refused second family the first."""
    cidr = pool("failed", "10.77.0.0/24")
    reserved = ("--subnet", cidr, "--gateway", "10.77.0.1", "--aux-address", "x=10.77.0.2")
    refused(lab, "host1", *CREATE, *reserved, "-o", "colour=blue", "acc_failed")
    assert stored(lab) == (set(), set(), [])
    said = refused(lab, "host1", *CREATE, *reserved, "--ipv6", "--subnet", "fd00:99::/64", "acc_failed")
    assert "fd00:99::/64" in said and "no IP pool has this CIDR" in said
    assert stored(lab) == (set(), set(), [])


@pytest.mark.long
def test_p18_network_outlives_restarts(lab, network, run):
    """dockerd and calico-node restarted on both hosts: the network works, though nobody makes it anew."""
    net = network("acc_lasting", "--internal", "-o", "com.docker.network.driver.mtu=1400")
    for host in lab.hosts:
        lab.node(host).stop()
        lab.docker(host).restart()
        lab.node(host).run()
    a, b = run("host1", "lasting-a", net), run("host2", "lasting-b", net)
    wait_for("a route", lambda: a.pings(b.address()), 20)
    for one in (a, b):
        assert "mtu 1400" in one.run("ip", "link") and "default" not in one.run("ip", "route")
