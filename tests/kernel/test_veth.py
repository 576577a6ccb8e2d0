"""Links of endpoints on the real kernel, in a namespace of their own."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from ipaddress import IPv6Address
from typing import Iterator

import pytest

from calico_plugin.dataplane import veth
from calico_plugin.dataplane.netlink import Netlink, NetlinkPool
from calico_plugin.dataplane.veth import Veth
from calico_plugin.errors import DataplaneError
from tests.kernel.driverlab import namespace, wait_until

pytestmark = pytest.mark.root

ONE = Veth("cali01234567890", "tmp01234567890", "02:00:00:00:00:11", 1400)


@pytest.fixture
def netns() -> Iterator[str]:
    with namespace(f"cveth-{os.getpid()}-{time.monotonic_ns() % 100000}") as name:
        yield name


@pytest.fixture
def sockets(netns: str) -> Iterator[NetlinkPool]:
    pool = NetlinkPool(netns)
    yield pool
    pool.close()


def inside(netns: str, command: str) -> str:
    return subprocess.run(
        ["ip", "netns", "exec", netns, "sh", "-c", command], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_a_pair_is_ready_for_routed_traffic(netns: str, sockets: NetlinkPool) -> None:
    """Up, proxy ARP at once and without the kernel's delay, no reverse path filter, Calico's MAC, no IPv6 address of
    its own.
    """
    index = veth.create(sockets, ONE)
    shown = inside(netns, f"ip -d link show {ONE.host}")
    assert f"{index}: " in shown and ",UP" in shown and "mtu 1400" in shown
    assert "ee:ee:ee:ee:ee:ee" in shown and "addrgenmode none" in shown
    conf = "/proc/sys/net/ipv4"
    assert inside(netns, f"cat {conf}/conf/{ONE.host}/proxy_arp {conf}/conf/{ONE.host}/rp_filter").split() == [
        "1",
        "0",
    ]
    assert inside(netns, f"cat {conf}/neigh/{ONE.host}/proxy_delay") == "0"
    other = inside(netns, f"ip link show {ONE.container}")
    assert "02:00:00:00:00:11" in other and "mtu 1400" in other and "state DOWN" in other


def test_making_it_twice(sockets: NetlinkPool) -> None:
    """`create` says so, `ensure` finds it good; a container end that is another's is an error."""
    veth.create(sockets, ONE)
    with pytest.raises(DataplaneError, match="File exists|already exists") as refused:
        veth.create(sockets, ONE)
    assert refused.value.errno == 17
    assert veth.ensure(sockets, ONE) == veth.ensure(sockets, ONE)
    with pytest.raises(DataplaneError, match=f"{ONE.container} belongs to another"):
        veth.ensure(sockets, Veth("cali-other", ONE.container, ONE.mac))


def test_settings_that_somebody_changed_are_put_right(netns: str, sockets: NetlinkPool) -> None:
    veth.create(sockets, ONE)
    inside(netns, f"ip link set {ONE.host} down; echo 0 > /proc/sys/net/ipv4/conf/{ONE.host}/proxy_arp")
    veth.ensure(sockets, ONE)
    assert inside(netns, f"cat /proc/sys/net/ipv4/conf/{ONE.host}/proxy_arp") == "1"
    assert ",UP" in inside(netns, f"ip link show {ONE.host}")


def test_finding(netns: str, sockets: NetlinkPool) -> None:
    """By name; running only when both ends are up; ours by their prefix."""
    assert veth.find(sockets, ONE.host) is None
    veth.create(sockets, ONE)
    inside(netns, "ip link add other type bridge")
    found = veth.find(sockets, ONE.host)
    assert found is not None and not found.running
    inside(netns, f"ip link set {ONE.container} up")
    # The kernel tells a carrier from a worker of its own, a moment later.
    wait_until(lambda: [(link.name, link.running) for link in veth.ours(sockets)] == [(ONE.host, True)], "a carrier")


