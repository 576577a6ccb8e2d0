"""Addresses: blocks, affinities and handles, given out and taken back exactly as Calico does, in one etcd commit each.

`Allocator` is the door for driver, calico-node and calicoctl; `audit` compares what is allocated with what is used.
The package imports nothing above it: the node-selector matcher comes in as a parameter.
"""

from calico_plugin.ipam.affinities import Claims
from calico_plugin.ipam.allocator import Allocator
from calico_plugin.ipam.assigning import Assigned
from calico_plugin.ipam.config import get_config, set_config
from calico_plugin.ipam.queries import Allocation
from calico_plugin.ipam.releasing import Release, Released
from calico_plugin.ipam.usage import BlockUse, PoolUse
from calico_plugin.ipam.view import ClusterView, DirectView, Inputs, NodeView, inputs_of

__all__ = [
    "Allocation",
    "Allocator",
    "Assigned",
    "BlockUse",
    "Claims",
    "ClusterView",
    "DirectView",
    "Inputs",
    "NodeView",
    "PoolUse",
    "Release",
    "Released",
    "get_config",
    "inputs_of",
    "set_config",
]
