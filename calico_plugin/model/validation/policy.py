"""Policies, tiers, profiles and network sets (policy 3, V1 to V28 and V35)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterator, Union

from calico_plugin.model.problem import Problem, member
from calico_plugin.model.resources.policy import (
    EntityRule,
    GlobalNetworkPolicy,
    GlobalNetworkSet,
    HTTPMatch,
    ICMPFields,
    NetworkPolicy,
    NetworkSet,
    PolicySpec,
    Profile,
    Rule,
    StagedGlobalNetworkPolicy,
    StagedNetworkPolicy,
    Tier,
)
from calico_plugin.model.validation import metadata, text
from calico_plugin.model.validation.text import Problems, SelectorParser

Policy = Union[GlobalNetworkPolicy, NetworkPolicy, StagedGlobalNetworkPolicy, StagedNetworkPolicy]

BUILT_IN_TIERS = {"default": (1000000, "Deny"), "kube-admin": (1000, "Pass"), "kube-baseline": (10000000, "Pass")}
BUILT_IN_PROFILE = "projectcalico-default-allow"
_WITH_PORTS = ("TCP", "UDP", "SCTP", 6, 17, 132)
_ICMP4, _ICMP6 = ("ICMP", 1), ("ICMPv6", 58)
_MAX_RULES, _MAX_NETS, _MAX_PORTS, _MAX_HTTP = 1024, 256, 50, 20
_EVERYTHING = ("0.0.0.0/0", "::/0")


@dataclass(frozen=True, slots=True)
class _Where:
    """What a rule's checks need to know of its place."""

    path: str
    egress: bool
    is_global: bool
    parse: SelectorParser


def policy(resource: Policy, parse: SelectorParser) -> Problems:
    spec = resource.spec
    yield from _staged(spec, resource.kind)
    for name, selector in _selectors(spec):
        yield from text.selector_problems(name, selector, parse)
    yield from _types(spec)
    yield from _flags(spec)
    for index, hint in enumerate(spec.performance_hints):
        if not hint:
            yield Problem(f"spec.performanceHints[{index}]", "", "must be AssumeNeededOnEveryNode")
    yield from _rules(spec.ingress, "spec.ingress", False, resource.kind, parse)
    yield from _rules(spec.egress, "spec.egress", True, resource.kind, parse)


def _selectors(spec: PolicySpec) -> Iterator[tuple[str, str]]:
    yield "spec.selector", spec.selector
    yield "spec.namespaceSelector", spec.namespace_selector
    yield "spec.serviceAccountSelector", spec.service_account_selector


def _staged(spec: PolicySpec, kind: str) -> Problems:
    others = PolicySpec(staged_action=spec.staged_action, tier=spec.tier)
    if kind.startswith("Staged") and spec.staged_action == "Delete" and spec != others:
        yield Problem("spec.stagedAction", "Delete", "a staged Delete takes no other spec field but tier")


def _types(spec: PolicySpec) -> Problems:
    if len(set(spec.types)) != len(spec.types) or "" in spec.types:
        yield Problem("spec.types", list(spec.types), "each of Ingress, Egress at most once")


def _flags(spec: PolicySpec) -> Problems:
    for name, flag in (("doNotTrack", spec.do_not_track), ("preDNAT", spec.pre_dnat)):
        if flag and not spec.apply_on_forward:
            yield Problem(f"spec.{name}", True, f"{name} needs applyOnForward: true")
    if spec.do_not_track and spec.pre_dnat:
        yield Problem("spec.preDNAT", True, "cannot be used together with doNotTrack")
    if spec.pre_dnat and (spec.egress or "Egress" in spec.types):
        yield Problem("spec.preDNAT", True, "preDNAT is ingress-only: take out the egress rules and type Egress")


def _rules(rules: tuple[Rule, ...], path: str, egress: bool, kind: str, parse: SelectorParser) -> Problems:
    if len(rules) > _MAX_RULES:
        yield Problem(path, None, f"too many entries ({len(rules)}, at most {_MAX_RULES})")
    for index, rule in enumerate(rules):
        yield from _rule(rule, _Where(f"{path}[{index}]", egress, "Global" in kind, parse))


