"""BGPPeer, BGPConfiguration and BGPFilter (datamodel 2.7, node-and-cli 2)."""

from __future__ import annotations

from typing import Any

from msgspec import field

from calico_plugin.model.resources.meta import Resource, Value


class BGPPeerSpec(Value, frozen=True, kw_only=True):
    node: str = ""
    peer_ip: str = field(name="peerIP", default="")
    as_number: int | str | None = None
    node_selector: str = ""
    peer_selector: str = ""
    keep_original_next_hop: bool = False
    password: dict[str, Any] | None = None
    source_address: str = ""
    max_restart_time: str | None = None
    keepalive_time: str | None = None
    num_allowed_local_as_numbers: int | None = field(name="numAllowedLocalASNumbers", default=None)
    ttl_security: int | None = None
    reachable_by: str = ""
    filters: tuple[str, ...] = ()
    local_as_number: int | str | None = field(name="localASNumber", default=None)
    local_workload_selector: str = ""
    reverse_peering: str | None = None
    next_hop_mode: str | None = None


class BGPPeer(Resource, frozen=True, kw_only=True):
    kind: str = "BGPPeer"
    spec: BGPPeerSpec = BGPPeerSpec()


class CIDRItem(Value, frozen=True, kw_only=True):
    cidr: str = ""


class Community(Value, frozen=True, kw_only=True):
    name: str = ""
    value: str = ""


class PrefixAdvertisement(Value, frozen=True, kw_only=True):
    cidr: str = ""
    communities: tuple[str, ...] = ()


class BGPConfigurationSpec(Value, frozen=True, kw_only=True):
    log_severity_screen: str = ""
    node_to_node_mesh_enabled: bool | None = None
    as_number: int | str | None = None
    service_load_balancer_aggregation: str | None = None
    service_load_balancer_ips: tuple[CIDRItem, ...] = field(name="serviceLoadBalancerIPs", default=())
    service_external_ips: tuple[CIDRItem, ...] = field(name="serviceExternalIPs", default=())
    service_cluster_ips: tuple[CIDRItem, ...] = field(name="serviceClusterIPs", default=())
    communities: tuple[Community, ...] = ()
    prefix_advertisements: tuple[PrefixAdvertisement, ...] = ()
    listen_port: int | None = None
    node_mesh_password: dict[str, Any] | None = None
    node_mesh_max_restart_time: str | None = None
    bind_mode: str | None = None
    ignored_interfaces: tuple[str, ...] = ()


class BGPConfiguration(Resource, frozen=True, kw_only=True):
    kind: str = "BGPConfiguration"
    spec: BGPConfigurationSpec = BGPConfigurationSpec()


class PrefixLength(Value, frozen=True, kw_only=True):
    min: int | None = None
    max: int | None = None


class BGPFilterRule(Value, frozen=True, kw_only=True):
    cidr: str = ""
    prefix_length: PrefixLength | None = None
    source: str = ""
    interface: str = ""
    match_operator: str = ""
    peer_type: str = ""
    action: str = ""


class BGPFilterSpec(Value, frozen=True, kw_only=True):
    export_v4: tuple[BGPFilterRule, ...] = field(name="exportV4", default=())
    import_v4: tuple[BGPFilterRule, ...] = field(name="importV4", default=())
    export_v6: tuple[BGPFilterRule, ...] = field(name="exportV6", default=())
    import_v6: tuple[BGPFilterRule, ...] = field(name="importV6", default=())


class BGPFilter(Resource, frozen=True, kw_only=True):
    kind: str = "BGPFilter"
    spec: BGPFilterSpec = BGPFilterSpec()
