"""Compose files with our networks: up, scale, recreate, down. The Compose of the newest release, for all Dockers."""
from __future__ import annotations

import pytest

from tests.lab import leaks
from tests.lab.acceptance.dockers import address, ends, network_of, networks
from tests.lab.connectivity import Container
from tests.lab.machine import Machine
from tests.lab.releases import FORKY, ensure
from tests.lab.wait import wait_for

pytestmark = pytest.mark.long
FOLDER = "/run/shop"
FILE = """
services:
  web:
    image: busybox
    init: true
    command: sleep 100000
    labels: {org.projectcalico.label.role: web}
    networks: [front]
  store:
    image: busybox
    init: true
    command: sleep 100000
    restart: always
    networks:
      front: {}
      back: {ipv4_address: 10.66.0.6}
networks:
  front:
    driver: calico
    driver_opts: {com.docker.network.driver.mtu: "1400"}
    ipam: {driver: calico-ipam, config: [{subnet: 192.168.0.0/16}]}
  back:
    driver: calico
    internal: true
    ipam: {driver: calico-ipam, config: [{subnet: 10.66.0.0/24}]}
"""


def compose(machine: Machine, *words: str) -> str:
    """docker compose, in the newest release's root, with this host's Docker."""
    ensure(FORKY)
    script = 'mount --rbind /run "$0/run" && exec chroot "$0" docker compose "$@"'
    return machine.run("unshare", "--mount", "--propagation", "private", "sh", "-c", script, str(FORKY.root), "-f",
                       f"{FOLDER}/compose.yaml", *words, seconds=90).stdout


def test_compose(lab, pool):
    """All that a file says comes true, on both hosts; what is scaled, recreated and taken down leaves nothing."""
    pool("back", "10.66.0.0/24")  # the one that routes of an internal network lead to
    for host in lab.hosts:
        lab[host].run("sh", "-c", f"mkdir -p {FOLDER} && cat >{FOLDER}/compose.yaml", stdin=FILE.encode())
    first = lab["host1"]
    compose(first, "up", "-d")
    assert network_of(lab, "host1", "shop_back")["Internal"]
    web, store = Container(first, "shop-web-1"), Container(first, "shop-store-1")
    assert address(store, "shop_back") == "10.66.0.6" and "mtu 1400" in web.run("ip", "link")
    assert web.pings("store") and store.pings("web"), store.run("sh", "-c", "ip route; nslookup web; ping -c1 web",
                                                                check=False)
    compose(first, "up", "-d", "--scale", "web=3")
    others = [Container(first, f"shop-web-{number}") for number in (2, 3)]
    assert all(one.pings(web.address()) for one in others)
    before = {one.endpoint() for one in [web, *others]}
    compose(first, "up", "-d", "--scale", "web=2", "--force-recreate", "-t", "1")
    assert set(ends(store)) == {"shop_front", "shop_back"} and address(store, "shop_back") == "10.66.0.6"
    left = first.run("docker", "ps", "--filter", "name=shop-web", "--format", "{{.Names}}").stdout.split()
    web, other = (Container(first, name) for name in left)
    assert before.isdisjoint((web.endpoint(), other.endpoint())) and web.pings("store") and web.pings(other.address())
    wait_for("nothing of the old ones", lambda: leaks.none(lab), 15)
    wait_for("the networks on host2", lambda: set(networks(lab, "host2")) == {"shop_front", "shop_back"}, 10)
    compose(lab["host2"], "up", "-d", "--no-deps", "web")
    far = Container(lab["host2"], "shop-web-1")
    wait_for("the way across", lambda: far.pings(web.address()), 15)
    for host in reversed(lab.hosts):
        compose(lab[host], "down", "-t", "1")
    for host in lab.hosts:
        wait_for("no network", lambda: not networks(lab, host), 15)
