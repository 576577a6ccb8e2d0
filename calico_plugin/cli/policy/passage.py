"""The host endpoints that a packet passes on its way, besides those at its ends: doNotTrack, preDNAT and applyOnForward
policy (policy 2.7), by the rules that the node's agent compiles.

By which interface a packet comes from outside or leaves is not known here: it is the one that has the node's address,
as far as host endpoints tell, or the only one that is governed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from typing import Callable, Iterator, Mapping

from calico_plugin.cli.policy.places import HOST, Place, node_addresses
from calico_plugin.cli.policy.world import World
from calico_plugin.model.desired import Ruleset, Verdict
from calico_plugin.model.names import VXLAN_DEVICES
from calico_plugin.model.resources import HostEndpoint, IPPool
from calico_plugin.policy import explain
from calico_plugin.policy.explain import Flow, Walk

EXPECTED = "expected0"
"""Stands for an interface that a host endpoint finds by its address."""
_WORDS = {
    "host-raw-in": "arriving at {}, before connection tracking",
    "host-raw-out": "sent by {}, before connection tracking",
    "host-nat-in": "arriving at {}, before translation",
    "host-forward-in": "forwarded by {}, coming in",
    "host-forward-out": "forwarded by {}, going out",
}


@dataclass(frozen=True)
class Stop:
    """A place where policy of a host endpoint has its say: base chain of the stage, interfaces of the packet."""

    node: str
    stage: str
    entering: str = ""
    leaving: str = ""


@dataclass(frozen=True)
class Passed:
    """A stop at which a rule decided, or logged; `flow` is the packet there."""

    stop: Stop
    walk: Walk
    flow: Flow

    @property
    def words(self) -> str:
        interface = self.stop.leaving if self.stop.stage.endswith("-out") else self.stop.entering
        shown = "" if interface == EXPECTED else f" ({interface})"
        return _WORDS[self.stop.stage].format(f"node {self.stop.node}") + shown


@dataclass(frozen=True)
class Passage:
    """`flows`: node -> the packet as it is judged at an end there: untracked, or spared by preDNAT policy."""

    stops: tuple[Passed, ...]
    flows: Mapping[str, Flow]
    assumed: tuple[str, ...]


def passage(
    world: World, rules_of: Callable[[str], Ruleset], source: Place, destination: Place, flow: Flow
) -> Passage:
    """All stops in the order in which the packet meets them, up to one that denies."""
    found: list[Passed] = []
    flows: dict[str, Flow] = {}
    stops = [stop for stop in _stops(world, source, destination, flow) if hosts_of(world, stop.node)]
    for stop in stops:
        now = replace(flows.get(stop.node, flow), in_interface=stop.entering, out_interface=stop.leaving)
        rules = rules_of(stop.node)
        if stop.stage not in rules.chains:
            continue
        walk = explain.walk(rules, stop.stage, now)
        decided = walk.verdict is not Verdict.RETURN and any(step.rule.origin for step in walk.steps)
        if decided or any(step.rule.log for step in walk.steps):
            found.append(Passed(stop, walk, now))
        if walk.verdict in (Verdict.UNTRACK, Verdict.SPARE):
            untracked = walk.verdict is Verdict.UNTRACK
            flows[stop.node] = replace(
                now, state="untracked" if untracked else now.state, spared=now.spared or not untracked)
    return Passage(tuple(found), flows, tuple(_assumed(world, stops)))


def hosts_of(world: World, node: str) -> list[HostEndpoint]:
    return [host for host in world.of(HostEndpoint).values() if node and host.spec.node == node]


def governed(world: World, place: Place) -> str:
    """The interface behind a host's address, as far as host endpoints tell; empty: none is governed."""
    hosts = hosts_of(world, place.node)
    for host in hosts:
        if set(host.spec.expected_ips) & set(place.addresses):
            return host.spec.interface_name.replace("*", "") or EXPECTED
    named = [host.spec.interface_name for host in hosts if host.spec.interface_name not in ("", "*")]
    if len(named) == 1:
        return named[0]
    return EXPECTED if any(host.spec.interface_name == "*" for host in hosts) else ""


def _stops(world: World, source: Place, destination: Place, flow: Flow) -> Iterator[Stop]:
    local = source.node == destination.node and bool(source.node)
    here, there = source.interface, destination.interface
    if source.resource is not None:
        yield Stop(source.node, "host-nat-in", here)
        if destination.kind == HOST and local:
            return
        out = there if local else _uplink(world, source, destination, flow)
        yield Stop(source.node, "host-forward-in", here, out)
        yield Stop(source.node, "host-forward-out", here, out)
    elif source.kind == HOST:
        yield Stop(source.node, "host-raw-out", "", there if local else _uplink(world, source, destination, flow))
    if local or not destination.node:
        return
    into = _uplink(world, destination, source, flow)
    yield Stop(destination.node, "host-raw-in", into)
    yield Stop(destination.node, "host-nat-in", into)
    if destination.resource is not None:
        yield Stop(destination.node, "host-forward-in", into, there)
        yield Stop(destination.node, "host-forward-out", into, there)


def _uplink(world: World, place: Place, other: Place, flow: Flow) -> str:
    """Where the node of a place meets the network; packets between containers may be wrapped."""
    if place.resource is not None and other.resource is not None and _wrapped(world, flow):
        return VXLAN_DEVICES[flow.family]
    # A name that no host endpoint has, where none tells more: `*` governs it.
    return governed(world, replace(place, addresses=node_addresses(world, place.node))) or EXPECTED


def _wrapped(world: World, flow: Flow) -> bool:
    pools = (pool for pool in world.of(IPPool).values() if pool.spec.vxlan_mode == "Always")
    return any(_holds(pool.spec.cidr, flow.destination) for pool in pools)


def _holds(cidr: str, address: str) -> bool:
    try:
        return ip_address(address) in ip_network(cidr, strict=False)
    except ValueError:
        return False


def _assumed(world: World, stops: list[Stop]) -> Iterator[str]:
    """What was taken for granted where a node has several governed interfaces."""
    for node in dict.fromkeys(stop.node for stop in stops):
        names = {host.spec.interface_name for host in hosts_of(world, node)} - {"", "*"}
        used = {name for stop in stops if stop.node == node for name in (stop.entering, stop.leaving)}
        uplinks = sorted(used & names)
        if len(names) > 1:
            where = uplinks[0] if uplinks else "another interface than those of its host endpoints"
            yield f"node {node}: the packet is taken to pass by {where}"
