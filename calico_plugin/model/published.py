"""Ports of the host that lead to a container (`docker run -p`): how an endpoint's record says them, and in which words
the agent says which are in force.

An entry of `spec.ports` with a `hostPort` is one (Calico's own form, datamodel 3.2); without a name, so that it is no
named port of policy. `hostIP` is empty for all addresses of the host, of each IP version that the container has; or
0.0.0.0 or :: for all of one version; or one address.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address, ip_interface
from typing import Iterable, Iterator, Mapping

from calico_plugin.model import names
from calico_plugin.model.resources.endpoint import WorkloadEndpointPort, WorkloadEndpointSpec

PROTOCOLS: Mapping[int, str] = {6: "TCP", 17: "UDP", 132: "SCTP"}
_NUMBERS = {name: number for number, name in PROTOCOLS.items()}
# Below the run directory: one file for each endpoint that publishes, with what is in force.
DIRECTORY = "published-ports"


@dataclass(frozen=True, slots=True, order=True)
class Published:
    """One port of the host for one IP version. `host_ip` is empty for all addresses of that version."""

    version: int
    host_ip: str
    protocol: int
    host_port: int
    address: str
    port: int

    @property
    def door(self) -> str:
        """What a client connects to, as `0.0.0.0:8080/tcp`."""
        return door(self.version, self.host_ip, self.host_port, self.protocol)

    @property
    def line(self) -> str:
        """As `0.0.0.0:8080/tcp -> 10.1.2.3:80`."""
        return f"{self.door} -> {_with_port(self.address, self.port)}"


def door(version: int, host_ip: str, ports: int | str, protocol: int) -> str:
    return f"{_with_port(host_ip or ('0.0.0.0' if version == 4 else '::'), ports)}/{PROTOCOLS[protocol].lower()}"


def _with_port(address: str, port: int | str) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def published(spec: WorkloadEndpointSpec) -> tuple[Published, ...]:
    """All of a Docker endpoint's, in order. Other orchestrators map their ports themselves; entries that make no sense,
    or are of an IP version that the endpoint lacks, publish nothing.
    """
    if spec.orchestrator != names.ORCHESTRATOR or not any(port.host_port for port in spec.ports):
        return ()
    own = addresses(spec)
    return tuple(sorted({one for port in spec.ports for one in _of(port, own)}))


def addresses(spec: WorkloadEndpointSpec) -> dict[int, str]:
    """IP version -> the endpoint's (first) address."""
    found: dict[int, str] = {}
    for text in spec.ip_networks:
        try:
            address = ip_interface(text).ip
        except ValueError:
            continue
        found.setdefault(address.version, str(address))
    return found


def _of(entry: WorkloadEndpointPort, own: Mapping[int, str]) -> Iterator[Published]:
    protocol = _NUMBERS.get(str(entry.protocol).upper())
    if protocol is None or not (0 < entry.port < 65536 and 0 < entry.host_port < 65536):
        return
    try:
        asked = ip_address(entry.host_ip) if entry.host_ip else None
    except ValueError:
        return
    host_ip = "" if asked is None or asked.is_unspecified else str(asked)
    for version, address in own.items():
        if asked is None or asked.version == version:
            yield Published(version, host_ip, protocol, entry.host_port, address, entry.port)


def content(ports: Iterable[Published]) -> bytes:
    """Of an endpoint's file in DIRECTORY."""
    return "".join(f"{one.line}\n" for one in sorted(ports)).encode()