def _rule(rule: Rule, where: _Where) -> Problems:
    if not rule.action:
        yield Problem(f"{where.path}.action", None, "must be Allow, Deny, Log or Pass")
    yield from _protocol(rule, where.path)
    yield from _icmp(rule.icmp, f"{where.path}.icmp")
    yield from _icmp(rule.not_icmp, f"{where.path}.notICMP")
    yield from _one_family(rule, where.path)
    for end, entity in (("source", rule.source), ("destination", rule.destination)):
        yield from _entity(entity, rule, f"{where.path}.{end}", end, where)
    if rule.http is not None:
        yield from _http(rule, rule.http, where)


def _protocol(rule: Rule, path: str) -> Problems:
    for name, value in (("protocol", rule.protocol), ("notProtocol", rule.not_protocol)):
        for version, words in ((6, _ICMP4), (4, _ICMP6)):
            if rule.ip_version == version and value in words:
                yield Problem(
                    f"{path}.{name}", value, f"{words[0]} is not for IPv{version}; change ipVersion or the protocol"
                )
    if rule.icmp is not None and rule.protocol not in _ICMP4 + _ICMP6:
        yield Problem(f"{path}.icmp", None, f"needs protocol ICMP or ICMPv6, not {rule.protocol or 'none'}")


def _icmp(icmp: ICMPFields | None, path: str) -> Problems:
    if icmp is None:
        return
    if icmp.type is not None and not 0 <= icmp.type <= 254:
        yield Problem(f"{path}.type", icmp.type, "must be 0 to 254")
    if icmp.code is not None and not 0 <= icmp.code <= 255:
        yield Problem(f"{path}.code", icmp.code, "must be 0 to 255")
    if icmp.code is not None and icmp.type is None:
        yield Problem(f"{path}.code", icmp.code, "needs a type beside it")


def _nets(rule: Rule) -> Iterator[tuple[str, str]]:
    """Path inside the rule and text of every net, those that are to be excluded too."""
    for end, entity in (("source", rule.source), ("destination", rule.destination)):
        for name, nets in (("nets", entity.nets), ("notNets", entity.not_nets)):
            yield from ((f"{end}.{name}[{index}]", net) for index, net in enumerate(nets))


def _one_family(rule: Rule, path: str) -> Problems:
    known = [(place, net, network.version) for place, net in _nets(rule) if (network := text.network_or_none(net))]
    for place, net, version in known:
        if rule.ip_version in (4, 6) and version != rule.ip_version:
            yield Problem(f"{path}.{place}", net, f"ipVersion {rule.ip_version} with an IPv{version} net")
        elif version != known[0][2]:
            yield Problem(f"{path}.{place}", net, f"one rule, one IP family ({known[0][1]} came first): split the rule")


def _entity(entity: EntityRule, rule: Rule, path: str, end: str, where: _Where) -> Problems:
    yield from text.selector_problems(f"{path}.selector", entity.selector, where.parse)
    yield from text.selector_problems(f"{path}.notSelector", entity.not_selector, where.parse)
    yield from text.selector_problems(
        f"{path}.namespaceSelector", entity.namespace_selector, where.parse, global_allowed=True
    )
    if entity.service_accounts is not None:
        yield from text.selector_problems(
            f"{path}.serviceAccounts.selector", entity.service_accounts.selector, where.parse
        )
    yield from _entity_nets(entity, path)
    yield from _ports(entity, rule, path)
    if entity.services is not None:
        yield from _services(entity, path, end, where)


def _entity_nets(entity: EntityRule, path: str) -> Problems:
    for name, nets in (("nets", entity.nets), ("notNets", entity.not_nets)):
        if len(nets) > _MAX_NETS:
            yield Problem(f"{path}.{name}", None, f"too many entries ({len(nets)}, at most {_MAX_NETS})")
        for index, net in enumerate(nets):
            fault = text.cidr_fault(net)
            if fault:
                yield Problem(f"{path}.{name}[{index}]", net, fault)
            elif name == "notNets" and str(text.network_or_none(net)) in _EVERYTHING:
                yield Problem(f"{path}.{name}[{index}]", net, "excluding every address can never match")


