"""What `explain` says of published ports: the same connection by way of the host's port may meet another verdict."""

from __future__ import annotations

from dataclasses import replace
from typing import Callable, Iterator

from calico_plugin.cli.policy.places import HOST, Place
from calico_plugin.cli.policy.world import World
from calico_plugin.model.desired import DENIES, Ruleset
from calico_plugin.model.published import Published, published
from calico_plugin.policy import explain
from calico_plugin.policy.explain import Flow
from calico_plugin.policy.ports import PROFILE


def notes(world: World, rules_of: Callable[[str], Ruleset], destination: Place, flow: Flow) -> Iterator[str]:
    """Nothing when the destination has no part in a published port."""
    if destination.kind == HOST:
        for one in _of_node(world, destination.node):
            if _is_asked(one, flow):
                yield f"{one.door} of node {destination.node} is published: ask for {one.address} port {one.port}"
    elif destination.resource is not None:
        node = destination.resource.spec.node or destination.node
        target = (flow.destination, flow.protocol, flow.destination_port)
        doors = [one.door for one in published(destination.resource.spec)
                 if (one.address, one.protocol, one.port) == target]
        if doors:
            told = _told(rules_of(node), destination.interface, flow)
            yield f"node {node} publishes it as {', '.join(doors)}: who comes that way is {told}"


def _of_node(world: World, node: str) -> Iterator[Published]:
    for endpoint in world.endpoints.values():
        if endpoint.spec.node == node:
            yield from published(endpoint.spec)


def _is_asked(one: Published, flow: Flow) -> bool:
    there = one.host_ip in ("", flow.destination) and one.version == flow.family
    return there and (one.protocol, one.host_port) == (flow.protocol, flow.destination_port)


def _told(rules: Ruleset, interface: str, flow: Flow) -> str:
    found = explain.ingress(rules, interface, replace(flow, translated=True))
    if found is None or found.verdict in DENIES:
        return "denied as well"
    implied = any(step.rule.origin.startswith(f"Profile|{PROFILE}|") for step in found.steps)
    return "allowed, because no policy selects it" if implied else "allowed by policy, too"
