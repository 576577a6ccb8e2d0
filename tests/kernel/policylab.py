"""A router, an engine and the table between them."""

from __future__ import annotations

import select
import socket
from typing import Any, Mapping

from calico_plugin.dataplane.nftables import Table
from calico_plugin.policy import PolicyEngine
from tests.kernel.packets import HOST, UPLINK, Packet, Router, in_namespace
from tests.unit.policy import worlds
from tests.unit.policy.worlds import endpoint, policy

NODE = "n1"
W, A, E = "10.65.0.10", "10.65.0.20", "203.0.113.7"
W6, A6, E6 = "fd65::10", "fd65::20", "2001:db8::7"
WEB = endpoint("web", W, {"app": "web"}, ipNetworks=[f"{W}/32", f"{W6}/128"])
API = endpoint("api", A, {"app": "api"}, ipNetworks=[f"{A}/32", f"{A6}/128"])


def host_endpoint(name: str = "eth", interface: str = UPLINK, **spec: Any) -> dict[str, Any]:
    return {"kind": "HostEndpoint", "metadata": {"name": name, "labels": {"role": "host"}},
            "spec": {"node": NODE, "interfaceName": interface, **spec}}


def on_host(name: str, **spec: Any) -> dict[str, Any]:
    return policy(name, selector="role=='host'", **spec)


FLAVOURS = (
    on_host("u", doNotTrack=True, applyOnForward=True, ingress=[
        {"action": "Allow", "protocol": "TCP", "destination": {"ports": [7000]}}]),
    on_host("n", preDNAT=True, applyOnForward=True, ingress=[
        {"action": "Allow", "protocol": "TCP", "destination": {"ports": [32010, "80:90"]}}, {"action": "Log"}]),
    on_host("f", applyOnForward=True, ingress=[
        {"action": "Deny", "protocol": "ICMP", "icmp": {"type": 3, "code": 4}},
        {"action": "Deny", "protocol": "ICMPv6", "notICMP": {"type": 128}}, {"action": "Pass", "notProtocol": 50}]),
)


class Lab:
    """Says what the cluster holds, and asks what passes."""

    def __init__(self, router: Router) -> None:
        self.router = router
        self.engine = PolicyEngine(NODE)
        self.table = in_namespace(router.name, Table)
        self.table.bootstrap(self.engine.compile())

    def set(self, *documents: Mapping[str, Any]) -> None:
        for document in documents:
            key, value = worlds.typed(document)
            self.engine.on_update(key, None, value)
        self.apply()

    def unset(self, *documents: Mapping[str, Any]) -> None:
        for document in documents:
            self.engine.on_update(worlds.typed(document)[0], None, None)
        self.apply()

    def apply(self) -> None:
        report = self.table.apply(self.engine.compile())
        assert report.attempts == 1 and not report.refused

    def passes(self, packet: Packet, via: str | None = None) -> bool:
        return self.router.send([packet], via)[0]

    def to_host(self, action: str) -> None:
        self.set({"kind": "FelixConfiguration", "metadata": {"name": f"node.{NODE}"},
                  "spec": {"defaultEndpointToHostAction": action}})

    def reaches_host(self, packet: Packet, host: str = HOST[4]) -> bool:
        """Whether a UDP packet is delivered to a process on the router."""
        def bound() -> socket.socket:
            handle = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
            handle.bind((host, packet.dport))
            return handle

        with in_namespace(self.router.name, bound) as handle:
            self.router.send([packet])
            return bool(select.select([handle], [], [], 0.05)[0])

    def host_reaches(self, address: str, port: int = 9) -> bool:
        """Whether a UDP packet of a process on the router comes out of the right link."""
        mark = b"calico" + bytes(8)

        def send() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
                try:
                    handle.sendto(mark, (address, port))
                except PermissionError:
                    pass  # how the kernel tells a sender that an output rule dropped its packet

        in_namespace(self.router.name, send)
        return (mark, self.router.interface_of(address)) in self.router.marks()
