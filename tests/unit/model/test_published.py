"""Which ports of the host an endpoint's record means."""

from __future__ import annotations

from typing import Any

import pytest

from calico_plugin.model.published import content, published
from calico_plugin.model.resources.endpoint import WorkloadEndpointPort, WorkloadEndpointSpec

BOTH = ("10.0.0.5/32", "fd00::5/128")


def lines(*ports: dict[str, Any], networks: tuple[str, ...] = BOTH, orchestrator: str = "libnetwork") -> list[str]:
    usual = {"protocol": "TCP", "port": 80, "host_port": 8080}
    entries = tuple(WorkloadEndpointPort(**{**usual, **port}) for port in ports)
    spec = WorkloadEndpointSpec(orchestrator=orchestrator, ip_networks=networks, ports=entries)
    return content(published(spec)).decode().splitlines()


@pytest.mark.parametrize(
    ("port", "expected"),
    [
        ({}, ["0.0.0.0:8080/tcp -> 10.0.0.5:80", "[::]:8080/tcp -> [fd00::5]:80"]),
        ({"host_ip": "0.0.0.0"}, ["0.0.0.0:8080/tcp -> 10.0.0.5:80"]),
        ({"host_ip": "::"}, ["[::]:8080/tcp -> [fd00::5]:80"]),
        ({"host_ip": "172.16.0.1", "protocol": "UDP"}, ["172.16.0.1:8080/udp -> 10.0.0.5:80"]),
        ({"host_ip": "FD00:0::1", "protocol": "SCTP"}, ["[fd00::1]:8080/sctp -> [fd00::5]:80"]),
    ],
)
def test_addresses_of_the_host(port: dict[str, Any], expected: list[str]) -> None:
    """None means all, of each version that the container has; spelling does not matter."""
    assert lines(port) == expected


@pytest.mark.parametrize(
    "port",
    [
        {"host_port": 0}, {"host_port": 65536}, {"port": 0}, {"protocol": "ICMP"}, {"protocol": 17},
        {"host_ip": "eth0"}, {"host_ip": "10.0.0.0/8"},
    ],
)
def test_what_makes_no_sense_publishes_nothing(port: dict[str, Any]) -> None:
    """And keeps nothing else from it."""
    good = {"host_port": 81, "host_ip": "0.0.0.0"}
    assert lines(port, good) == ["0.0.0.0:81/tcp -> 10.0.0.5:80"]


def test_only_versions_that_the_container_has() -> None:
    """An IPv6 address of the host leads to no container without one."""
    found = lines({}, {"host_ip": "::", "host_port": 81}, networks=("10.0.0.5/32",))
    assert found == ["0.0.0.0:8080/tcp -> 10.0.0.5:80"]


def test_other_orchestrators_map_their_ports_themselves() -> None:
    """CNI's portmap plugin does it for pods."""
    assert lines({}, orchestrator="k8s") == []


def test_order_and_doubles_do_not_matter() -> None:
    """The same set of ports is the same text."""
    assert lines({}, {"host_port": 81}, {}) == lines({"host_port": 81}, {})
