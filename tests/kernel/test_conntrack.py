"""Connections of an address, found by the kernel's text as by its dumps; real connections in a namespace."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path
from typing import Callable, Iterator, TypeVar

import pytest

from calico_plugin.dataplane import conntext, conntrack
from calico_plugin.dataplane.conntrack import Connection
from calico_plugin.dataplane.netlink import NETLINK_NETFILTER, Netlink
from tests.kernel.driverlab import namespace
from tests.kernel.packets import in_namespace

pytestmark = pytest.mark.root
T = TypeVar("T")

# Tracking begins with a rule that asks for it; one port is translated, one stands in a zone of its own.
RULES = """
table inet t {
    chain early { type filter hook output priority raw; udp dport 8888 ct zone set 5; }
    chain nat { type nat hook output priority -100; ip daddr 127.0.0.1 udp dport 7777 dnat ip to 127.0.0.2:9; }
    chain track { type filter hook output priority filter; ct state new accept; }
}
"""
GRE, UNKNOWN = 47, 253


class Traffic:
    """Something of every sort; `see` runs in the namespace."""

    def __init__(self, netns: str) -> None:
        self.netns = netns
        subprocess.run(["nsenter", f"--net=/run/netns/{netns}", "nft", "-f", "-"], input=RULES.encode(), check=True)
        self.sockets: list[socket.socket] = []
        self.see(self._start)

    def see(self, work: Callable[[], T]) -> T:
        return in_namespace(self.netns, work)

    def _start(self) -> None:
        for family, to in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "127.0.0.3"), (socket.AF_INET6, "::1")):
            with socket.socket(family, socket.SOCK_DGRAM) as one:
                for port in (9, 53, 7777, 8888):
                    one.sendto(b"x", (to, port))
            listener = socket.create_server((to, 0), family=family)
            self.sockets += [listener, socket.create_connection(listener.getsockname()[:2])]
            subprocess.run(["ping", "-q", "-c1", "-W2", to], check=True, capture_output=True)
        for protocol in (GRE, UNKNOWN):
            with socket.socket(socket.AF_INET, socket.SOCK_RAW, protocol) as raw:
                raw.sendto(bytes(8), ("127.0.0.1", 0))

    def found(self, *addresses: str) -> dict[bytes, Connection]:
        """By what deletes them."""
        netlink = self.see(lambda: Netlink(protocol=NETLINK_NETFILTER))
        listed = self.see(lambda: list(conntrack.listing(netlink, addresses)))
        netlink.close()
        return {one.deletion.body: one for one in listed}

    def close(self) -> None:
        for one in self.sockets:
            one.close()


@pytest.fixture
def traffic() -> Iterator[Traffic]:
    with namespace(f"conntrack-{os.getpid()}") as name:
        made = Traffic(name)
        yield made
        made.close()


needs_text = pytest.mark.skipif(not conntext.is_told(), reason="this kernel's text may miss connections")


@needs_text
@pytest.mark.parametrize("addresses", [("127.0.0.1",), ("127.0.0.2",), ("127.0.0.3", "::1"), ("::1",), ("10.9.9.9",)])
def test_text_finds_what_dumps_find(
    traffic: Traffic, monkeypatch: pytest.MonkeyPatch, addresses: tuple[str, ...]
) -> None:
    """The same connections with all that is known of them, of every protocol, translated ones and those in zones."""
    by_text = traffic.found(*addresses)
    monkeypatch.setattr(conntext, "is_told", lambda: False)
    assert by_text == traffic.found(*addresses)
    assert bool(by_text) == (addresses != ("10.9.9.9",))
    if addresses == ("127.0.0.1",):
        assert {one.protocol for one in by_text.values()} == {1, 6, 17, GRE, UNKNOWN}
    if addresses == ("127.0.0.2",):
        assert [(one.destination_port, one.translated) for one in by_text.values()] == [(9, True)]


def test_cut_and_forget(traffic: Traffic) -> None:
    """What is listed can be deleted, in its zone, too; others stay."""
    netlink = traffic.see(lambda: Netlink(protocol=NETLINK_NETFILTER))
    listed = traffic.found("127.0.0.3")
    assert len(listed) > 4
    assert traffic.see(lambda: conntrack.cut(netlink, listed.values())) == len(listed)
    assert traffic.see(lambda: conntrack.cut(netlink, listed.values())) == 0
    assert traffic.found("127.0.0.3") == {} and traffic.found("127.0.0.1")
    assert traffic.see(lambda: conntrack.forget(netlink, ["::1", "127.0.0.1"])) > 8
    assert traffic.found("::1", "127.0.0.1") == {}
    netlink.close()


@needs_text
def test_text_that_cannot_be_read_is_not_relied_on(traffic: Traffic, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that writes something new is asked for dumps."""
    expected = traffic.found("127.0.0.1")

    def strange(family: int, wanted: object) -> Iterator[bytes]:
        raise OSError("a new form")

    monkeypatch.setattr(conntext, "identities", strange)
    assert traffic.found("127.0.0.1") == expected


@pytest.mark.parametrize(("release", "told"), [
    ("6.1.0-18-amd64", False), ("6.17.9", False), ("6.18.44-fc", True), ("6.20", True), ("7.0.1", True)])
def test_only_kernels_that_tell_all(release: str, told: bool, tmp_path: Path) -> None:
    """And only where the file is there."""
    (tmp_path / "nf_conntrack").touch()
    assert conntext.is_told(tmp_path / "nf_conntrack", release) is told
    assert conntext.is_told(tmp_path / "none", release) is False
