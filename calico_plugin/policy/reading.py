"""Stored resources -> what the engine works with; what cannot be understood becomes a stand-in that opens nothing.

* a workload endpoint: absent, so its interface is unknown and carries nothing;
* a host endpoint: governs its interface without what is not understood; absent only if that is the interface;
* a network set: its valid members only;
* a profile: denies everything, like a missing one; one bad rule: see `rules.understand`;
* a policy whose selector is not understood: selects everything in its scope and denies;
* a policy whose stored value does not parse at all: the same, before every tier.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Mapping, Sequence

from calico_plugin.errors import InvalidInput
from calico_plugin.model import names
from calico_plugin.model.codec import Invalid
from calico_plugin.model.keys import ResourceKey
from calico_plugin.model.published import Published, published
from calico_plugin.model.resources import HostEndpoint, Profile, Tier, WorkloadEndpoint
from calico_plugin.model.resources.endpoint import EndpointPort, WorkloadEndpointPort
from calico_plugin.model.resources.policy import (
    GlobalNetworkPolicy,
    GlobalNetworkSet,
    NetworkPolicy,
    NetworkSet,
    PolicySpec,
    Rule,
)
from calico_plugin.policy import rules, selector
from calico_plugin.policy.members import Contribution, contribution, read_network
from calico_plugin.policy.rules import Context, Parsed
from calico_plugin.policy.selector import Labels, Node

DEFAULT_TIER = "default"
DEFAULT_ALLOW = "projectcalico-default-allow"
DIRECTIONS = ("ingress", "egress")
PLAIN, UNTRACKED, BEFORE_NAT = "plain", "untracked", "before translation"
"""Flavours of a policy (policy 2.7); the last two only mean something on host endpoints."""

_INTERFACE = re.compile(r"[A-Za-z0-9_.:-]{1,15}")
_PORT_PROTOCOLS = {"TCP": 6, "UDP": 17, "SCTP": 132}
_RESERVED = ("pcns.", "pcsa.")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A workload endpoint that is understood. `rank` decides when two claim one interface: the smallest wins."""

    key: ResourceKey
    node: str
    interface: str
    labels: Labels
    profiles: tuple[str, ...]
    brings: Contribution
    spoof: tuple[str, ...]
    rank: tuple[str, str, str]
    published: tuple[Published, ...] = ()


@dataclass(frozen=True, slots=True)
class Item:
    """Any object that selectors can match: its own labels, whom it inherits from, its addresses and ports."""

    labels: Labels
    parents: tuple[str, ...]
    brings: Contribution


@dataclass(frozen=True, slots=True)
class PolicyInfo:
    """An enforced policy. `order` is +inf when absent. `broken`: stands before every tier (see the module's text)."""

    key: ResourceKey
    tier: str
    order: float
    selector: Node
    rules: Mapping[str, tuple[Parsed, ...]]
    types: tuple[str, ...]
    flavour: str = PLAIN
    on_forward: bool = False
    broken: bool = False

    @property
    def sort_key(self) -> tuple[float, bytes]:
        """Ties by bytes of `name/namespace/kind` (policy 2.3)."""
        return self.order, f"{self.key.name}/{self.key.namespace}/{self.key.kind}".encode()

    @property
    def place(self) -> tuple[object, ...]:
        """Whatever decides where the policy stands in a list."""
        return self.sort_key, self.tier, self.types, self.flavour, self.on_forward, self.broken

    @property
    def origin(self) -> str:
        return f"{self.tier}|{self.key.kind}|{_path(self.key)}"


@dataclass(frozen=True, slots=True)
class TierInfo:
    """`order` is +inf when absent."""

    name: str
    order: float
    default_pass: bool
    broken: bool = False


BUILT_IN_TIERS = {
    tier.name: tier
    for tier in (
        TierInfo("kube-admin", 1_000, True),
        TierInfo(DEFAULT_TIER, 1_000_000, False),
        TierInfo("kube-baseline", 10_000_000, True),
    )
}


@dataclass(frozen=True, slots=True)
class ProfileInfo:
    name: str
    labels: Labels
    rules: Mapping[str, tuple[Parsed, ...]] = field(default_factory=dict)


def default_allow() -> ProfileInfo:
    """The built-in profile that always exists (policy 2.1)."""
    allow = (Parsed("Allow", origin=f"Profile|{DEFAULT_ALLOW}|rule 0"),)
    return ProfileInfo(DEFAULT_ALLOW, {}, {direction: allow for direction in DIRECTIONS})


def missing_profile(name: str) -> ProfileInfo:
    """A name that does not resolve acts as deny-all both ways."""
    deny = (Parsed("Deny", origin=f"Profile|{name}|rule 0"),)
    return ProfileInfo(name, {}, {direction: deny for direction in DIRECTIONS})


def _path(key: ResourceKey) -> str:
    return f"{key.namespace}/{key.name}" if key.namespace else key.name


