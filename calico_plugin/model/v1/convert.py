"""One v1 object -> one v3 resource (datamodel 6.2 to 6.5)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any, Callable, Mapping

import msgspec

from calico_plugin.model import defaults, names, schema
from calico_plugin.model.problem import Problem, member
from calico_plugin.model.resources import (
    BGPPeer,
    GlobalNetworkPolicy,
    HostEndpoint,
    IPPool,
    Metadata,
    Node,
    Profile,
    Resource,
    WorkloadEndpoint,
)
from calico_plugin.model.resources.bgp import BGPPeerSpec
from calico_plugin.model.resources.endpoint import (
    IPNAT,
    EndpointPort,
    HostEndpointSpec,
    WorkloadEndpointPort,
    WorkloadEndpointSpec,
)
from calico_plugin.model.resources.ipam import IPPoolSpec
from calico_plugin.model.resources.node import NodeBGPSpec, NodeSpec
from calico_plugin.model.resources.policy import PolicySpec, ProfileSpec
from calico_plugin.model.v1 import rules, types
from calico_plugin.model.v1.rules import Wrong

NAMESPACE = "default"
"""Of endpoints, also Docker's: the converter's choice."""
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_NAME_WITH_SLASH = re.compile(r"[A-Za-z0-9_./-]{1,128}")
_MODES = {"cross-subnet": "CrossSubnet"}


@dataclass(frozen=True, slots=True)
class Converted:
    """`resource` is None when there are problems."""

    resource: Resource | None
    problems: tuple[Problem, ...] = ()


def convert(document: Mapping[str, Any]) -> Converted:
    """Convert a document whose kind is one of `types.KINDS`. The result is not checked by the rules of today."""
    kind = str(document.get("kind"))
    struct = types.KINDS[kind]
    shaped, problems = schema.shape_as(schema.members(struct), document)
    if problems:
        return Converted(None, problems)
    try:
        return Converted(_MAKERS[kind](msgspec.convert(shaped, struct)))
    except Wrong as error:
        return Converted(None, (error.problem,))


def was(document: Mapping[str, Any]) -> str:
    """Kind and identity of a v1 object, for people: `policy(allow-tcp)`, `ipPool(10.0.0.0/16)`."""
    kind, metadata = document.get("kind"), document.get("metadata")
    given = metadata if isinstance(metadata, Mapping) else {}
    return f"{kind}({given.get('name') or given.get('cidr') or given.get('peerIP') or ''})"


def _named(text: str, path: str, pattern: re.Pattern[str] = _NAME) -> str:
    if not text:
        raise Wrong(path, None, "must be given")
    if not pattern.fullmatch(text):
        raise Wrong(path, text, "must be 1 to 128 letters, digits, and . _ - only")
    return text


def _pool(pool: types.Pool) -> Resource:
    cidr, ipip = pool.metadata.cidr, pool.spec.ipip
    if not cidr:
        raise Wrong("metadata.cidr", None, "must be given")
    try:
        network = ip_network(cidr)
    except ValueError as error:
        raise Wrong("metadata.cidr", cidr, f"must be a network without host bits: {error}") from None
    if ipip and ipip.enabled and network.version == 6:
        raise Wrong("spec.ipip", None, "is for IPv4 only")
    mode = _MODES.get(ipip.mode, "Always") if ipip and ipip.enabled else "Never"
    spec = IPPoolSpec(
        cidr=str(network), ipip_mode=mode, nat_outgoing=pool.spec.nat_outgoing, disabled=pool.spec.disabled
    )
    return defaults.fill(IPPool(metadata=Metadata(name=names.cidr_name(cidr)), spec=spec))


def _policy(given: types.Policy) -> Resource:
    spec, metadata = given.spec, given.metadata
    tier = metadata.tier or defaults.DEFAULT_TIER
    name = names.convert_no_dots(_named(metadata.name, "metadata.name", _NAME_WITH_SLASH))
    if spec.do_not_track and spec.pre_dnat:
        raise Wrong("spec.preDNAT", True, "cannot be given together with doNotTrack")
    converted = PolicySpec(
        tier=tier,
        order=spec.order,
        ingress=rules.rules(spec.ingress, "spec.ingress"),
        egress=rules.rules(spec.egress, "spec.egress"),
        selector=rules.selector(spec.selector),
        types=tuple(word.capitalize() for word in spec.types),
        do_not_track=spec.do_not_track,
        pre_dnat=spec.pre_dnat,
        apply_on_forward=spec.do_not_track or spec.pre_dnat,
    )
    resource = GlobalNetworkPolicy(
        metadata=Metadata(name=f"{tier}.{name}", annotations=metadata.annotations), spec=converted
    )
    filled = defaults.fill(resource)
    return msgspec.structs.replace(filled, metadata=defaults.without_own_annotations(filled.metadata))


def profile_name(name: str) -> str:
    """`k8s_ns.web` became `kns.web`; all others have their name converted."""
    prefix = "k8s_ns."
    return names.convert("kns." + name.removeprefix(prefix) if name.startswith(prefix) else name)


def _profile(given: types.Profile) -> Resource:
    metadata = given.metadata
    labels = rules.labels(metadata.labels)
    for index, tag in enumerate(metadata.tags):
        if tag in labels:
            path = f"metadata.tags[{index}]"
            raise Wrong(path, tag, f"is also a label ({member('metadata.labels', tag)}): rename one of them")
    spec = ProfileSpec(
        ingress=rules.rules(given.spec.ingress, "spec.ingress"),
        egress=rules.rules(given.spec.egress, "spec.egress"),
        labels_to_apply=labels | {tag: "" for tag in metadata.tags},
    )
    name = profile_name(_named(metadata.name, "metadata.name", _NAME_WITH_SLASH))
    return Profile(metadata=Metadata(name=name), spec=spec)


def _peer(given: types.Peer) -> Resource:
    metadata = given.metadata
    if metadata.scope not in ("global", "node"):
        raise Wrong("metadata.scope", metadata.scope or None, "must be global or node")
    if (metadata.scope == "node") != bool(metadata.node):
        hint = "must be given with scope node" if metadata.scope == "node" else "cannot be given with scope global"
        raise Wrong("metadata.node", metadata.node or None, hint)
    peer = rules.address(metadata.peer_ip, "metadata.peerIP")
    node = names.normal(metadata.node)
    name = f"{node}.{names.ip_name(peer)}" if node else names.ip_name(peer)
    spec = BGPPeerSpec(node=node, peer_ip=peer, as_number=given.spec.as_number)
    return BGPPeer(metadata=Metadata(name=name), spec=spec)


def _node(given: types.Node) -> Resource:
    old = given.spec.bgp
    bgp = None
    if old:
        if not (old.ipv4_address or old.ipv6_address):
            raise Wrong("spec.bgp", None, "needs ipv4Address or ipv6Address")
        bgp = NodeBGPSpec(
            as_number=old.as_number,
            ipv4_address=rules.interface(old.ipv4_address, "spec.bgp.ipv4Address") if old.ipv4_address else "",
            ipv6_address=rules.interface(old.ipv6_address, "spec.bgp.ipv6Address") if old.ipv6_address else "",
        )
    name = names.normal(_named(given.metadata.name, "metadata.name"))
    return Node(metadata=Metadata(name=name), spec=NodeSpec(bgp=bgp, orch_refs=given.spec.orch_refs))


def _host(given: types.Host) -> Resource:
    metadata, spec = given.metadata, given.spec
    node = names.normal(_named(metadata.node, "metadata.node"))
    name = names.convert(f"{node}.{_named(metadata.name, 'metadata.name', _NAME_WITH_SLASH)}")
    converted = HostEndpointSpec(
        node=node,
        interface_name=spec.interface_name,
        expected_ips=tuple(rules.four_first(spec.expected_ips)),
        profiles=tuple(profile_name(profile) for profile in spec.profiles),
        ports=tuple(
            EndpointPort(name=port.name, protocol=_port_protocol(port, index), port=port.port)
            for index, port in enumerate(spec.ports)
        ),
    )
    return HostEndpoint(metadata=Metadata(name=name, labels=rules.labels(metadata.labels)), spec=converted)


def _port_protocol(port: types.Port1, index: int) -> int | str:
    return rules.protocol(port.protocol, f"spec.ports[{index}].protocol") or ""


def _identity(metadata: types.WorkloadMetadata) -> dict[str, Any]:
    """The members of the spec that say whose endpoint it is, and its namespace."""
    orchestrator = names.convert(_named(metadata.orchestrator, "metadata.orchestrator"))
    workload = _named(metadata.workload, "metadata.workload", _NAME_WITH_SLASH)
    if metadata.orchestrator == "k8s":
        namespace, _, pod = workload.partition(".")
        return {"orchestrator": orchestrator, "pod": pod, "container_id": metadata.active_instance_id, "in": namespace}
    if metadata.orchestrator == "cni":
        return {"orchestrator": orchestrator, "container_id": workload, "in": NAMESPACE}
    if metadata.orchestrator == names.ORCHESTRATOR:
        return {"orchestrator": orchestrator, "workload": names.WORKLOAD, "in": NAMESPACE}
    return {"orchestrator": orchestrator, "workload": names.convert(workload), "in": NAMESPACE}


def _workload(given: types.Workload) -> Resource:
    metadata, spec = given.metadata, given.spec
    identity = _identity(metadata)
    namespace = identity.pop("in")
    node = names.normal(_named(metadata.node, "metadata.node"))
    endpoint = names.convert(_named(metadata.name, "metadata.name"))
    third = identity.get("pod") or identity.get("container_id") or identity.get("workload") or ""
    converted = WorkloadEndpointSpec(
        **identity,
        node=node,
        endpoint=endpoint,
        ip_networks=tuple(rules.four_first(rules.masked(net, "spec.ipNetworks") for net in spec.ip_networks)),
        ip_nats=tuple(IPNAT(internal_ip=nat.internal_ip, external_ip=nat.external_ip) for nat in spec.ip_nats),
        ipv4_gateway=spec.ipv4_gateway,
        ipv6_gateway=spec.ipv6_gateway,
        profiles=tuple(profile_name(profile) for profile in spec.profiles),
        interface_name=spec.interface_name,
        mac=spec.mac.lower(),
        ports=tuple(
            WorkloadEndpointPort(name=port.name, protocol=_port_protocol(port, index), port=port.port)
            for index, port in enumerate(spec.ports)
        ),
    )
    name = names.endpoint_name(node, identity["orchestrator"], third, endpoint)
    return WorkloadEndpoint(
        metadata=Metadata(name=name, namespace=namespace, labels=rules.labels(metadata.labels)), spec=converted
    )


_MAKERS: dict[str, Callable[[Any], Resource]] = {
    "ipPool": _pool,
    "policy": _policy,
    "profile": _profile,
    "bgpPeer": _peer,
    "node": _node,
    "hostEndpoint": _host,
    "workloadEndpoint": _workload,
}
