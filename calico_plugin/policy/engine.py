"""PolicyEngine: skeleton, being filled in."""

from __future__ import annotations

from typing import Mapping

from calico_plugin.model.codec import Invalid
from calico_plugin.model.desired import Ruleset
from calico_plugin.model.keys import ResourceKey
from calico_plugin.model.resources import Resource
from calico_plugin.policy.options import PolicyOptions


class PolicyEngine:
    """See the package's docstring. One owner thread."""

    def __init__(self, node_name: str, options: PolicyOptions = PolicyOptions()) -> None:
        self.node_name, self.options = node_name, options

    def on_update(self, key: ResourceKey, old: Resource | None, new: Resource | Invalid | None) -> None:
        """Hear of one resource; `old` is accepted for symmetry with other managers and not needed."""

    def compile(self) -> Ruleset:
        """What the table should hold now."""
        return Ruleset()

    def problems(self) -> Mapping[ResourceKey, str]:
        """What could not be understood."""
        return {}

    def interfaces(self) -> Mapping[str, ResourceKey]:
        """Host-side interface -> the endpoint whose policy the last compile() holds."""
        return {}