def test_a_link_local_address_is_usable_at_once(netns: str, sockets: NetlinkPool) -> None:
    """No duplicate address detection that a container would have to wait for; twice is success."""
    veth.create(sockets, ONE)
    for _ in range(2):
        veth.add_link_local(sockets, ONE.host, IPv6Address("fe80::a9fe:101"))
    shown = inside(netns, f"ip -6 addr show dev {ONE.host}")
    assert "fe80::a9fe:101/64" in shown and "tentative" not in shown
    with pytest.raises(DataplaneError, match="no such link"):
        veth.add_link_local(sockets, "cali-none", IPv6Address("fe80::1"))


def test_ipv6_switched_off_is_said(netns: str, sockets: NetlinkPool) -> None:
    """A link can be made all the same; only its IPv6 address is refused, with the setting that is in the way."""
    inside(netns, "echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6")
    veth.create(sockets, ONE)
    with pytest.raises(DataplaneError, match="disable_ipv6"):
        veth.add_link_local(sockets, ONE.host, IPv6Address("fe80::1"))


def test_removing_many_at_once_takes_as_long_as_one(sockets: NetlinkPool) -> None:
    """The kernel waits once. Unknown names among them do no harm, other links stay."""
    pairs = [Veth(f"cali{n}", f"tmp{n}", ONE.mac) for n in range(100)]
    for pair in pairs:
        veth.create(sockets, pair)
    veth.create(sockets, ONE)
    started = time.monotonic()
    assert veth.remove_many(sockets, [pair.host for pair in pairs] + ["cali-none"]) == 100
    assert time.monotonic() - started < 1.0, "one by one it would be 2 s"
    assert [link.name for link in veth.ours(sockets)] == [ONE.host]
    assert veth.remove_many(sockets, ["cali-none", "cali-none2"]) == 0
    assert veth.remove_many(sockets, [ONE.host]) == 1 and veth.remove_many(sockets, []) == 0


def test_a_pair_goes_with_the_namespace_of_its_other_end(netns: str, sockets: NetlinkPool) -> None:
    """Removing what went away by itself is success."""
    with namespace(f"{netns}b") as other:
        veth.create(sockets, ONE)
        inside(netns, f"ip link set {ONE.container} netns {other}")
    deadline = time.monotonic() + 10
    while veth.find(sockets, ONE.host) is not None:
        assert time.monotonic() < deadline
    assert not veth.remove_one(sockets, ONE.host)


def test_threads_make_links_while_others_are_removed(sockets: NetlinkPool) -> None:
    """Eight threads, a hundred lives: no error, nothing left."""
    errors: list[Exception] = []

    def lives(worker: int) -> None:
        try:
            for n in range(12):
                pair = Veth(f"cali{worker}-{n}", f"tmp{worker}-{n}", ONE.mac)
                veth.create(sockets, pair)
                veth.ours(sockets)
                veth.remove_many(sockets, [pair.host, "cali-none"])
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=lives, args=(worker,)) for worker in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and veth.ours(sockets) == []


def test_the_mtu_of_the_uplink(netns: str, sockets: NetlinkPool) -> None:
    """None without a default route; IPv4's is asked before IPv6's."""
    inside(netns, "ip link add up0 mtu 1450 type veth peer name up1 mtu 1450; ip link set up1 up; ip link set up0 up")
    assert veth.default_mtu(sockets) is None
    inside(netns, "ip addr add 10.1.0.2/24 dev up0; ip route add default via 10.1.0.1")
    assert veth.default_mtu(sockets) == 1450


def test_a_name_that_is_too_long_is_refused_with_the_kernels_words(netns: str) -> None:
    one = Netlink(netns)
    try:
        with pytest.raises(DataplaneError, match="link cali-much-too-long-a-name cannot be made"):
            veth.create(one, Veth("cali-much-too-long-a-name", "tmpx", ONE.mac))
        assert veth.ours(one, "") != []
    finally:
        one.close()


def test_a_namespace_that_is_not_there(netns: str) -> None:
    with pytest.raises(DataplaneError, match="cannot be entered"):
        NetlinkPool("cveth-no-such-namespace")