def read_endpoint(key: ResourceKey, resource: WorkloadEndpoint, prefix: str, spoofing: bool) -> Endpoint:
    """Raises InvalidInput: the endpoint then counts as absent (policy 3, V30, V32, V34)."""
    spec = resource.spec
    if not _INTERFACE.fullmatch(spec.interface_name) or not spec.interface_name.startswith(prefix):
        hint = f"must start with {prefix!r}, at most 15 characters"
        raise InvalidInput("spec.interfaceName", spec.interface_name, hint)
    if not spec.ip_networks:
        raise InvalidInput("spec.ipNetworks", [], "an endpoint needs an address")
    if spec.allow_spoofed_source_prefixes and not spoofing:
        raise InvalidInput("spec.allowSpoofedSourcePrefixes", None, "source spoofing is disabled on this host")
    rules.networks(spec.allow_spoofed_source_prefixes, "spec.allowSpoofedSourcePrefixes")
    brings = _brings(spec.ip_networks, _ports(spec.ports))
    if any("/" in text for texts in brings.members.values() for text in texts):
        raise InvalidInput("spec.ipNetworks", list(spec.ip_networks), "one address each: /32 or /128")
    node = spec.node or (names.split_workload_endpoint(key.name) or ("",))[0]
    rank = (spec.orchestrator, f"{key.namespace}/{spec.workload}", spec.endpoint or key.name)
    labels = _workload_labels(key, resource)
    return Endpoint(
        key, node, spec.interface_name, labels, spec.profiles, brings, spec.allow_spoofed_source_prefixes, rank,
        published(spec))


def _brings(
    cidrs: tuple[str, ...], ports: tuple[tuple[str, int, int], ...], where: str = "spec.ipNetworks"
) -> Contribution:
    try:
        return contribution(cidrs, ports)
    except ValueError as error:
        raise InvalidInput(where, list(cidrs), str(error)) from error


def _ports(ports: Sequence[WorkloadEndpointPort | EndpointPort]) -> tuple[tuple[str, int, int], ...]:
    found = []
    for index, port in enumerate(ports):
        protocol = _PORT_PROTOCOLS.get(port.protocol) if isinstance(port.protocol, str) else None
        if protocol is None:
            raise InvalidInput(f"spec.ports[{index}].protocol", port.protocol, "use TCP, UDP or SCTP")
        if not 0 < port.port < 65536:
            raise InvalidInput(f"spec.ports[{index}].port", port.port, "a port is 1 to 65535")
        found.append((port.name, protocol, port.port))
    return tuple(found)


def _workload_labels(key: ResourceKey, resource: WorkloadEndpoint) -> Labels:
    """A workload cannot pretend to be in another namespace (policy 1.6)."""
    labels = {name: value for name, value in resource.labels.items() if not name.startswith(_RESERVED)}
    labels[names.LABEL_NAMESPACE] = key.namespace
    labels[names.LABEL_ORCHESTRATOR] = resource.spec.orchestrator
    if resource.spec.service_account_name:
        labels["projectcalico.org/serviceaccount"] = resource.spec.service_account_name
    return labels


@dataclass(frozen=True, slots=True)
class Host:
    """A host endpoint, understood. `interface`: a name, `*` for all, or empty: the one with an expected address."""

    key: ResourceKey
    node: str
    interface: str
    item: Item
    expected: frozenset[str]


def read_host_endpoint(key: ResourceKey, resource: HostEndpoint) -> tuple[Host, str]:
    """Raises InvalidInput when it cannot be told what it governs (V29). Addresses and ports that are not understood are
    left out, with the reason: without the endpoint its interface would be open.
    """
    spec = resource.spec
    if not spec.interface_name and not spec.expected_ips:
        raise InvalidInput("spec.interfaceName", "", "give interfaceName or expectedIPs")
    if spec.interface_name not in ("", "*") and not _INTERFACE.fullmatch(spec.interface_name):
        raise InvalidInput("spec.interfaceName", spec.interface_name, "use at most 15 characters A-Z a-z 0-9 _ . : -")
    labels = {name: value for name, value in resource.labels.items() if name != names.LABEL_NAMESPACE}
    why = ""
    try:
        brings = _brings(spec.expected_ips, _ports(spec.ports), "spec.expectedIPs")
    except InvalidInput as error:
        if not spec.interface_name:
            raise
        brings, why = contribution(()), str(error)
    expected = frozenset(text for texts in brings.members.values() for text in texts)
    return Host(key, spec.node, spec.interface_name, Item(labels, spec.profiles, brings), expected), why


def read_network_set(key: ResourceKey, resource: GlobalNetworkSet | NetworkSet) -> tuple[Item, str]:
    """The item with the members that are understood, and what is wrong with the others."""
    good, bad = [], []
    for cidr in resource.spec.nets:
        try:
            read_network(cidr)
            good.append(cidr)
        except ValueError:
            bad.append(cidr)
    labels = dict(resource.labels)
    labels.pop(names.LABEL_NAMESPACE, None)
    if key.namespace:
        labels[names.LABEL_NAMESPACE] = key.namespace
    parents = (f"kns.{key.namespace}",) if key.namespace else ()
    why = f"spec.nets: {', '.join(map(repr, bad))}: no CIDR, left out" if bad else ""
    return Item(labels, parents, contribution(good)), why


