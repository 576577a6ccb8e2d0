"""Two Docker hosts without a cluster store: a network made on one is on the other, and goes with it."""
from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.lab import twohosts
from tests.lab.connectivity import Container, start_container
from tests.lab.lab import Lab
from tests.lab.releases import RELEASES
from tests.lab.twohosts import CREATE, SHARED, everywhere, inspect, networks, nowhere
from tests.lab.wait import wait_for

SECONDS = 2.0
tidy = pytest.fixture(autouse=True)(twohosts.tidy)


def member(lab: Lab, host: str, name: str) -> dict[str, Any]:
    values = lab.etcd.values(f"{SHARED}member/{host}/{name}")
    return json.loads(next(iter(values.values()))) if values else {}


def log(lab: Lab, host: str) -> str:
    return (lab.logs / host / "calico" / "calico-agent" / "current").read_text()


def test_made_here_is_there(pair: Lab) -> None:
    """Within two seconds, and containers of both hosts reach each other at once; the other way round, too."""
    for here, there, name in (("host1", "host2", "rep_a"), ("host2", "host1", "rep_b")):
        pair[here].run(*CREATE, name)
        took = everywhere(pair, name)
        assert took < SECONDS, f"it took {took:.1f} s"
        a, b = (start_container(pair, host, f"{name}-{host}", name, "--init") for host in (here, there))
        wait_for("a route", lambda: a.pings(b.address()), 15)
        assert b.pings(a.address())
        for one in (a, b):
            one.remove()
        pair[there].run("docker", "network", "rm", name)
        took = nowhere(pair, name)
        assert took < SECONDS, f"it took {took:.1f} s"


def test_all_that_a_user_can_say_is_carried(pair: Lab) -> None:
    """Subnet, range, gateway, auxiliary addresses, options, labels, internal, attachable."""
    pair["host1"].run(*CREATE, "--subnet", "192.168.0.0/16", "--ip-range", "192.168.200.0/24",
                      "--gateway", "192.168.200.1", "--aux-address", "printer=192.168.200.9", "--label", "team=blue",
                      "--opt", "com.docker.network.driver.mtu=1400", "--attachable", "rep_full")
    pair["host1"].run(*CREATE, "--internal", "--label", "empty=", "rep_inside")
    everywhere(pair, "rep_full")
    everywhere(pair, "rep_inside")
    b = start_container(pair, "host2", "full-b", "rep_full", "--init", "--ip", "192.168.200.77")
    assert b.address() == "192.168.200.77" and "mtu 1400" in b.run("ip", "link")


def test_what_is_in_use_stays_and_says_so(pair: Lab) -> None:
    """Removed on one host, in use on the other: it stays there, which both say; it goes with its last container."""
    pair["host1"].run(*CREATE, "rep_used")
    everywhere(pair, "rep_used")
    user = start_container(pair, "host2", "rep-user", "rep_used", "--init")
    pair["host1"].run("docker", "network", "rm", "rep_used")
    wait_for("a word about it", lambda: member(pair, "host2", "rep_used").get("state") == "in use", 10)
    assert member(pair, "host2", "rep_used")["detail"] == "rep-user"
    wait_for("host2's log", lambda: "rep_used is still in use on this host by rep-user" in log(pair, "host2"), 10)
    wait_for("host1's log", lambda: "rep_used was removed here, and is still in use on host2" in log(pair, "host1"), 10)
    assert "rep-user" in pair.node("host2").ctl("node", "status", check=False)
    assert inspect(pair, "host1", "rep_used") is None and user.pings(user.address())
    user.remove()
    nowhere(pair, "rep_used", 15)


def test_host_that_was_away_catches_up(pair: Lab) -> None:
    """Networks made and removed while a host's Calico, or its Docker, was down."""
    for name in ("rep_old", "rep_stays"):
        pair["host1"].run(*CREATE, name)
        everywhere(pair, name)
    pair.node("host2").stop()
    pair["host1"].run("docker", "network", "rm", "rep_old")
    pair["host1"].run(*CREATE, "rep_new")
    assert networks(pair, "host2") == ["rep_old", "rep_stays"]
    pair.node("host2").run()
    wait_for("host2 to catch up", lambda: networks(pair, "host2") == ["rep_new", "rep_stays"], 20)
    pair.docker("host2").stop()
    pair["host1"].run("docker", "network", "rm", "rep_new")
    pair["host1"].run(*CREATE, "rep_newer")
    pair.docker("host2").start()
    wait_for("host2 to catch up", lambda: networks(pair, "host2") == ["rep_newer", "rep_stays"], 20)


