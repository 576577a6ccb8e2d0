"""BGPPeer, BGPConfiguration, BGPFilter and Node (datamodel 2.7, 5.1)."""

from __future__ import annotations

import re

from calico_plugin.model.problem import Problem
from calico_plugin.model.resources.bgp import BGPConfiguration, BGPFilter, BGPFilterRule, BGPPeer, BGPPeerSpec
from calico_plugin.model.resources.node import Node
from calico_plugin.model.validation import text
from calico_plugin.model.validation.text import Problems, SelectorParser

_RESERVED_AS = 4294967295
_INTERFACE_PATTERN = re.compile(r"[A-Za-z0-9_.*-]{1,15}")
_COMMUNITY = re.compile(r"(\d+):(\d+)(?::(\d+))?")


def community_fault(value: str) -> str:
    """`aa:nn` of 16 bits each, or `aa:nn:mm` of 32 bits each (RFC 1997, RFC 8092)."""
    match = _COMMUNITY.fullmatch(value)
    if match:
        parts = [int(part) for part in match.groups() if part is not None]
        if all(part < 2 ** (16 if len(parts) == 2 else 32) for part in parts):
            return ""
    return "must be aa:nn (each 0 to 65535) or aa:nn:mm (each 0 to 4294967295)"


def as_number_problems(path: str, number: int | str | None) -> Problems:
    # RFC 7300 reserves the last one; the original cannot write any above 2147483647, but they are good private numbers.
    if number == _RESERVED_AS:
        yield Problem(path, number, "is reserved and must not be used (RFC 7300)")


def peer(resource: BGPPeer, parse: SelectorParser) -> Problems:
    spec = resource.spec
    yield from as_number_problems("spec.asNumber", spec.as_number)
    yield from as_number_problems("spec.localASNumber", spec.local_as_number)
    yield from _peer_ends(spec)
    if spec.peer_ip and not _is_peer_address(spec.peer_ip):
        hint = "must be an address, <IPv4>:<port> or [<IPv6>]:<port> with a port from 1 to 65535"
        yield Problem("spec.peerIP", spec.peer_ip, hint)
    if spec.next_hop_mode and spec.keep_original_next_hop:
        yield Problem(
            "spec.nextHopMode", spec.next_hop_mode, "cannot be used together with the older keepOriginalNextHop"
        )
    for name, selector in (
        ("nodeSelector", spec.node_selector),
        ("peerSelector", spec.peer_selector),
        ("localWorkloadSelector", spec.local_workload_selector),
    ):
        yield from text.selector_problems(f"spec.{name}", selector, parse)
    if spec.reachable_by and text.version_of(spec.reachable_by) is None:
        yield Problem("spec.reachableBy", spec.reachable_by, "must be the address of the gateway towards the peer")


def _peer_ends(spec: BGPPeerSpec) -> Problems:
    if spec.node and spec.node_selector:
        yield Problem("spec.nodeSelector", spec.node_selector, "give either node or nodeSelector")
    if spec.peer_selector and spec.peer_ip:
        yield Problem("spec.peerSelector", spec.peer_selector, "give either peerIP or peerSelector")
    if spec.peer_selector and spec.as_number:
        yield Problem("spec.asNumber", spec.as_number, "must be left out with peerSelector: each peer brings its own")


def _is_peer_address(address: str) -> bool:
    if text.version_of(address):
        return True
    match = re.fullmatch(r"(?:\[([^\]]+)\]|([^:]+)):(\d{1,5})", address)
    if not match or not 1 <= int(match[3]) <= 65535:
        return False
    return text.version_of(match[1] or match[2]) == (6 if match[1] else 4)


def configuration(resource: BGPConfiguration, parse: SelectorParser) -> Problems:
    spec = resource.spec
    yield from as_number_problems("spec.asNumber", spec.as_number)
    if resource.name.startswith("node."):
        for name, value in (("asNumber", spec.as_number), ("nodeToNodeMeshEnabled", spec.node_to_node_mesh_enabled)):
            if value is not None:
                yield Problem(f"spec.{name}", value, "may only be set in the BGPConfiguration default")
    known = {community.name for community in spec.communities}
    for index, community in enumerate(spec.communities):
        if fault := text.name_fault(community.name):
            yield Problem(f"spec.communities[{index}].name", community.name or None, fault)
        if fault := community_fault(community.value):
            yield Problem(f"spec.communities[{index}].value", community.value or None, fault)
    yield from _advertisements(resource, known)
    for index, name in enumerate(spec.ignored_interfaces):
        if name == "*" or not _INTERFACE_PATTERN.fullmatch(name):
            yield Problem(
                f"spec.ignoredInterfaces[{index}]",
                name,
                "must be an interface name or a pattern such as docker*, not every interface",
            )


