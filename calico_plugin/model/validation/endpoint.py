"""WorkloadEndpoint and HostEndpoint (policy V29 to V34, datamodel 3)."""

from __future__ import annotations

from typing import Iterable

from calico_plugin.errors import InvalidInput
from calico_plugin.model import forms, names
from calico_plugin.model.problem import Problem
from calico_plugin.model.resources.endpoint import (
    EndpointPort,
    HostEndpoint,
    WorkloadEndpoint,
    WorkloadEndpointPort,
    WorkloadEndpointSpec,
)
from calico_plugin.model.validation import text
from calico_plugin.model.validation.text import Problems, SelectorParser

_PORT_PROTOCOLS = ("TCP", "UDP", "SCTP", 6, 17, 132)


def workload(resource: WorkloadEndpoint, parse: SelectorParser) -> Problems:
    spec = resource.spec
    yield from _workload_name(resource)
    if not spec.interface_name:
        yield Problem("spec.interfaceName", None, "must be given: the host side of the veth pair")
    elif fault := text.interface_fault(spec.interface_name):
        yield Problem("spec.interfaceName", spec.interface_name, fault)
    for index, network in enumerate(spec.ip_networks):
        if text.single_address_version(network) is None:
            yield Problem(f"spec.ipNetworks[{index}]", network, "one address each: /32 for IPv4, /128 for IPv6")
    for name, gateway, version in (("ipv4Gateway", spec.ipv4_gateway, 4), ("ipv6Gateway", spec.ipv6_gateway, 6)):
        if gateway and text.version_of(gateway) != version:
            yield Problem(f"spec.{name}", gateway, f"must be an IPv{version} address")
    if spec.mac and (fault := text.mac_fault(spec.mac)):
        yield Problem("spec.mac", spec.mac, fault)
    for index, prefix in enumerate(spec.allow_spoofed_source_prefixes):
        if text.network_or_none(prefix) is None and text.version_of(prefix) is None:
            yield Problem(f"spec.allowSpoofedSourcePrefixes[{index}]", prefix, "must be an address or a CIDR")
    yield from _nats(spec)
    yield from _profiles(spec.profiles)
    yield from _ports(spec.ports)


def _workload_name(resource: WorkloadEndpoint) -> Problems:
    spec = resource.spec
    third = {"k8s": spec.pod, "cni": spec.container_id}.get(spec.orchestrator, spec.workload)
    try:
        right = names.endpoint_name(spec.node, spec.orchestrator, third, spec.endpoint)
    except InvalidInput as error:
        yield Problem(error.field, error.value, error.hint)
        return
    if spec.orchestrator == names.ORCHESTRATOR and spec.workload not in ("", names.WORKLOAD):
        yield Problem(
            "spec.workload", spec.workload, f"must be {names.WORKLOAD} for a Docker endpoint; the name is {right}"
        )
    if resource.name and resource.name != right:
        yield Problem(
            "metadata.name",
            resource.name,
            f"must be {right}: node, orchestrator, workload and endpoint, dashes inside them doubled",
        )


def _nats(spec: WorkloadEndpointSpec) -> Problems:
    own = {network.partition("/")[0] for network in spec.ip_networks}
    for index, nat in enumerate(spec.ip_nats):
        path = f"spec.ipNATs[{index}]"
        for name, address in (("internalIP", nat.internal_ip), ("externalIP", nat.external_ip)):
            if text.version_of(address) is None:
                yield Problem(f"{path}.{name}", address or None, "must be an address")
        if nat.internal_ip and nat.internal_ip not in own:
            yield Problem(f"{path}.internalIP", nat.internal_ip, "must be one of spec.ipNetworks")


def _profiles(profiles: Iterable[str]) -> Problems:
    for index, profile in enumerate(profiles):
        if fault := text.name_fault(profile):
            yield Problem(f"spec.profiles[{index}]", profile, fault)


def _ports(ports: Iterable[EndpointPort | WorkloadEndpointPort]) -> Problems:
    for index, port in enumerate(ports):
        path = f"spec.ports[{index}]"
        try:
            forms.port_name(port.name)
        except ValueError as error:
            # An endpoint of the pod form may leave a port unnamed; a host's may not.
            if port.name or isinstance(port, EndpointPort):
                yield Problem(f"{path}.name", port.name or None, str(error))
        if port.protocol not in _PORT_PROTOCOLS:
            yield Problem(f"{path}.protocol", port.protocol or None, "a named port has protocol TCP, UDP or SCTP")
        if not 1 <= port.port <= forms.MAX_PORT and not (isinstance(port, WorkloadEndpointPort) and port.host_port):
            yield Problem(f"{path}.port", port.port, "must be 1 to 65535")


def host(resource: HostEndpoint, parse: SelectorParser) -> Problems:
    spec = resource.spec
    if not spec.node:
        yield Problem("spec.node", None, "must be given: the node that the interface is on")
    elif fault := text.name_fault(spec.node):
        yield Problem("spec.node", spec.node, fault)
    if not spec.interface_name and not spec.expected_ips:
        yield Problem("spec.interfaceName", None, "give interfaceName or expectedIPs")
    if spec.interface_name and spec.interface_name != "*" and (fault := text.interface_fault(spec.interface_name)):
        yield Problem("spec.interfaceName", spec.interface_name, f"{fault}, or is * for all")
    for index, address in enumerate(spec.expected_ips):
        if text.version_of(address) is None:
            yield Problem(f"spec.expectedIPs[{index}]", address, "must be an address without prefix length")
    yield from _profiles(spec.profiles)
    yield from _ports(spec.ports)
