"""The form of v1 objects (datamodel 6.1): identity in the metadata, which differs with the kind, the rest in the spec.
"""

from __future__ import annotations

from typing import Annotated, Type

import msgspec
from msgspec import field

from calico_plugin.model.resources.meta import ASNumber, Form, Port, Value
from calico_plugin.model.resources.node import OrchRef
from calico_plugin.model.resources.policy import ICMPFields, IPVersion

API_VERSION = "v1"
PROTOCOL_NAMES = ("tcp", "udp", "icmp", "icmpv6", "sctp", "udplite")

Action = Annotated[str, Form("text", ("allow", "deny", "log", "pass"))]
Direction = Annotated[str, Form("text", ("ingress", "egress"))]
Scope = Annotated[str, Form("text", ("global", "node"))]
Encapsulation = Annotated[str, Form("text", ("always", "cross-subnet"))]
Protocol = str
"""Digits, or a name of PROTOCOL_NAMES in lower case; `rules.protocol` looks at it."""


class Entity(Value, frozen=True, kw_only=True):
    tag: str = ""
    net: str = ""
    nets: tuple[str, ...] = ()
    selector: str = ""
    ports: tuple[Port, ...] = ()
    not_tag: str = ""
    not_net: str = ""
    not_nets: tuple[str, ...] = ()
    not_selector: str = ""
    not_ports: tuple[Port, ...] = ()


class Rule(Value, frozen=True, kw_only=True):
    action: Action = ""
    ip_version: IPVersion | None = field(name="ipVersion", default=None)
    protocol: Protocol | None = None
    icmp: ICMPFields | None = None
    not_protocol: Protocol | None = None
    not_icmp: ICMPFields | None = field(name="notICMP", default=None)
    source: Entity = Entity()
    destination: Entity = Entity()


class Port1(Value, frozen=True, kw_only=True):
    name: str = ""
    protocol: Protocol = ""
    port: int = 0


class PoolMetadata(Value, frozen=True, kw_only=True):
    cidr: str = ""


class IPIP(Value, frozen=True, kw_only=True):
    enabled: bool = False
    mode: Encapsulation = ""


class PoolSpec(Value, frozen=True, kw_only=True):
    ipip: IPIP | None = None
    nat_outgoing: bool = field(name="nat-outgoing", default=False)
    disabled: bool = False


class PolicyMetadata(Value, frozen=True, kw_only=True):
    name: str = ""
    annotations: dict[str, str] = {}
    tier: str = ""


class PolicySpec(Value, frozen=True, kw_only=True):
    order: int | float | None = None
    selector: str = ""
    types: tuple[Direction, ...] = ()
    ingress: tuple[Rule, ...] = ()
    egress: tuple[Rule, ...] = ()
    do_not_track: bool = False
    pre_dnat: bool = field(name="preDNAT", default=False)


class ProfileMetadata(Value, frozen=True, kw_only=True):
    name: str = ""
    tags: tuple[str, ...] = ()
    labels: dict[str, str] = {}


class ProfileSpec(Value, frozen=True, kw_only=True):
    ingress: tuple[Rule, ...] = ()
    egress: tuple[Rule, ...] = ()


class PeerMetadata(Value, frozen=True, kw_only=True):
    scope: Scope = ""
    node: str = ""
    peer_ip: str = field(name="peerIP", default="")


class PeerSpec(Value, frozen=True, kw_only=True):
    as_number: ASNumber | None = None


class NodeMetadata(Value, frozen=True, kw_only=True):
    name: str = ""


class NodeBGP(Value, frozen=True, kw_only=True):
    as_number: ASNumber | None = None
    ipv4_address: str = ""
    ipv6_address: str = ""


class NodeSpec(Value, frozen=True, kw_only=True):
    bgp: NodeBGP | None = None
    orch_refs: tuple[OrchRef, ...] = ()


class HostMetadata(Value, frozen=True, kw_only=True):
    name: str = ""
    node: str = ""
    labels: dict[str, str] = {}


class HostSpec(Value, frozen=True, kw_only=True):
    interface_name: str = ""
    expected_ips: tuple[str, ...] = field(name="expectedIPs", default=())
    profiles: tuple[str, ...] = ()
    ports: tuple[Port1, ...] = ()


class WorkloadMetadata(Value, frozen=True, kw_only=True):
    name: str = ""
    workload: str = ""
    orchestrator: str = ""
    node: str = ""
    active_instance_id: str = field(name="activeInstanceID", default="")
    labels: dict[str, str] = {}


class NAT(Value, frozen=True, kw_only=True):
    internal_ip: str = field(name="internalIP", default="")
    external_ip: str = field(name="externalIP", default="")


class WorkloadSpec(Value, frozen=True, kw_only=True):
    ip_networks: tuple[str, ...] = ()
    ip_nats: tuple[NAT, ...] = field(name="ipNATs", default=())
    ipv4_gateway: str = field(name="ipv4Gateway", default="")
    ipv6_gateway: str = field(name="ipv6Gateway", default="")
    profiles: tuple[str, ...] = ()
    interface_name: str = ""
    mac: str = ""
    ports: tuple[Port1, ...] = ()


class Object(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What all v1 objects share."""

    api_version: str = API_VERSION
    kind: str = ""


class Pool(Object, frozen=True, kw_only=True):
    metadata: PoolMetadata = PoolMetadata()
    spec: PoolSpec = PoolSpec()


class Policy(Object, frozen=True, kw_only=True):
    metadata: PolicyMetadata = PolicyMetadata()
    spec: PolicySpec = PolicySpec()


class Profile(Object, frozen=True, kw_only=True):
    metadata: ProfileMetadata = ProfileMetadata()
    spec: ProfileSpec = ProfileSpec()


class Peer(Object, frozen=True, kw_only=True):
    metadata: PeerMetadata = PeerMetadata()
    spec: PeerSpec = PeerSpec()


class Node(Object, frozen=True, kw_only=True):
    metadata: NodeMetadata = NodeMetadata()
    spec: NodeSpec = NodeSpec()


class Host(Object, frozen=True, kw_only=True):
    metadata: HostMetadata = HostMetadata()
    spec: HostSpec = HostSpec()


class Workload(Object, frozen=True, kw_only=True):
    metadata: WorkloadMetadata = WorkloadMetadata()
    spec: WorkloadSpec = WorkloadSpec()


KINDS: dict[str, Type[Object]] = {
    "ipPool": Pool,
    "policy": Policy,
    "profile": Profile,
    "bgpPeer": Peer,
    "node": Node,
    "hostEndpoint": Host,
    "workloadEndpoint": Workload,
}
"""Kind, spelled exactly so -> its type."""