def _advertisements(resource: BGPConfiguration, known: set[str]) -> Problems:
    for index, advertisement in enumerate(resource.spec.prefix_advertisements):
        path = f"spec.prefixAdvertisements[{index}]"
        if fault := text.cidr_fault(advertisement.cidr):
            yield Problem(f"{path}.cidr", advertisement.cidr or None, fault)
        for place, community in enumerate(advertisement.communities):
            if community not in known and community_fault(community):
                hint = f"is neither a name in spec.communities nor a value; {community_fault(community)}"
                yield Problem(f"{path}.communities[{place}]", community, hint)
    spec = resource.spec
    for name, items in (
        ("serviceLoadBalancerIPs", spec.service_load_balancer_ips),
        ("serviceExternalIPs", spec.service_external_ips),
        ("serviceClusterIPs", spec.service_cluster_ips),
    ):
        for index, item in enumerate(items):
            if item.cidr and (fault := text.cidr_fault(item.cidr)):
                yield Problem(f"spec.{name}[{index}].cidr", item.cidr, fault)


def bgp_filter(resource: BGPFilter, parse: SelectorParser) -> Problems:
    spec = resource.spec
    for name, rules, version in (
        ("exportV4", spec.export_v4, 4),
        ("importV4", spec.import_v4, 4),
        ("exportV6", spec.export_v6, 6),
        ("importV6", spec.import_v6, 6),
    ):
        for index, rule in enumerate(rules):
            yield from _filter_rule(rule, version, f"spec.{name}[{index}]")


def _filter_rule(rule: BGPFilterRule, version: int, path: str) -> Problems:
    if not rule.action:
        yield Problem(f"{path}.action", None, "must be Accept or Reject")
    if bool(rule.cidr) != bool(rule.match_operator):
        missing = "matchOperator" if rule.cidr else "cidr"
        yield Problem(f"{path}.{missing}", None, "cidr and matchOperator must be given together")
    if rule.cidr:
        network = text.network_or_none(rule.cidr)
        fault = text.cidr_fault(rule.cidr)
        if not fault and network and network.version != version:
            fault = f"must be an IPv{version} CIDR here"
        if fault:
            yield Problem(f"{path}.cidr", rule.cidr, fault)
    if rule.prefix_length is not None:
        if not rule.cidr:
            yield Problem(f"{path}.prefixLength", None, "needs a cidr beside it")
        for name, value in (("min", rule.prefix_length.min), ("max", rule.prefix_length.max)):
            if value is not None and not 0 <= value <= (32 if version == 4 else 128):
                yield Problem(f"{path}.prefixLength.{name}", value, f"must be 0 to {32 if version == 4 else 128}")
    if rule.interface and not _INTERFACE_PATTERN.fullmatch(rule.interface):
        yield Problem(f"{path}.interface", rule.interface, "must be an interface name or a pattern such as eth*")
    for index, community in enumerate(rule.communities.values if rule.communities else ()):
        if fault := community_fault(community):
            yield Problem(f"{path}.communities.values[{index}]", community, fault)
    if rule.operations and rule.action != "Accept":
        yield Problem(f"{path}.operations", None, "may only be used with action Accept")


def node(resource: Node, parse: SelectorParser) -> Problems:
    spec = resource.spec
    for name, mac in (
        ("vxlanTunnelMACAddr", spec.vxlan_tunnel_mac_addr),
        ("vxlanTunnelMACAddrV6", spec.vxlan_tunnel_mac_addr_v6),
    ):
        if mac and (fault := text.mac_fault(mac)):
            yield Problem(f"spec.{name}", mac, fault)
    tunnels = [
        ("spec.ipv4VXLANTunnelAddr", spec.ipv4_vxlan_tunnel_addr, 4),
        ("spec.ipv6VXLANTunnelAddr", spec.ipv6_vxlan_tunnel_addr, 6),
    ]
    bgp = spec.bgp
    if bgp is not None:
        if bgp == type(bgp)():
            yield Problem("spec.bgp", None, "must not be empty: leave it out, or give ipv4Address")
        for name, address, version in (("ipv4Address", bgp.ipv4_address, 4), ("ipv6Address", bgp.ipv6_address, 6)):
            if address and _address_version(address) != version:
                example = "10.20.0.17/24" if version == 4 else "fd00:20::17/64"
                yield Problem(
                    f"spec.bgp.{name}",
                    address,
                    f"must be an IPv{version} address with its prefix length, such as {example}",
                )
        tunnels.append(("spec.bgp.ipv4IPIPTunnelAddr", bgp.ipv4_ipip_tunnel_addr, 4))
        if bgp.route_reflector_cluster_id and text.version_of(bgp.route_reflector_cluster_id) != 4:
            yield Problem(
                "spec.bgp.routeReflectorClusterID",
                bgp.route_reflector_cluster_id,
                "must look like an IPv4 address (244.0.0.1)",
            )
        yield from as_number_problems("spec.bgp.asNumber", bgp.as_number)
    for path, address, version in tunnels:
        if address and text.version_of(address) != version:
            yield Problem(path, address, f"must be an IPv{version} address without prefix length")


def _address_version(address: str) -> int | None:
    network = text.network_or_none(address)
    return network.version if network else text.version_of(address)
