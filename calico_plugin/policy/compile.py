"""From scratch: a snapshot of the cluster -> the ruleset of one node."""

from __future__ import annotations

from calico_plugin.model.desired import Ruleset
from calico_plugin.model.snapshot import Snapshot
from calico_plugin.policy.engine import PolicyEngine
from calico_plugin.policy.options import PolicyOptions


def compile_snapshot(snapshot: Snapshot, node_name: str, options: PolicyOptions = PolicyOptions()) -> Ruleset:
    """What `node_name` should have when the cluster is as `snapshot` says."""
    engine = PolicyEngine(node_name, options)
    for resources in snapshot.resources.values():
        for key, resource in resources.items():
            engine.on_update(key, None, resource)
    return engine.compile()