def test_two_make_one_name_at_once(pair: Lab) -> None:
    """Equal or not, there is one network in the end, the same on both; whom the other's outran is told so by Docker."""
    for number, options in enumerate([((), ()), (("--label", "a=1"), ("--label", "a=2"))]):
        name = f"rep_race{number}"

        def create(host: str, words: tuple[str, ...]) -> str:
            return pair[host].run(*CREATE, *words, name, check=False).stdout

        with ThreadPoolExecutor() as pool:
            said = list(pool.map(create, pair.hosts, options))
        assert all("Error" not in text or "already exists" in text for text in said), said
        everywhere(pair, name, 20)


def test_foreign_network_of_the_name_is_left_alone(pair: Lab) -> None:
    """A bridge network of that name on the other host stays; that host says why it lacks ours, until it can."""
    pair["host2"].run("docker", "network", "create", "rep_bridge")
    before = pair["host2"].run("docker", "network", "inspect", "rep_bridge").stdout
    pair["host1"].run(*CREATE, "rep_bridge")
    wait_for("a word about it", lambda: member(pair, "host2", "rep_bridge").get("state") == "conflict", 10)
    assert pair["host2"].run("docker", "network", "inspect", "rep_bridge").stdout == before
    assert "driver bridge" in log(pair, "host2")
    pair["host2"].run("docker", "network", "rm", "rep_bridge")
    wait_for("ours", lambda: (inspect(pair, "host2", "rep_bridge") or {}).get("Driver") == "calico", 10)


def test_removed_and_made_anew(pair: Lab) -> None:
    """With other words, in one breath: both hosts have the new one."""
    pair["host1"].run(*CREATE, "rep_anew")
    everywhere(pair, "rep_anew")
    pair["host1"].run("docker", "network", "rm", "rep_anew")
    pair["host1"].run(*CREATE, "--label", "second=1", "rep_anew")
    wait_for("the new one", lambda: ((inspect(pair, "host2", "rep_anew") or {}).get("Labels") or {}).get("second"), 15)
    everywhere(pair, "rep_anew")


def test_made_and_removed_at_once(pair: Lab) -> None:
    """However short its life, nothing comes back."""
    for number in range(5):
        pair["host1"].shell(" ".join((*CREATE, f"rep_short{number}")) + f"; docker network rm rep_short{number}")
    wait_for("nothing", lambda: not pair.etcd.keys(SHARED), 20, 0.3)
    assert not networks(pair, "host1") and not networks(pair, "host2")


def addresses(one: Container) -> dict[str, str]:
    networks_ = json.loads(one.inspect("{{json .NetworkSettings.Networks}}"))
    return {name: network["IPAddress"] for name, network in networks_.items()}


@pytest.mark.parametrize("bridge", ["a_bridge", pytest.param("z_bridge", marks=pytest.mark.long)])
def test_several_networks_and_a_bridge(pair: Lab, bridge: str) -> None:
    """Reached by members of each of its networks, whichever has its default route; stop and start, too."""
    for name in ("rep_m1", "rep_m2"):
        pair["host1"].run(*CREATE, name)
        everywhere(pair, name)
    host = pair["host2"]
    host.run("docker", "network", "create", bridge)
    try:
        both = start_container(pair, "host2", "many", "rep_m1", "--init")
        for name in ("rep_m2", bridge):
            host.run("docker", "network", "connect", name, both.name)
        near, far = (start_container(pair, where, f"m2-{where}", "rep_m2", "--init") for where in ("host2", "host1"))
        first, beside = start_container(pair, "host1", "m1", "rep_m1", "--init"), start_container(
            pair, "host2", "br", bridge, "--init")
        for _ in range(2):
            found = addresses(both)
            wait_for("routes", lambda: far.pings(found["rep_m2"]), 15)
            assert near.pings(found["rep_m2"]) and first.pings(found["rep_m1"]) and beside.pings(found[bridge])
            assert not far.pings(found["rep_m1"]) and not first.pings(found["rep_m2"])
            host.run("docker", "restart", "-t", "1", both.name)
    finally:
        pair.docker("host2").remove_all_containers()
        host.run("docker", "network", "rm", bridge)


