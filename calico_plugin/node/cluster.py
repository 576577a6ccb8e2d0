"""What a cluster's datastore must hold before anything works: written when absent, never changed behind a user's back.

Each write is create-or-ignore-exists: several nodes start at the same time, and one of them wins (datamodel 5.2 - 5.5).
"""

from __future__ import annotations

import secrets
from ipaddress import IPv4Network, IPv6Network, ip_interface, ip_network
from pathlib import Path
from typing import Any, Iterable

from msgspec.structs import replace

from calico_plugin.config import DEFAULT_POOL4, NONE, NodeSettings, PoolSettings
from calico_plugin.datastore.store import Store
from calico_plugin.deadline import Deadline
from calico_plugin.errors import AlreadyExists, Conflict, NotFound
from calico_plugin.model.resources import (
    BGPConfiguration,
    ClusterInformation,
    FelixConfiguration,
    IPPool,
    Metadata,
    Resource,
    Tier,
)
from calico_plugin.model.resources.cluster import ClusterInformationSpec
from calico_plugin.model.resources.ipam import IPPoolSpec
from calico_plugin.model.resources.policy import TierSpec
from calico_plugin.node.interfaces import Interface

POOL_NAMES = {4: "default-ipv4-ippool", 6: "default-ipv6-ippool"}
DEFAULT_TIER_ORDER = 1000000
_TRIES = 5
_OWN_CLUSTER_TYPE = ("docker", "bgp")


def create_missing(store: Store, resource: Resource, deadline: Deadline) -> bool:
    """Create unless it exists; whether it was created."""
    try:
        store.resources(type(resource)).create(resource, deadline)
    except AlreadyExists:
        return False
    return True


def ensure_cluster_information(store: Store, settings: NodeSettings, deadline: Deadline) -> None:
    """An id, `datastoreReady` unless somebody locked the datastore, and our words in the cluster's type.

    `calicoVersion` stays empty: the original calicoctl refuses to work with a version that is not its own.
    """
    infos = store.resources(ClusterInformation)
    for _ in range(_TRIES):
        stored = infos.find("default", deadline)
        old = stored.value.spec if stored else ClusterInformationSpec()
        words = [word for word in old.cluster_type.split(",") if word]
        own = _OWN_CLUSTER_TYPE if settings.backend == "bird" else _OWN_CLUSTER_TYPE[:1]
        spec = replace(
            old,
            cluster_guid=old.cluster_guid or secrets.token_hex(16),
            cluster_type=",".join(dict.fromkeys([*words, *settings.cluster_type, *own])),
            datastore_ready=True if old.datastore_ready is None else old.datastore_ready,
        )
        try:
            if stored is None:
                infos.create(ClusterInformation(metadata=Metadata(name="default"), spec=spec), deadline)
            elif spec != old:
                infos.update(stored, replace(stored.value, spec=spec), deadline)
            return
        except (AlreadyExists, Conflict, NotFound):
            continue  # another node was faster: merge into what it wrote


def ensure_tiers(store: Store, deadline: Deadline) -> None:
    """The tier that every policy without a tier belongs to."""
    spec = TierSpec(order=DEFAULT_TIER_ORDER, default_action="Deny")
    create_missing(store, Tier(metadata=Metadata(name="default"), spec=spec), deadline)


def ensure_defaults(store: Store, node_name: str, deadline: Deadline) -> None:
    """Felix's and BGP's default configurations, and the node's own."""
    everywhere: dict[str, Any] = {"reportingInterval": "0s", "logSeverityScreen": "Info", "floatingIPs": "Disabled"}
    here: dict[str, Any] = {"defaultEndpointToHostAction": "Return", "floatingIPs": "Disabled"}
    for resource in (
        FelixConfiguration(metadata=Metadata(name="default"), spec=everywhere),
        FelixConfiguration(metadata=Metadata(name=f"node.{node_name}"), spec=here),
        BGPConfiguration(metadata=Metadata(name="default")),
    ):
        create_missing(store, resource, deadline)


def ensure_pools(
    store: Store, settings: NodeSettings, interfaces: Iterable[Interface], deadline: Deadline
) -> tuple[str, ...]:
    """A default pool for each IP version that has none at all, disabled ones counted; a log line for each one made."""
    if not settings.default_pools:
        return ()
    present = {pool.value.spec.version for pool in store.resources(IPPool).list(deadline).items}
    made = []
    for wanted in settings.pools:
        if wanted.version in present or wanted.cidr == NONE or not _usable(wanted, settings):
            continue
        pool = default_pool(wanted, interfaces)
        if create_missing(store, pool, deadline):
            nat = "true" if pool.spec.nat_outgoing else "false"
            mode = f"IPIP mode: {pool.spec.ipip_mode}, VXLAN mode: {pool.spec.vxlan_mode}"
            made.append(f"Created default IPv{wanted.version} pool ({pool.spec.cidr}) with NAT outgoing {nat}. {mode}")
    return tuple(made)


def _usable(wanted: PoolSettings, settings: NodeSettings) -> bool:
    return wanted.version == 4 or (settings.ipv6_support and Path("/proc/sys/net/ipv6").exists())


def default_pool(wanted: PoolSettings, interfaces: Iterable[Interface]) -> IPPool:
    """The pool of one IP version as the settings want it."""
    cidr = wanted.cidr or (_free_pool4(interfaces) if wanted.version == 4 else _random_ula())
    spec = IPPoolSpec(
        cidr=cidr,
        vxlan_mode=wanted.vxlan_mode,
        ipip_mode=wanted.ipip_mode,
        nat_outgoing=wanted.nat_outgoing,
        disable_bgp_export=wanted.disable_bgp_export,
        block_size=wanted.block_size,
        node_selector=wanted.node_selector,
        allowed_uses=("Workload", "Tunnel"),
        assignment_mode="Automatic",
    )
    return IPPool(metadata=Metadata(name=POOL_NAMES[wanted.version]), spec=spec)


def _free_pool4(interfaces: Iterable[Interface]) -> str:
    """The usual pool, unless this host has an address in it and one of the next ones is free."""
    mine = [ip_interface(address).ip for link in interfaces for address in link.addresses]
    for cidr in (DEFAULT_POOL4, *(f"172.{number}.0.0/16" for number in range(16, 32))):
        network: IPv4Network | IPv6Network = ip_network(cidr)
        if not any(address in network for address in mine):
            return cidr
    return DEFAULT_POOL4


def _random_ula() -> str:
    """RFC 4193: `fd` and 40 random bits."""
    bits = secrets.token_bytes(5)
    return str(IPv6Network((b"\xfd" + bits + bytes(10), 48)))
