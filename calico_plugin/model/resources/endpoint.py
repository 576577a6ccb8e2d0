"""WorkloadEndpoint and HostEndpoint (datamodel 3, 2.7)."""

from __future__ import annotations

from typing import Any

from msgspec import field

from calico_plugin.model import names
from calico_plugin.model.resources.meta import Protocol, Resource, Value


class EndpointPort(Value, frozen=True, kw_only=True):
    name: str = ""
    protocol: Protocol = ""
    port: int = 0


class WorkloadEndpointPort(Value, frozen=True, kw_only=True, omit_defaults=False):
    """All five members are always written."""

    name: str = ""
    protocol: Protocol = ""
    port: int = 0
    host_port: int = 0
    host_ip: str = field(name="hostIP", default="")


class IPNAT(Value, frozen=True, kw_only=True, omit_defaults=False):
    internal_ip: str = field(name="internalIP", default="")
    external_ip: str = field(name="externalIP", default="")


class WorkloadEndpointSpec(Value, frozen=True, kw_only=True):
    """`ip_networks` are /32 or /128; `interface_name` is the host side; `mac` is the container side, lower case."""

    orchestrator: str = ""
    workload: str = ""
    node: str = ""
    container_id: str = field(name="containerID", default="")
    pod: str = ""
    endpoint: str = ""
    service_account_name: str = ""
    ip_networks: tuple[str, ...] = ()
    ip_nats: tuple[IPNAT, ...] = field(name="ipNATs", default=())
    ipv4_gateway: str = field(name="ipv4Gateway", default="")
    ipv6_gateway: str = field(name="ipv6Gateway", default="")
    profiles: tuple[str, ...] = ()
    interface_name: str = ""
    mac: str = ""
    ports: tuple[WorkloadEndpointPort, ...] = ()
    allow_spoofed_source_prefixes: tuple[str, ...] = ()
    qos_controls: dict[str, Any] | None = None


class WorkloadEndpoint(Resource, frozen=True, kw_only=True):
    kind: str = "WorkloadEndpoint"
    spec: WorkloadEndpointSpec = WorkloadEndpointSpec()

    @property
    def awaits_labels(self) -> bool:
        """Whether nobody has told the labels of its container yet."""
        return names.LABELS_AWAITED in self.metadata.annotations


class HostEndpointSpec(Value, frozen=True, kw_only=True):
    node: str = ""
    interface_name: str = ""
    expected_ips: tuple[str, ...] = field(name="expectedIPs", default=())
    profiles: tuple[str, ...] = ()
    ports: tuple[EndpointPort, ...] = ()


class HostEndpoint(Resource, frozen=True, kw_only=True):
    kind: str = "HostEndpoint"
    spec: HostEndpointSpec = HostEndpointSpec()