def test_compose(pair: Lab) -> None:
    """A network made by compose is on the other host with compose's labels, so that the same file works there."""
    if pair.spec.release_of("host1") != RELEASES["28.5"] or pair.spec.release_of("host2") != RELEASES["28.5"]:
        pytest.skip("compose comes with 28.5")
    text = ("services:\n  web:\n    image: busybox\n    init: true\n    command: sleep 100000\n    networks: [net]\n"
            "networks:\n  net:\n    driver: calico\n    ipam: {driver: calico-ipam}\n")
    for host in pair.hosts:
        pair[host].run("sh", "-c", "mkdir -p /run/shop && cat >/run/shop/compose.yaml", stdin=text.encode())
    up = ("docker", "compose", "-f", "/run/shop/compose.yaml", "up", "-d")
    pair["host1"].run(*up)
    assert everywhere(pair, "shop_net") < SECONDS
    assert "already" not in pair["host2"].run(*up).stdout
    a, b = (Container(pair[host], "shop-web-1") for host in pair.hosts)
    wait_for("a route", lambda: a.pings(b.address()), 15)
    down = ("docker", "compose", "-f", "/run/shop/compose.yaml", "down", "-t", "1")
    pair["host1"].run(*down)
    wait_for("a word about it", lambda: member(pair, "host2", "shop_net").get("state") == "in use", 15)
    pair["host2"].run(*down)
    nowhere(pair, "shop_net")


POOL6 = """apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: six}
spec: {cidr: "fd00:ca11::/48"}
"""


def test_ipv6(pair: Lab) -> None:
    """With an automatic IPv6 pool, with a named one, and (Docker 28) without IPv4."""
    pair["host1"].run("sh", "-c", "cat >/run/six.yaml", stdin=POOL6.encode())
    pair.node("host1").ctl("create", "-f", "/run/six.yaml")
    try:
        words = {"rep_six": ("--ipv6",), "rep_named": ("--ipv6", "--subnet", "fd00:ca11::/48")}
        if pair.spec.release_of("host1").label == pair.spec.release_of("host2").label == "28.5":
            words["rep_only"] = ("--ipv4=false", "--ipv6")
        for name, options in words.items():
            pair["host1"].run(*CREATE, *options, name)
            everywhere(pair, name)
        found = (inspect(pair, "host2", "rep_named") or {})["IPAM"]["Config"]
        assert "fd00:ca11::/48" in [one["Subnet"] for one in found], found
        for name in words:
            pair["host2"].run("docker", "network", "rm", name)
            nowhere(pair, name)
    finally:
        pair.node("host1").ctl("delete", "ippool", "six", check=False)


def test_gateway_priority(pair: Lab) -> None:
    """Docker 28: `--gw-priority` decides which network has the default route; both addresses stay reachable."""
    if {pair.spec.release_of(host).label for host in pair.hosts} != {"28.5"}:
        pytest.skip("from Docker 28 on")
    for name in ("rep_p1", "rep_p2"):
        pair["host1"].run(*CREATE, name)
        everywhere(pair, name)
    both = start_container(pair, "host1", "prio", "rep_p1", "--init")
    pair["host1"].run("docker", "network", "connect", "--gw-priority", "1", "rep_p2", both.name)
    first, second = (start_container(pair, "host2", f"of-{name}", name, "--init") for name in ("rep_p1", "rep_p2"))
    found = addresses(both)
    route = both.run("ip", "route", "show", "default")
    device = route.split("dev ")[1].split()[0]
    assert found["rep_p2"] in both.run("ip", "address", "show", "dev", device), route
    wait_for("routes", lambda: second.pings(found["rep_p2"]), 15)
    assert first.pings(found["rep_p1"]) and both.pings(second.address()) and not both.pings(first.address())
