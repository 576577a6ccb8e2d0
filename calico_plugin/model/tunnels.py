"""What a node needs so that packets of encapsulated pools reach other nodes, as frozen values: `routing.tunnels` works
it out, `dataplane.tunnels` makes it so.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Mapping

VXLAN, IPIP = "vxlan", "ipip"


@dataclass(frozen=True, slots=True)
class Device:
    """A tunnel device. `local` is the node's own bare address, under which the wrapped packets travel; `address` what
    the device has inside the pool; `version` the IP version of both. `mtu` 0: the uplink's less the wrapping.
    """

    name: str
    kind: str
    version: int
    local: str
    address: str
    mac: str = ""
    mtu: int = 0
    vni: int = 0
    port: int = 0

    @property
    def overhead(self) -> int:
        """Bytes that the wrapping costs."""
        if self.kind == IPIP:
            return 20
        return 50 if self.version == 4 else 70


@dataclass(frozen=True, slots=True)
class Peer:
    """A tunnel end on another node: its address inside the pool, its MAC, and the node's own address."""

    device: str
    address: str
    mac: str
    host: str


@dataclass(frozen=True, slots=True)
class TunnelRoute:
    """Where a block (or a single borrowed address) is: behind `gateway`, through `device` or, when that is empty,
    plainly through the node's own subnet. Without gateway: nowhere, what no container here has is dropped.
    """

    gateway: str = ""
    device: str = ""


@dataclass(frozen=True, slots=True)
class Tunnels:
    """`routes` maps a CIDR to its route; `problems` are sentences about what cannot work as configured."""

    devices: tuple[Device, ...] = ()
    peers: tuple[Peer, ...] = ()
    routes: Mapping[str, TunnelRoute] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
