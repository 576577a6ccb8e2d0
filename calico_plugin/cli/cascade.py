"""What goes with a deleted object (datamodel 2.3, node-and-cli 4.3): a pool's blocks, and all that belongs to a node.

Each step is one that may have been done already, so that a deletion which broke off is finished by the next one.
"""

from __future__ import annotations

import time
from typing import Any, Callable, Iterable

from msgspec.structs import replace

from calico_plugin.cli.session import Session
from calico_plugin.errors import Conflict, NotFound
from calico_plugin.model import keys
from calico_plugin.model.resources import (
    BGPConfiguration,
    BGPPeer,
    FelixConfiguration,
    HostEndpoint,
    IPPool,
    Node,
    Resource,
    WorkloadEndpoint,
)

SETTLE_SECONDS = 0.5
"""How long hosts have to hear that a pool is disabled before its blocks are taken away."""


def delete(session: Session, resource: Resource) -> str:
    """Delete one object and what depends on it, and say what that was (nothing when it was alone).

    Raises NotFound, Conflict, InvalidInput, Unsupported.
    """
    given = resource.metadata.resource_version
    revision = int(given) if given.isdigit() else None
    before = _BEFORE.get(resource.kind)
    along = ""
    if before:
        _check_revision(session, resource, revision)
        along = before(session, resource.name)
        revision = None
    session.resources.delete(resource.kind, resource.name, session.deadline(), resource.namespace, revision)
    return along


def _check_revision(session: Session, resource: Resource, revision: int | None) -> None:
    """The steps before may change the object itself, so that a revision has to be compared first."""
    stored = session.resources.get(resource.kind, resource.name, session.deadline(), resource.namespace)
    if revision is not None and stored.revision != revision:
        hint = f"the manifest has revision {revision} and the datastore {stored.revision}; get it again"
        raise Conflict(str(resource), stored, hint)


def _pool(session: Session, name: str) -> str:
    """No more addresses are given from it, then all hosts let go of its blocks; addresses in use stay."""
    pools = session.store.resources(IPPool)
    stored = pools.get(name, session.deadline())
    if not stored.value.spec.disabled:
        disabled = replace(stored.value.spec, disabled=True)
        stored = pools.update(stored, replace(stored.value, spec=disabled), session.deadline())
        if not session.dry_run:
            time.sleep(SETTLE_SECONDS)
    session.allocator.release_pool_affinities(stored.value.spec.cidr, session.deadline())
    return ""


def _node(session: Session, name: str) -> str:
    node = session.store.resources(Node).get(name, session.deadline()).value
    endpoints = session.store.resources(WorkloadEndpoint).list(session.deadline()).items
    own = [stored.value for stored in endpoints if stored.value.spec.node == name]
    addresses = [*_tunnel_addresses(node), *(network for endpoint in own for network in endpoint.spec.ip_networks)]
    released = 0
    if addresses:
        given_back = session.allocator.release([address.partition("/")[0] for address in addresses], session.deadline())
        released = len(given_back.addresses)
    for endpoint in own:
        _gone(session, endpoint)
    session.allocator.remove_host(name, session.deadline())
    settings = list(_settings(session, name))
    for setting in settings:
        _gone(session, setting)
    felix = f"{keys.FELIX}v2/no-region/host/{name}/", f"{keys.FELIX}v1/host/{name}/"
    for prefix in (*felix, keys.names_of_node(name)):
        session.kv.delete_prefix(prefix, session.deadline())
    counts = ((len(own), "endpoints"), (released, "addresses"), (len(settings), "settings and peers"))
    return ", ".join(f"{count} {what}" for count, what in counts if count)


def _tunnel_addresses(node: Node) -> list[str]:
    spec = node.spec
    wireguard: dict[str, Any] = spec.wireguard or {}
    found = [
        spec.bgp.ipv4_ipip_tunnel_addr if spec.bgp else "",
        spec.ipv4_vxlan_tunnel_addr,
        spec.ipv6_vxlan_tunnel_addr,
        wireguard.get("interfaceIPv4Address", ""),
        wireguard.get("interfaceIPv6Address", ""),
    ]
    return [address for address in found if address]


def _settings(session: Session, name: str) -> Iterable[Resource]:
    """Peers, configurations and host endpoints that are for this node only."""
    store, deadline = session.store, session.deadline()
    yield from (peer.value for peer in store.resources(BGPPeer).list(deadline).items if peer.value.spec.node == name)
    yield from (
        host.value for host in store.resources(HostEndpoint).list(deadline).items if host.value.spec.node == name
    )
    for kind in (FelixConfiguration, BGPConfiguration):
        stored = store.resources(kind).find(f"node.{name}", deadline)
        if stored:
            yield stored.value


def _gone(session: Session, resource: Resource) -> None:
    try:
        session.store.resources(type(resource)).delete(resource.name, session.deadline(), resource.namespace)
    except NotFound:
        pass  # somebody else was faster


_BEFORE: dict[str, Callable[[Session, str], str]] = {"IPPool": _pool, "Node": _node}
