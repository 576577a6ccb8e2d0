"""Checks of pools, addresses, and what containers of this host have."""

from __future__ import annotations

from datetime import datetime, timezone
from ipaddress import ip_network
from typing import Iterable

from calico_plugin.cli.doctor.context import Context
from calico_plugin.cli.doctor.finding import Finding, Level
from calico_plugin.cli.doctor.probes import Route
from calico_plugin.ipam.audit import Allocated
from calico_plugin.model.names import BIRD_ROUTE_PROTOCOL, INTERFACE_PREFIX, ROUTE_PROTOCOL
from calico_plugin.model.resources import IPPool

YOUNG_SECONDS = 60.0
"""An address is given before its endpoint is written: so long it is no leak."""
SCARCE = 0.1
_SHOWN = 3


def pools(context: Context) -> Iterable[Finding]:
    """There is an IPv4 pool, and the pools have addresses left."""
    plain = [pool for pool in context.pools if pool.spec.version == 4]
    if all(pool.spec.disabled for pool in plain):
        yield _no_pool(len(plain))
    for use in context.session.allocator.utilisation(context.session.deadline()):
        if use.pool is None or not use.pool.enabled or not use.capacity:
            continue
        free = use.available / use.capacity
        level = Level.FAIL if not use.available else Level.WARN if free < SCARCE else Level.OK
        summary = f"{use.pool.name} ({use.pool.cidr}): {use.available} of {use.capacity} addresses are free"
        if level is Level.OK:
            yield Finding("pools", level, summary)
            continue
        meaning = "Starts of containers fail, or soon will." if level is Level.WARN else "Starts of containers fail."
        command = "calicoctl ipam check finds leaked addresses; calicoctl create -f - with one more IPPool adds room"
        yield Finding("pools", level, summary, meaning, command)


def _no_pool(number: int) -> Finding:
    summary = f"all {number} IPv4 pools are disabled" if number else "there is no IPv4 pool"
    command = "calicoctl create -f - with an IPPool, or start calico-node without NO_DEFAULT_POOLS"
    if number:
        command = "calicoctl get ippool -o wide; calicoctl patch ippool NAME -p '{\"spec\": {\"disabled\": false}}'"
    return Finding("pools", Level.FAIL, summary, "No container gets an address.", command)


def pool_routes(context: Context) -> Iterable[Finding]:
    """No route of this host leads addresses of a pool elsewhere, and no network of it lies inside one."""
    clashes = [
        (pool, route) for pool in context.pools for route in context.routes if _is_foreign(route) and _meet(pool, route)
    ]
    for pool, route in clashes[:_SHOWN]:
        meaning = "Packets for containers with such addresses leave through another link, or those hosts are lost."
        command = f"ip route del {route.destination}, or choose another CIDR for the pool (calicoctl create -f -)"
        summary = f"route {route.destination} on {route.link or '?'} lies in {pool} ({pool.spec.cidr})"
        if route.destination.prefixlen < ip_network(pool.spec.cidr).prefixlen:
            summary = f"{pool} ({pool.spec.cidr}) lies in route {route.destination} on {route.link or '?'}"
        yield Finding("pool routes", Level.FAIL, summary, meaning, command)
    if not clashes:
        yield Finding("pool routes", Level.OK, "no other route of this host meets a pool")


def _is_foreign(route: Route) -> bool:
    ours = route.protocol in (ROUTE_PROTOCOL, BIRD_ROUTE_PROTOCOL) or route.link.startswith(INTERFACE_PREFIX)
    return not ours and not route.link.endswith((".calico", ".cali")) and route.link not in ("tunl0", "lo")


def _meet(pool: IPPool, route: Route) -> bool:
    """Whether they overlap. A wider route around a pool is harmless: blocks are longer."""
    try:
        network = ip_network(pool.spec.cidr)
    except ValueError:
        return False
    same = network.version == route.destination.version
    return same and route.destination.prefixlen >= network.prefixlen and network.overlaps(route.destination)


def leaks(context: Context) -> Iterable[Finding]:
    """Addresses that nobody uses, or that two use."""
    found = context.audit
    old = [one for one in found.leaked if not _is_young(one, context.now)]
    if old:
        shown = ", ".join(f"{one.address} (of {one.node or '?'})" for one in old[:_SHOWN])
        meaning = "They are lost until they are released; a pool may run out of addresses."
        command = (
            "calicoctl datastore migrate lock; calicoctl ipam check -o report; calicoctl ipam release "
            "--from-report=report; calicoctl datastore migrate unlock"
        )
        more = f" and {len(old) - _SHOWN} more" if len(old) > _SHOWN else ""
        yield Finding("addresses", Level.WARN, f"leaked: {shown}{more}", meaning, command)
    for uses in found.double[:_SHOWN]:
        owners = " and ".join(use.owner for use in uses)
        summary, meaning = f"{uses[0].address} is used by {owners}", "Packets reach one of them only."
        yield Finding("addresses", Level.FAIL, summary, meaning, "remove one of the containers")
    for use in found.unallocated[:_SHOWN]:
        meaning = "It may be given to another container as well."
        summary = f"{use.address} is used by {use.owner} and not allocated"
        yield Finding("addresses", Level.WARN, summary, meaning, "remove that container and start it again")
    for cidr, wrong in found.invalid_blocks[:_SHOWN]:
        summary = f"block {cidr}: {'; '.join(wrong)}"
        yield Finding("addresses", Level.FAIL, summary, "Its addresses cannot be trusted.", "calicoctl ipam check")
    if not (old or found.double or found.unallocated or found.invalid_blocks):
        yield Finding("addresses", Level.OK, f"{len(found.allocations)} addresses are given, none is leaked")


def _is_young(one: Allocated, now: float) -> bool:
    given = one.attributes.get("timestamp", "")
    try:
        at = datetime.fromisoformat(given.replace("Z", "+00:00"))
    except ValueError:
        return False
    return now - (at if at.tzinfo else at.replace(tzinfo=timezone.utc)).timestamp() < YOUNG_SECONDS


def workloads(context: Context) -> Iterable[Finding]:
    """Each endpoint of this host has its link and its routes."""
    links = {link.name for link in context.links}
    reached = {route.destination: route.link for route in context.routes}
    broken = 0
    for endpoint in context.local_endpoints:
        spec = endpoint.spec
        if spec.interface_name not in links:
            broken += 1
            meaning = (
                "Its container is gone or has no network; the agent removes it when Docker does not know it either."
            )
            summary = f"{endpoint}: there is no link {spec.interface_name}"
            command = f"calicoctl ipam show --ip={_first(spec.ip_networks)}"
            yield Finding("endpoints", Level.WARN, summary, meaning, command)
            continue
        for network in spec.ip_networks:
            if reached.get(ip_network(network)) != spec.interface_name:
                broken += 1
                meaning = "Its container cannot be reached."
                command = f"calico-agent puts it back within seconds when it runs: {context.start}"
                summary = f"{endpoint}: there is no route {network} dev {spec.interface_name}"
                yield Finding("endpoints", Level.FAIL, summary, meaning, command)
    if not broken:
        yield Finding("endpoints", Level.OK, f"{len(context.local_endpoints)} endpoints on this host, all connected")


def _first(networks: tuple[str, ...]) -> str:
    return networks[0].partition("/")[0] if networks else "ADDRESS"