def _ports(entity: EntityRule, rule: Rule, path: str) -> Problems:
    for name, ports in (("ports", entity.ports), ("notPorts", entity.not_ports)):
        if len(ports) > _MAX_PORTS:
            yield Problem(f"{path}.{name}", None, f"too many entries ({len(ports)}, at most {_MAX_PORTS})")
        numeric = [port for port in ports if isinstance(port, int) or port[:1].isdigit() and ":" in port]
        if ports and rule.protocol is not None and rule.protocol not in _WITH_PORTS:
            yield Problem(f"{path}.{name}", list(ports), f"protocol {rule.protocol} has no ports; use TCP, UDP or SCTP")
        elif numeric and rule.protocol is None:
            yield Problem(f"{path}.{name}", list(ports), "a rule with numeric ports needs protocol TCP, UDP or SCTP")


def _services(entity: EntityRule, path: str, end: str, where: _Where) -> Problems:
    services = entity.services
    assert services
    here = f"{path}.services"
    if not services.name:
        yield Problem(f"{here}.name", None, "must be given")
    if where.is_global and not services.namespace:
        yield Problem(f"{here}.namespace", None, "must be given in a global policy")
    if (end == "source") == where.egress:
        right = "destination of egress rules and source of ingress rules"
        yield Problem(here, None, f"services may only stand in the {right}")
    others = (
        entity.selector,
        entity.not_selector,
        entity.namespace_selector,
        entity.nets,
        entity.not_nets,
        entity.service_accounts,
    )
    if any(others):
        yield Problem(here, None, "services cannot be combined with selectors, nets or serviceAccounts")
    if end == "destination" and (entity.ports or entity.not_ports):
        yield Problem(here, None, "services bring their own ports: take out ports and notPorts")


def _http(rule: Rule, http: HTTPMatch, where: _Where) -> Problems:
    here = f"{where.path}.http"
    if where.egress:
        yield Problem(here, None, "http matches only on ingress rules")
    if rule.action != "Allow":
        yield Problem(here, None, f"http matches only on Allow rules, not {rule.action}")
    if rule.protocol not in (None, "TCP", 6):
        yield Problem(here, None, f"http needs protocol TCP, not {rule.protocol}")
    if len(set(http.methods)) != len(http.methods):
        yield Problem(f"{here}.methods", list(http.methods), "a method is given twice")
    for name, entries in (("methods", http.methods), ("paths", http.paths)):
        if len(entries) > _MAX_HTTP:
            yield Problem(f"{here}.{name}", None, f"too many entries ({len(entries)}, at most {_MAX_HTTP})")
    for index, path in enumerate(http.paths):
        value = path.exact or path.prefix
        if bool(path.exact) == bool(path.prefix):
            yield Problem(f"{here}.paths[{index}]", None, "give either exact or prefix")
        elif not value.startswith("/") or any(character in "?# " for character in value):
            yield Problem(f"{here}.paths[{index}]", value, "a path starts with / and holds no ?, # or blank")


def tier(resource: Tier, parse: SelectorParser) -> Problems:
    spec, built_in = resource.spec, BUILT_IN_TIERS.get(resource.name)
    if spec.default_action == "":
        yield Problem("spec.defaultAction", "", "must be Deny or Pass")
    if built_in and (spec.order, spec.default_action or "Deny") != built_in:
        yield Problem(
            "spec.order",
            spec.order,
            f'tier "{resource.name}" must keep order {built_in[0]} and defaultAction {built_in[1]}',
        )


def profile(resource: Profile, parse: SelectorParser) -> Problems:
    if resource.name == BUILT_IN_PROFILE:
        yield Problem("metadata.name", resource.name, "is the built-in profile: it can be neither created nor changed")
    yield from metadata.labels("spec.labelsToApply", resource.spec.labels_to_apply)
    yield from _rules(resource.spec.ingress, "spec.ingress", False, "Global", parse)
    yield from _rules(resource.spec.egress, "spec.egress", True, "Global", parse)


def network_set(resource: GlobalNetworkSet | NetworkSet, parse: SelectorParser) -> Problems:
    for index, net in enumerate(resource.spec.nets):
        if text.network_or_none(net) is None and text.version_of(net) is None:
            yield Problem(f"spec.nets[{index}]", net, "must be an address or a CIDR such as 198.51.100.0/24")


def policy_name(resource: Policy, parse: SelectorParser) -> Problems:
    """At most one dot, except for policies that stand for Kubernetes' and OpenStack's (V22)."""
    name = resource.name
    if name.count(".") > 1 and not name.startswith(("knp.default.", "ossg.default.")):
        yield Problem(member("metadata", "name"), name, "a policy's name has at most one dot (<tier>.<name>)")
