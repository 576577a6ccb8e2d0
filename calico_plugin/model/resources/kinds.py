"""The table of kinds: plural key segment, scope and type (datamodel 1.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Type

from calico_plugin.model.resources import bgp, cluster, endpoint, ipam, node, policy
from calico_plugin.model.resources.meta import Resource


@dataclass(frozen=True, slots=True)
class Kind:
    """`plural` is the lower-case key segment; `namespaced` kinds have one more segment."""

    name: str
    plural: str
    type: Type[Resource]
    namespaced: bool = False


def _kind(resource: Type[Resource], plural: str, namespaced: bool = False) -> Kind:
    return Kind(resource.__name__, plural, resource, namespaced)


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        _kind(ipam.IPPool, "ippools"),
        _kind(ipam.IPReservation, "ipreservations"),
        _kind(ipam.IPAMConfiguration, "ipamconfigurations"),
        _kind(node.Node, "nodes"),
        _kind(endpoint.WorkloadEndpoint, "workloadendpoints", True),
        _kind(endpoint.HostEndpoint, "hostendpoints"),
        _kind(policy.Profile, "profiles"),
        _kind(policy.Tier, "tiers"),
        _kind(policy.GlobalNetworkPolicy, "globalnetworkpolicies"),
        _kind(policy.NetworkPolicy, "networkpolicies", True),
        _kind(policy.StagedGlobalNetworkPolicy, "stagedglobalnetworkpolicies"),
        _kind(policy.StagedNetworkPolicy, "stagednetworkpolicies", True),
        _kind(policy.StagedKubernetesNetworkPolicy, "stagedkubernetesnetworkpolicies", True),
        _kind(policy.GlobalNetworkSet, "globalnetworksets"),
        _kind(policy.NetworkSet, "networksets", True),
        _kind(bgp.BGPPeer, "bgppeers"),
        _kind(bgp.BGPConfiguration, "bgpconfigurations"),
        _kind(bgp.BGPFilter, "bgpfilters"),
        _kind(cluster.FelixConfiguration, "felixconfigurations"),
        _kind(cluster.ClusterInformation, "clusterinformations"),
        _kind(cluster.KubeControllersConfiguration, "kubecontrollersconfigurations"),
        _kind(cluster.CalicoNodeStatus, "caliconodestatuses"),
    )
}

BY_PLURAL: dict[str, Kind] = {kind.plural: kind for kind in KINDS.values()}
