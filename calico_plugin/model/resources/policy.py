"""Rules, profiles, policies, tiers and network sets (datamodel 2.6, policy 2)."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import UNSET, UnsetType, field

from calico_plugin.model.resources.meta import Form, Port, Protocol, Resource, Value

Action = Annotated[str, Form("text", ("Allow", "Deny", "Log", "Pass"))]
Direction = Annotated[str, Form("text", ("Ingress", "Egress"))]
StagedAction = Annotated[str, Form("text", ("Set", "Delete", "Learn", "Ignore"))]
TierAction = Annotated[str, Form("text", ("Deny", "Pass"))]
IPVersion = Annotated[int, Form("integer", ("4", "6"))]
Hint = Annotated[str, Form("text", ("AssumeNeededOnEveryNode",))]


class ICMPFields(Value, frozen=True, kw_only=True):
    type: int | None = None
    code: int | None = None


class ServiceAccountMatch(Value, frozen=True, kw_only=True):
    names: tuple[str, ...] = ()
    selector: str = ""


class ServiceMatch(Value, frozen=True, kw_only=True):
    name: str = ""
    namespace: str = ""


class HTTPPath(Value, frozen=True, kw_only=True):
    exact: str = ""
    prefix: str = ""


class HTTPMatch(Value, frozen=True, kw_only=True):
    methods: tuple[str, ...] = ()
    paths: tuple[HTTPPath, ...] = ()


class EntityRule(Value, frozen=True, kw_only=True):
    """One end of a flow; all stated criteria must hold, entries of one list are alternatives."""

    nets: tuple[str, ...] = ()
    selector: str = ""
    namespace_selector: str = ""
    services: ServiceMatch | None = None
    ports: tuple[Port, ...] = ()
    not_nets: tuple[str, ...] = ()
    not_selector: str = ""
    not_ports: tuple[Port, ...] = ()
    service_accounts: ServiceAccountMatch | None = None


class RuleMetadata(Value, frozen=True, kw_only=True):
    annotations: dict[str, str] = {}


class Rule(Value, frozen=True, kw_only=True):
    action: Action = ""
    ip_version: IPVersion | None = field(name="ipVersion", default=None)
    protocol: Protocol | None = None
    icmp: ICMPFields | None = None
    not_protocol: Protocol | None = None
    not_icmp: ICMPFields | None = field(name="notICMP", default=None)
    source: EntityRule = EntityRule()
    destination: EntityRule = EntityRule()
    http: HTTPMatch | None = None
    metadata: RuleMetadata | None = None


class ProfileSpec(Value, frozen=True, kw_only=True):
    ingress: tuple[Rule, ...] = ()
    egress: tuple[Rule, ...] = ()
    labels_to_apply: dict[str, str] = {}


class Profile(Resource, frozen=True, kw_only=True):
    kind: str = "Profile"
    spec: ProfileSpec = ProfileSpec()


class TierSpec(Value, frozen=True, kw_only=True):
    order: int | float | None = None
    default_action: TierAction | None = None


class Tier(Resource, frozen=True, kw_only=True):
    kind: str = "Tier"
    spec: TierSpec = TierSpec()
    status: dict[str, Any] = {}


class PolicySpec(Value, frozen=True, kw_only=True):
    """What all policies share; the order of members is that of GlobalNetworkPolicy."""

    staged_action: StagedAction | None = None
    tier: str = ""
    order: int | float | None = None
    ingress: tuple[Rule, ...] = ()
    egress: tuple[Rule, ...] = ()
    selector: str = ""
    types: tuple[Direction, ...] = ()
    do_not_track: bool = False
    pre_dnat: bool = field(name="preDNAT", default=False)
    apply_on_forward: bool = False
    service_account_selector: str = ""
    namespace_selector: str = ""
    performance_hints: tuple[Hint, ...] = ()


class GlobalNetworkPolicy(Resource, frozen=True, kw_only=True):
    kind: str = "GlobalNetworkPolicy"
    spec: PolicySpec = PolicySpec()
    status: dict[str, Any] | UnsetType = UNSET


class NetworkPolicy(Resource, frozen=True, kw_only=True):
    kind: str = "NetworkPolicy"
    spec: PolicySpec = PolicySpec()
    status: dict[str, Any] | UnsetType = UNSET


class StagedGlobalNetworkPolicy(Resource, frozen=True, kw_only=True):
    kind: str = "StagedGlobalNetworkPolicy"
    spec: PolicySpec = PolicySpec()


class StagedNetworkPolicy(Resource, frozen=True, kw_only=True):
    kind: str = "StagedNetworkPolicy"
    spec: PolicySpec = PolicySpec()


class StagedKubernetesNetworkPolicy(Resource, frozen=True, kw_only=True):
    """Recorded only: nothing on Docker hosts gives it a meaning."""

    kind: str = "StagedKubernetesNetworkPolicy"
    spec: dict[str, Any] = {}


class NetworkSetSpec(Value, frozen=True, kw_only=True):
    nets: tuple[str, ...] = ()


class GlobalNetworkSet(Resource, frozen=True, kw_only=True):
    kind: str = "GlobalNetworkSet"
    spec: NetworkSetSpec = NetworkSetSpec()


class NetworkSet(Resource, frozen=True, kw_only=True):
    kind: str = "NetworkSet"
    spec: NetworkSetSpec = NetworkSetSpec()
