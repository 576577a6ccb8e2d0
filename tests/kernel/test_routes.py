"""Routes, links and connections of this host on the real kernel, each test in a namespace of its own."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from typing import Iterator

import pytest

from calico_plugin.dataplane import links, routes
from calico_plugin.dataplane.netlink import Netlink
from calico_plugin.errors import DataplaneError

pytestmark = pytest.mark.root


@dataclass
class Space:
    """A namespace with links cali0 and cali1, and a socket in it."""

    name: str
    netlink: Netlink
    table: routes.RouteTable

    def ip(self, *words: str) -> str:
        done = subprocess.run(["ip", "-n", self.name, *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return "\n".join(" ".join(line.split()) for line in done.stdout.splitlines())

    def links(self) -> dict[str, links.Link]:
        return links.listing(self.netlink, "cali")

    def index(self, name: str) -> int:
        return self.links()[name].index

    def apply(self) -> None:
        assert self.table.apply(remove=True) == {}


@pytest.fixture
def space() -> Iterator[Space]:
    name = f"crt{os.getpid()}{os.urandom(2).hex()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    netlink = Netlink(name)
    one = Space(name, netlink, routes.RouteTable(netlink))
    try:
        one.ip("link", "set", "lo", "up")
        for number in range(2):
            one.ip("link", "add", f"cali{number}", "type", "veth", "peer", f"tmp{number}")
            one.ip("link", "set", f"cali{number}", "up")
        yield one
    finally:
        netlink.close()
        subprocess.run(["ip", "netns", "del", name], check=True)


class TestRoutes:
    def test_added_moved_removed(self, space: Space) -> None:
        """Both IP versions: scope link, protocol 80; a move replaces in one step."""
        for address in ("10.0.0.1", "fd00::1"):
            space.table.want(address, space.index("cali0"))
        space.apply()
        assert "10.0.0.1 dev cali0 proto 80 scope link" in space.ip("route")
        assert "fd00::1 dev cali0 proto 80" in space.ip("-6", "route")
        space.table.want("10.0.0.1", space.index("cali1"))
        space.apply()
        assert "10.0.0.1 dev cali1" in space.ip("route") and "10.0.0.1 dev cali0" not in space.ip("route")
        for address in ("10.0.0.1", "fd00::1"):
            space.table.unwant(address)
        space.apply()
        assert "proto 80" not in space.ip("route") + space.ip("-6", "route")

    def test_read_knows_only_ours(self, space: Space) -> None:
        """Another protocol, another link, another table, a wider route: none is taken for ours, none is removed."""
        index = space.index("cali0")
        for words in (
            "route add 10.0.0.1 dev cali0 proto 80 scope link",
            "route add 10.0.0.2 dev cali0 proto static",
            "route add 10.0.0.3 dev lo proto 80",
            "route add 10.0.0.4 dev cali0 proto 80 table 99",
            "route add 10.0.1.0/24 dev cali0 proto 80",
            "route add blackhole 10.0.2.0/26 proto bird",
        ):
            space.ip(*words.split())
        space.table.read({index, space.index("cali1")})
        assert len(space.table) == 1
        space.apply()
        shown = space.ip("route") + space.ip("route", "show", "table", "99")
        assert "10.0.0.1" not in shown
        assert all(one in shown for one in ("10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.1.0/24", "10.0.2.0/26"))

    def test_right_routes_are_not_written(self, space: Space) -> None:
        """After reading, wanting the same is no work."""
        space.ip(*"route add 10.0.0.1 dev cali0 proto 80 scope link".split())
        space.table.read({space.index("cali0")})
        space.table.want("10.0.0.1", space.index("cali0"))
        assert space.table.in_place("10.0.0.1")

    def test_leftover_of_another_protocol_is_replaced(self, space: Space) -> None:
        """The original's agent writes protocol boot: its route of the same address becomes ours."""
        space.ip(*"route add 10.0.0.1 dev cali0 proto boot scope link".split())
        space.table.want("10.0.0.1", space.index("cali1"))
        space.apply()
        assert space.ip("route", "show", "10.0.0.1") == "10.0.0.1 dev cali1 proto 80 scope link linkdown"

    def test_link_that_is_gone_is_moot(self, space: Space) -> None:
        """A route for a link that vanished meanwhile is told as such, and its removal is no error."""
        index = space.index("cali0")
        space.table.want("10.0.0.1", index)
        space.apply()
        space.ip("link", "del", "cali0")
        space.table.unwant("10.0.0.1")
        space.apply()
        space.table.want("10.0.0.2", index)
        (error,) = space.table.apply(remove=True).values()
        assert routes.moot(error)

    def test_many_at_once(self, space: Space) -> None:
        """More than fit one system call."""
        index = space.index("cali0")
        for number in range(300):
            space.table.want(f"10.1.{number // 250}.{number % 250}", index)
        space.apply()
        assert space.ip("route").count("proto 80") == 300
        assert routes.remove_all(space.netlink, {index}) == 300

    def test_gateway(self, space: Space) -> None:
        """Covered by a default route through another link only; ours goes through the link with the node's address."""
        own = {space.index("cali0"), space.index("cali1")}
        assert not routes.gateway_covered(space.netlink, own)
        space.ip("route", "add", "default", "dev", "cali0")
        assert not routes.gateway_covered(space.netlink, own)
        space.ip("route", "del", "default")
        assert routes.uplink(space.netlink, "", own) == 1
        space.ip("link", "add", "eth0", "type", "veth", "peer", "eth1")
        space.ip("link", "set", "eth0", "up")
        space.ip("addr", "add", "192.0.2.1/24", "dev", "eth0")
        index = routes.uplink(space.netlink, "192.0.2.1", own)
        routes.cover_gateway(space.netlink, index)
        routes.cover_gateway(space.netlink, index)
        assert routes.gateway_covered(space.netlink, own)
        assert "169.254.1.1 dev eth0 proto 80" in space.ip("route")
        assert routes.remove_all(space.netlink, own) == 1


class TestLinks:
    def test_settings_are_written_once(self, space: Space) -> None:
        """A bare link gets them; then it is settled and nothing is wrong with it."""
        (link,) = (one for name, one in space.links().items() if name == "cali0")
        assert not link.settled
        assert links.assert_settings(space.netlink, [link]) == {}
        assert space.links()["cali0"].settled

    def test_vanished_link_is_no_error(self, space: Space) -> None:
        """Neither for settings nor for deletion."""
        link = space.links()["cali0"]
        assert links.delete(space.netlink, [link]) == []
        assert "cali0" not in space.links()
        assert links.assert_settings(space.netlink, [link]) == {}
        assert links.delete(space.netlink, [link]) == []

    def test_other_links_are_not_ours(self, space: Space) -> None:
        """Names that do not begin with the prefix are passed over, also in events."""
        assert set(space.links()) == {"cali0", "cali1"}
        assert links.decode(b"\0" * 16 + b"\x08\0\x03\0tmp0", "cali") is None

    def test_refusal_carries_the_kernel_s_number(self, space: Space) -> None:
        """An error of the kernel leaves as DataplaneError."""
        with pytest.raises(DataplaneError) as caught:
            routes.cover_gateway(space.netlink, 9999)
        assert caught.value.errno != 0
