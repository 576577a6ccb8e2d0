"""What is filled in before an object is stored, and the labels that Calico keeps on it (datamodel 2.4-2.7, 3.3)."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any, Callable, TypeVar

from msgspec import DecodeError, json
from msgspec.structs import replace

from calico_plugin.model import names
from calico_plugin.model.resources.bgp import BGPConfiguration
from calico_plugin.model.resources.cluster import CalicoNodeStatus, FelixConfiguration, KubeControllersConfiguration
from calico_plugin.model.resources.endpoint import WorkloadEndpoint
from calico_plugin.model.resources.ipam import IPPool
from calico_plugin.model.resources.meta import Metadata, Resource
from calico_plugin.model.resources.policy import PolicySpec, Tier, TierSpec

R = TypeVar("R", bound=Resource)

DEFAULT_TIER = "default"
DEFAULT_TIER_ORDER = 1000000
NAME_ANNOTATION = "projectcalico.org/metadata"

_FELIX: dict[str, Any] = {
    "nftablesMode": "Auto",
    "nftablesFlowTableOffload": "Disabled",
    "bpfLogLevel": "",
    "bpfConnectTimeLoadBalancing": "TCP",
    "bpfHostNetworkedNATWithoutCTLB": "Enabled",
    "floatingIPs": "Disabled",
}
_NO_STATUS: dict[str, Any] = {
    "lastUpdated": None,
    "agent": {"birdV4": {}, "birdV6": {}},
    "bgp": {
        "numberEstablishedV4": 0,
        "numberNotEstablishedV4": 0,
        "numberEstablishedV6": 0,
        "numberNotEstablishedV6": 0,
    },
    "routes": {},
}


def fill(resource: R) -> R:
    """The object as it is to be stored; one that has everything already comes back equal."""
    filler = _FILLERS.get(resource.kind)
    return filler(resource) if filler else resource


def is_policy(kind: str) -> bool:
    """The kinds whose name annotation and tier label Calico keeps."""
    return kind in _POLICIES


def _pool(pool: IPPool) -> IPPool:
    spec = pool.spec
    try:
        cidr = str(ip_network(spec.cidr)) if "/" in spec.cidr else spec.cidr
    except ValueError:
        cidr = spec.cidr
    return replace(
        pool,
        spec=replace(
            spec,
            cidr=cidr,
            vxlan_mode=spec.vxlan_mode or "Never",
            ipip_mode=spec.ipip_mode or "Never",
            block_size=spec.block_size or spec.effective_block_size,
            node_selector=spec.node_selector or "all()",
            allowed_uses=spec.effective_uses,
            assignment_mode="Automatic" if spec.assignment_mode is None else spec.assignment_mode,
        ),
    )


def _tier(tier: Tier) -> Tier:
    spec = tier.spec
    order = DEFAULT_TIER_ORDER if spec.order is None else spec.order
    action = "Deny" if spec.default_action is None else spec.default_action
    return replace(tier, spec=TierSpec(order=order, default_action=action))


def policy_types(spec: PolicySpec) -> tuple[str, ...]:
    """Directions that a policy without `types` has (datamodel 2.6)."""
    if not spec.egress:
        return ("Ingress",)
    return ("Ingress", "Egress") if spec.ingress else ("Egress",)


def _policy(policy: Any) -> Any:
    spec: PolicySpec = policy.spec
    staged = policy.kind.startswith("Staged")
    action = (spec.staged_action or "Set") if staged else spec.staged_action
    types = spec.types or (() if action == "Delete" else policy_types(spec))
    spec = replace(spec, staged_action=action, tier=spec.tier or DEFAULT_TIER, types=types)
    annotation = {NAME_ANNOTATION: json.encode({"name": policy.name}).decode()}
    metadata = replace(
        policy.metadata,
        labels=policy.metadata.labels | {names.LABEL_TIER: spec.tier},
        annotations=policy.metadata.annotations | annotation,
    )
    return replace(policy, metadata=metadata, spec=spec)


def _bgp_configuration(configuration: BGPConfiguration) -> BGPConfiguration:
    spec = configuration.spec
    return replace(
        configuration,
        spec=replace(
            spec,
            log_severity_screen=spec.log_severity_screen or "Info",
            service_load_balancer_aggregation=spec.service_load_balancer_aggregation or "Enabled",
        ),
    )


def _felix(configuration: FelixConfiguration) -> FelixConfiguration:
    return replace(configuration, spec=_FELIX | configuration.spec)


def _kube_controllers(configuration: KubeControllersConfiguration) -> KubeControllersConfiguration:
    spec = configuration.spec
    port = 9094 if spec.prometheus_metrics_port is None else spec.prometheus_metrics_port
    return replace(
        configuration, spec=replace(spec, health_checks=spec.health_checks or "Enabled", prometheus_metrics_port=port)
    )


def _node_status(status: CalicoNodeStatus) -> CalicoNodeStatus:
    return replace(status, status=status.status or _NO_STATUS)


def _workload_endpoint(endpoint: WorkloadEndpoint) -> WorkloadEndpoint:
    own = {names.LABEL_NAMESPACE: endpoint.namespace, names.LABEL_ORCHESTRATOR: endpoint.spec.orchestrator}
    return replace(endpoint, metadata=replace(endpoint.metadata, labels=endpoint.labels | own))


def client_name(metadata: Metadata) -> str:
    """A policy's name for its user: releases up to 3.31 stored `web` as `default.web` and noted `web` beside it."""
    try:
        noted = json.decode(metadata.annotations.get(NAME_ANNOTATION, "{}"), type=dict[str, Any]).get("name")
    except DecodeError:
        noted = None
    return noted if isinstance(noted, str) and noted else metadata.name


def without_own_annotations(metadata: Metadata) -> Metadata:
    """Metadata as a user sees it: the name annotation of policies is bookkeeping (datamodel 2.6)."""
    rest = {name: value for name, value in metadata.annotations.items() if name != NAME_ANNOTATION}
    return replace(metadata, annotations=rest)


_POLICIES = ("GlobalNetworkPolicy", "NetworkPolicy", "StagedGlobalNetworkPolicy", "StagedNetworkPolicy")
_FILLERS: dict[str, Callable[[Any], Any]] = {
    "IPPool": _pool,
    "Tier": _tier,
    "BGPConfiguration": _bgp_configuration,
    "FelixConfiguration": _felix,
    "KubeControllersConfiguration": _kube_controllers,
    "CalicoNodeStatus": _node_status,
    "WorkloadEndpoint": _workload_endpoint,
    **{kind: _policy for kind in _POLICIES},
}
