"""Ports held by sockets, on this machine's loopback; no root needed."""

from __future__ import annotations

import socket
from contextlib import closing
from ipaddress import ip_address
from typing import Iterator

import pytest

from calico_plugin.driver.reservations import Reservations
from calico_plugin.driver.wire import PortRequest
from calico_plugin.errors import InvalidInput, PortTaken
from calico_plugin.model.published import Published

A, B = "a" * 64, "b" * 64
BOTH = {4: "10.0.0.5", 6: "fd00::5"}
HERE = "127.0.0.1"
TCP, UDP = 6, 17


@pytest.fixture
def held() -> Iterator[Reservations]:
    made = Reservations()
    yield made
    made.close()


@pytest.fixture
def port() -> int:
    """One that is free."""
    with socket.create_server((HERE, 0)) as probe:
        return int(probe.getsockname()[1])


def request(first: int = 0, last: int = 0, protocol: int = TCP, host_ip: str = HERE) -> PortRequest:
    return PortRequest(protocol, 80, ip_address(host_ip) if host_ip else None, first, last or first)


def published(port: int, protocol: int = TCP) -> Published:
    return Published(4, HERE, protocol, port, BOTH[4], 80)


def is_free(port: int) -> bool:
    try:
        socket.create_server((HERE, port)).close()
    except OSError:
        return False
    return True


def test_held_until_released(held: Reservations, port: int) -> None:
    """Nobody else gets it meanwhile; again for the same endpoint is no conflict."""
    for _ in range(2):
        (entry,) = held.take(A, BOTH, [request(port)])
    assert (entry.host_port, entry.host_ip, entry.protocol, entry.port) == (port, HERE, "TCP", 80)
    assert not is_free(port)
    with pytest.raises(PortTaken, match=f"127.0.0.1:{port}/tcp of this host is taken: container endpoint {A[:12]} "):
        held.take(B, BOTH, [request(port)])
    held.release(A)
    held.release(A)
    assert is_free(port) and not held.endpoints()


def test_all_or_nothing(held: Reservations, port: int) -> None:
    """What was bound before the one that failed is free again."""
    with closing(socket.create_server((HERE, 0))) as server:
        taken = server.getsockname()[1]
        with pytest.raises(PortTaken, match=f"{taken}/tcp of this host is taken: a process"):
            held.take(A, BOTH, [request(port), request(taken)])
    assert is_free(port) and not held.has(A)


def test_protocols_are_apart_and_addresses_overlap(held: Reservations, port: int) -> None:
    """udp beside tcp; one address of all."""
    held.take(A, BOTH, [request(port), request(port, protocol=UDP)])
    with pytest.raises(PortTaken, match=A[:12]):
        held.take(B, BOTH, [request(port, host_ip="0.0.0.0")])
    held.take(B, BOTH, [request(port, host_ip="127.0.0.2")])


def test_both_versions_have_the_same_port(held: Reservations) -> None:
    """Any free one, on all addresses."""
    (entry,) = held.take(A, BOTH, [request(host_ip="")])
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        with pytest.raises(OSError), socket.socket(family) as probe:
            probe.bind((address, entry.host_port))


def test_range(held: Reservations, port: int) -> None:
    """The first that is free; none is an error that names the range."""
    last = min(port + 30, 65535)
    first, second = held.take(A, BOTH, [request(port, last), request(port, last)])
    assert port <= first.host_port < second.host_port <= last
    with pytest.raises(PortTaken, match=f"{port}-{last}/tcp of this host is taken: none of them is free"):
        held.take(B, BOTH, [request(port, last)] * 31)


@pytest.mark.parametrize(
    ("host_ip", "addresses", "named"),
    [
        ("203.0.113.9", BOTH, "no address of this host"),
        ("::", {4: "10.0.0.5"}, "the container has no IPv6 address"),
        ("0.0.0.0", {6: "fd00::5"}, "the container has no IPv4 address"),
        ("::1", BOTH, "use 127.0.0.1"),
    ],
)
def test_address_that_cannot_lead_there(
    held: Reservations, port: int, host_ip: str, addresses: dict[int, str], named: str
) -> None:
    """By name and reason."""
    with pytest.raises(InvalidInput, match=named):
        held.take(A, addresses, [request(port, host_ip=host_ip)])


def test_align_binds_what_is_missing_and_lets_go_of_the_rest(held: Reservations, port: int) -> None:
    """After a restart, and when somebody has changed the endpoint; what is in use is told, and bound once it is free.
    """
    (old,) = held.take(A, BOTH, [request()])
    with closing(socket.create_server((HERE, port))):
        assert held.align(A, lambda name: (published(port),)) == [f"127.0.0.1:{port}/tcp: Address already in use"]
        assert is_free(old.host_port)
        with pytest.raises(PortTaken, match=A[:12]):
            held.take(B, BOTH, [request(port)])
    assert held.align(A, lambda name: (published(port),)) == [] and not is_free(port)
    assert held.align(A, lambda name: None) == [] and not is_free(port)
    with pytest.raises(PortTaken, match=A[:12]):
        held.take(B, BOTH, [request(port)])
    assert held.align(A, lambda name: ()) == [] and is_free(port) and not held.endpoints()


def test_nothing_is_received(held: Reservations, port: int) -> None:
    """A client of TCP is refused at once, datagrams gather nowhere."""
    held.take(A, BOTH, [request(port), request(port, protocol=UDP)])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((HERE, port), 2)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.sendto(b"x", (HERE, port))
    waiting = [line.split()[4] for line in open("/proc/net/udp") if f":{port:04X} " in line[:30]]
    assert waiting == ["00000000:00000000"]
