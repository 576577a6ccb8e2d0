"""The words for kinds that people type: any case, plurals and short forms (node-and-cli 4.2)."""

from __future__ import annotations

from calico_plugin.errors import InvalidInput
from calico_plugin.model.problem import did_you_mean
from calico_plugin.model.resources import KINDS

_SHORT: dict[str, str] = {
    "Node": "no nos",
    "BGPPeer": "bgpp bgpps bp bps",
    "HostEndpoint": "hep heps",
    "WorkloadEndpoint": "wep weps",
    "IPPool": "ipp ipps pool pools",
    "Profile": "pro pros",
    "NetworkPolicy": "policy policies pol pols np",
    "GlobalNetworkPolicy": "gnp gnps",
    "StagedGlobalNetworkPolicy": "sgnp sgnps",
    "StagedNetworkPolicy": "snp snps",
    "StagedKubernetesNetworkPolicy": "sknp sknps",
    "GlobalNetworkSet": "gnetsets",
    "NetworkSet": "netsets",
    "BGPConfiguration": "bgpconfig bgpconfigs",
    "BGPFilter": "bgpf bgpfs bf bfs",
    "FelixConfiguration": "felixconfig felixconfigs",
    "ClusterInformation": "clusterinfo clusterinfos",
    "KubeControllersConfiguration": "kubecontrollersconfig kubecontrollersconfigs",
    "IPReservation": "reservation reservations",
    "IPAMConfiguration": "ipamconfig ipamconfigs",
    "CalicoNodeStatus": "nodestatus nodestatuses",
}

WORDS: dict[str, str] = {
    word: kind.name
    for kind in KINDS.values()
    for word in (kind.name.lower(), kind.plural, *_SHORT.get(kind.name, "").split())
}


def kind_of(word: str) -> str:
    """The kind that a word means. Raises InvalidInput that suggests the nearest."""
    kind = WORDS.get(word.lower())
    if kind is None:
        known = ", ".join(sorted(name.lower() for name in KINDS))
        raise InvalidInput("KIND", word, f"unknown resource kind{did_you_mean(word, WORDS) or f'; known: {known}'}")
    return kind