def read_tier(key: ResourceKey, resource: Tier | Invalid) -> tuple[TierInfo, str]:
    if isinstance(resource, Invalid):
        return TierInfo(key.name, -math.inf, False, broken=True), resource.why
    action = resource.spec.default_action or "Deny"
    order = _order(resource.spec.order)
    why = "" if action in ("Deny", "Pass") else f"spec.defaultAction = {action!r}: use Deny or Pass; Deny is taken"
    return TierInfo(key.name, order, action == "Pass"), why


def _order(order: float | None) -> float:
    return math.inf if order is None or math.isnan(order) else float(order)


def read_profile(key: ResourceKey, resource: Profile | Invalid) -> tuple[ProfileInfo, str]:
    if isinstance(resource, Invalid):
        return missing_profile(key.name), resource.why
    found, why = {}, []
    for direction in DIRECTIONS:
        written: tuple[Rule, ...] = getattr(resource.spec, direction)
        found[direction], problems = _rules(written, direction, f"Profile|{key.name}", "")
        why.extend(problems)
    return ProfileInfo(key.name, resource.spec.labels_to_apply, found), "; ".join(why)


def _rules(
    written: tuple[Rule, ...], direction: str, origin: str, namespace: str
) -> tuple[tuple[Parsed, ...], list[str]]:
    found, problems = [], []
    for index, rule in enumerate(written):
        context = Context(f"spec.{direction}[{index}]", namespace, f"{origin}|rule {index}")
        parsed, why = rules.understand(rule, context)
        if parsed is not None:
            found.append(parsed)
        if why:
            problems.append(why)
    return tuple(found), problems


def read_policy(key: ResourceKey, resource: GlobalNetworkPolicy | NetworkPolicy | Invalid) -> tuple[PolicyInfo, str]:
    """Always something to enforce: see the module's text."""
    if isinstance(resource, Invalid):
        return _closed(key, PolicySpec(), ("Ingress", "Egress"), broken=True), resource.why
    types, type_problem = _types(resource.spec)
    try:
        node = policy_selector(resource.spec, key.namespace)
    except InvalidInput as error:
        return _closed(key, resource.spec, types), str(error)
    tier = resource.spec.tier or DEFAULT_TIER
    origin = f"{tier}|{key.kind}|{_path(key)}"
    problems = [type_problem] if type_problem else []
    found = {}
    for direction in DIRECTIONS:
        found[direction], more = _rules(getattr(resource.spec, direction), direction, origin, key.namespace)
        problems.extend(more)
    flavour, on_forward = _flavour(resource.spec), resource.spec.apply_on_forward
    info = PolicyInfo(key, tier, _order(resource.spec.order), node, found, types, flavour, on_forward)
    return info, "; ".join(problems)


def _flavour(spec: PolicySpec) -> str:
    return UNTRACKED if spec.do_not_track else BEFORE_NAT if spec.pre_dnat else PLAIN


def _closed(key: ResourceKey, spec: PolicySpec, types: tuple[str, ...], broken: bool = False) -> PolicyInfo:
    """Everything in the policy's scope, denied in the policy's own place."""
    scope = selector.Compare(names.LABEL_NAMESPACE, "==", key.namespace) if key.namespace else selector.ALL
    tier = spec.tier or DEFAULT_TIER
    deny = (Parsed("Deny", origin=f"{tier}|{key.kind}|{_path(key)}|not understood"),)
    return PolicyInfo(
        key, tier, _order(spec.order), scope, {direction: deny for direction in DIRECTIONS}, types,
        _flavour(spec), spec.apply_on_forward, broken,
    )


def _types(spec: PolicySpec) -> tuple[tuple[str, ...], str]:
    """Defaulted on read as the API does on write (policy 2.2). Unknown words govern both directions."""
    if not spec.types:
        if spec.egress and not spec.ingress:
            return ("Egress",), ""
        return (("Ingress", "Egress") if spec.egress else ("Ingress",)), ""
    unknown = [word for word in spec.types if word not in ("Ingress", "Egress")]
    if unknown:
        return ("Ingress", "Egress"), f"spec.types = {unknown!r}: use Ingress, Egress; both are taken"
    return tuple(dict.fromkeys(spec.types)), ""


def policy_selector(spec: PolicySpec, namespace: str) -> Node:
    """What a policy selects (policy 1.6). Raises InvalidInput."""
    own = rules.parse(spec.selector, "spec.selector")
    accounts = rules.service_account_selector(rules.parse(spec.service_account_selector, "spec.serviceAccountSelector"))
    if namespace:
        scope: Node | None = selector.Compare(names.LABEL_NAMESPACE, "==", namespace)
    else:
        scope = rules.namespace_selector(rules.parse(spec.namespace_selector, "spec.namespaceSelector"))
    return selector.conjunction(own, scope, accounts)
