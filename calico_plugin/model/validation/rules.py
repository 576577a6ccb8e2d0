"""The table: which rules hold for which kind."""

from __future__ import annotations

from typing import Any, Callable, Iterator

from calico_plugin.errors import InvalidInput
from calico_plugin.model.problem import Problem
from calico_plugin.model.resources import Resource
from calico_plugin.model.validation import bgp, endpoint, ippool, metadata, policy
from calico_plugin.model.validation.text import SelectorParser

Rule = Callable[[Any, SelectorParser], Iterator[Problem]]

_RULES: dict[str, tuple[Rule, ...]] = {
    "IPPool": (ippool.pool,),
    "IPReservation": (ippool.reservation,),
    "IPAMConfiguration": (ippool.configuration,),
    "Node": (bgp.node,),
    "WorkloadEndpoint": (endpoint.workload,),
    "HostEndpoint": (endpoint.host,),
    "Profile": (policy.profile,),
    "Tier": (policy.tier,),
    "GlobalNetworkPolicy": (policy.policy_name, policy.policy),
    "NetworkPolicy": (policy.policy_name, policy.policy),
    "StagedGlobalNetworkPolicy": (policy.policy_name, policy.policy),
    "StagedNetworkPolicy": (policy.policy_name, policy.policy),
    "GlobalNetworkSet": (policy.network_set,),
    "NetworkSet": (policy.network_set,),
    "BGPPeer": (bgp.peer,),
    "BGPConfiguration": (bgp.configuration,),
    "BGPFilter": (bgp.bgp_filter,),
}


def problems(resource: Resource, parse: SelectorParser) -> tuple[Problem, ...]:
    """Everything that is wrong with one object, looked at alone."""
    found = list(metadata.problems(resource))
    for rule in _RULES.get(resource.kind, ()):
        found.extend(rule(resource, parse))
    return tuple(found)


def check(resource: Resource, parse: SelectorParser) -> None:
    """Raises InvalidInput for the first problem; its text holds all of them."""
    found = problems(resource, parse)
    if found:
        error = InvalidInput(
            found[0].path, found[0].value, "; ".join([found[0].hint, *(str(other) for other in found[1:])])
        )
        raise error
