"""The frozen view of the cluster that everyone decides on: read once per cycle, passed as an argument."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Mapping

from calico_plugin.model.codec import Invalid
from calico_plugin.model.docker import NetworkRecord
from calico_plugin.model.ipam import Affinity, Block
from calico_plugin.model.keys import ResourceKey
from calico_plugin.model.resources import Resource


@dataclass(frozen=True)
class Snapshot:
    """`resources` maps kind -> key -> typed resource; `blocks` by CIDR; `affinities` by (host, CIDR); `networks` by id.

    `revision` is the etcd revision of the view; `invalid` names what does not parse and therefore counts as absent.
    """

    revision: int = 0
    resources: Mapping[str, Mapping[ResourceKey, Resource]] = field(default_factory=dict)
    blocks: Mapping[str, Block] = field(default_factory=dict)
    affinities: Mapping[tuple[str, str], Affinity] = field(default_factory=dict)
    networks: Mapping[str, NetworkRecord] = field(default_factory=dict)
    invalid: Mapping[str, Invalid] = field(default_factory=dict)

    def kind(self, name: str) -> Mapping[ResourceKey, Resource]:
        """All resources of a kind, possibly none."""
        return self.resources.get(name, {})
