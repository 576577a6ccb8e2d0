"""Calico's v3 resources as frozen typed values; one module a theme, `kinds.KINDS` is the table of all."""

from calico_plugin.model.resources.bgp import BGPConfiguration, BGPFilter, BGPPeer
from calico_plugin.model.resources.cluster import ClusterInformation, FelixConfiguration
from calico_plugin.model.resources.endpoint import HostEndpoint, WorkloadEndpoint
from calico_plugin.model.resources.ipam import IPPool, IPReservation
from calico_plugin.model.resources.kinds import KINDS, Kind
from calico_plugin.model.resources.meta import Metadata, Resource
from calico_plugin.model.resources.node import Node
from calico_plugin.model.resources.policy import GlobalNetworkPolicy, NetworkPolicy, Profile, Rule, Tier

__all__ = [
    "BGPConfiguration",
    "BGPFilter",
    "BGPPeer",
    "ClusterInformation",
    "FelixConfiguration",
    "GlobalNetworkPolicy",
    "HostEndpoint",
    "IPPool",
    "IPReservation",
    "KINDS",
    "Kind",
    "Metadata",
    "NetworkPolicy",
    "Node",
    "Profile",
    "Resource",
    "Rule",
    "Tier",
    "WorkloadEndpoint",
]
