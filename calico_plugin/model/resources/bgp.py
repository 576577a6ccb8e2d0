"""BGPPeer, BGPConfiguration and BGPFilter (datamodel 2.7, node-and-cli 2)."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import field

from calico_plugin.model.resources.meta import ASNumber, Duration, Form, Resource, Value

LogSeverity = Annotated[str, Form("text", ("Debug", "Info", "Warning", "Error", "Fatal"), fold=True)]
SourceAddress = Annotated[str, Form("text", ("UseNodeIP", "None"))]
NextHopMode = Annotated[str, Form("text", ("Auto", "Self", "Keep"))]
Switch = Annotated[str, Form("text", ("Enabled", "Disabled"))]
BindMode = Annotated[str, Form("text", ("None", "NodeIP"))]
Unsigned16 = Annotated[int, Form("integer", low=0, high=65535)]
Unsigned8 = Annotated[int, Form("integer", low=0, high=255)]
FilterAction = Annotated[str, Form("text", ("Accept", "Reject"))]
MatchOperator = Annotated[str, Form("text", ("Equal", "NotEqual", "In", "NotIn"))]
RouteSource = Annotated[str, Form("text", ("RemotePeers",))]
PeerType = Annotated[str, Form("text", ("eBGP", "iBGP"))]


class SecretKeyRef(Value, frozen=True, kw_only=True):
    name: str = ""
    key: str = field(default_factory=str)
    optional: bool | None = None


class BGPPassword(Value, frozen=True, kw_only=True):
    secret_key_ref: SecretKeyRef | None = None


class BGPPeerSpec(Value, frozen=True, kw_only=True):
    node: str = ""
    node_selector: str = ""
    peer_ip: str = field(name="peerIP", default="")
    as_number: ASNumber | None = None
    local_as_number: ASNumber | None = field(name="localASNumber", default=None)
    peer_selector: str = ""
    keep_original_next_hop: bool = False
    next_hop_mode: NextHopMode | None = None
    password: BGPPassword | None = None
    source_address: SourceAddress = ""
    max_restart_time: Duration | None = None
    keepalive_time: Duration | None = None
    num_allowed_local_as_numbers: int | None = field(name="numAllowedLocalASNumbers", default=None)
    ttl_security: Unsigned8 | None = None
    reachable_by: str = ""
    filters: tuple[str, ...] = ()
    local_workload_selector: str = ""
    reverse_peering: str | None = None


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
    log_severity_screen: LogSeverity = ""
    node_to_node_mesh_enabled: bool | None = None
    as_number: ASNumber | None = None
    service_load_balancer_ips: tuple[CIDRItem, ...] = field(name="serviceLoadBalancerIPs", default=())
    service_external_ips: tuple[CIDRItem, ...] = field(name="serviceExternalIPs", default=())
    service_cluster_ips: tuple[CIDRItem, ...] = field(name="serviceClusterIPs", default=())
    service_load_balancer_aggregation: Switch | None = None
    communities: tuple[Community, ...] = ()
    prefix_advertisements: tuple[PrefixAdvertisement, ...] = ()
    listen_port: Unsigned16 = 0
    node_mesh_password: BGPPassword | None = None
    node_mesh_max_restart_time: Duration | None = None
    bind_mode: BindMode | None = None
    ignored_interfaces: tuple[str, ...] = ()
    local_workload_peering_ipv4: str = field(name="localWorkloadPeeringIPV4", default="")
    local_workload_peering_ipv6: str = field(name="localWorkloadPeeringIPV6", default="")


class BGPConfiguration(Resource, frozen=True, kw_only=True):
    kind: str = "BGPConfiguration"
    spec: BGPConfigurationSpec = BGPConfigurationSpec()


class PrefixLength(Value, frozen=True, kw_only=True):
    min: int | None = None
    max: int | None = None


class CommunityMatch(Value, frozen=True, kw_only=True):
    values: tuple[str, ...] = ()


class BGPFilterRule(Value, frozen=True, kw_only=True):
    cidr: str = ""
    prefix_length: PrefixLength | None = None
    source: RouteSource = ""
    interface: str = ""
    match_operator: MatchOperator = ""
    peer_type: PeerType = ""
    communities: CommunityMatch | None = None
    as_path_prefix: tuple[ASNumber, ...] = ()
    priority: int | None = None
    action: FilterAction = ""
    operations: tuple[dict[str, Any], ...] = ()


class BGPFilterSpec(Value, frozen=True, kw_only=True):
    export_v4: tuple[BGPFilterRule, ...] = field(name="exportV4", default=())
    import_v4: tuple[BGPFilterRule, ...] = field(name="importV4", default=())
    export_v6: tuple[BGPFilterRule, ...] = field(name="exportV6", default=())
    import_v6: tuple[BGPFilterRule, ...] = field(name="importV6", default=())


class BGPFilter(Resource, frozen=True, kw_only=True):
    kind: str = "BGPFilter"
    spec: BGPFilterSpec = BGPFilterSpec()
