"""Rules, selectors and addresses: what policies, profiles and endpoints of v1 have in common."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network
from typing import Iterable, Iterator

from calico_plugin.model import forms
from calico_plugin.model.problem import Problem, did_you_mean
from calico_plugin.model.resources import policy
from calico_plugin.model.v1 import types

_ACTIONS = {"": "Allow", "allow": "Allow", "deny": "Deny", "log": "Log", "pass": "Pass"}
_NAMES = dict(zip(types.PROTOCOL_NAMES, ("TCP", "UDP", "ICMP", "ICMPv6", "SCTP", "UDPLite")))
_OLD_NAMESPACE, _NAMESPACE = "calico/k8s_ns", "projectcalico.org/namespace"


class Wrong(Exception):
    """Something that cannot be converted, with its place."""

    def __init__(self, path: str, value: object, hint: str) -> None:
        super().__init__(path)
        self.problem = Problem(path, value, hint)


def rules(given: Iterable[types.Rule], path: str) -> tuple[policy.Rule, ...]:
    """Raises Wrong."""
    return tuple(_rule(rule, f"{path}[{index}]") for index, rule in enumerate(given))


def _rule(rule: types.Rule, path: str) -> policy.Rule:
    return policy.Rule(
        action=_ACTIONS[rule.action],
        ip_version=rule.ip_version,
        protocol=protocol(rule.protocol, f"{path}.protocol"),
        icmp=rule.icmp,
        not_protocol=protocol(rule.not_protocol, f"{path}.notProtocol"),
        not_icmp=rule.not_icmp,
        source=_entity(rule.source, f"{path}.source"),
        destination=_entity(rule.destination, f"{path}.destination"),
    )


def _entity(entity: types.Entity, path: str) -> policy.EntityRule:
    return policy.EntityRule(
        nets=_nets(entity.net, entity.nets, f"{path}.net"),
        selector=with_tag(entity.selector, entity.tag),
        ports=entity.ports,
        not_nets=_nets(entity.not_net, entity.not_nets, f"{path}.notNet"),
        # Not the same as before when both are given; the original's converter does it so, and so must we.
        not_selector=with_tag(entity.not_selector, entity.not_tag),
        not_ports=entity.not_ports,
    )


def with_tag(text: str, tag: str) -> str:
    """A tag became an empty label: `(<selector>) && tag == ''`."""
    converted = selector(text)
    if not tag:
        return converted
    return f"({converted}) && {tag} == ''" if converted else f"{tag} == ''"


def selector(text: str) -> str:
    return text.replace(_OLD_NAMESPACE, _NAMESPACE)


def labels(given: dict[str, str]) -> dict[str, str]:
    return {(_NAMESPACE if name == _OLD_NAMESPACE else name): value for name, value in given.items()}


def _nets(one: str, several: tuple[str, ...], path: str) -> tuple[str, ...]:
    if one and several:
        raise Wrong(path, one, f"cannot be given together with {path.rpartition('.')[2]}s in one rule")
    return tuple(masked(net, path) for net in (*several, one) if net)


def masked(net: str, path: str) -> str:
    """A network with the bits of hosts taken away. Raises Wrong."""
    try:
        return str(ip_network(net, strict=False))
    except ValueError as error:
        raise Wrong(path, net, f"must be a network such as 10.0.0.0/8: {error}") from None


def address(text: str, path: str) -> str:
    """Raises Wrong."""
    try:
        return str(ip_address(text))
    except ValueError as error:
        raise Wrong(path, text, f"must be an address: {error}") from None


def interface(text: str, path: str) -> str:
    """An address with the length of its network's prefix, /32 or /128 when none is given. Raises Wrong."""
    try:
        return str(ip_interface(text))
    except ValueError as error:
        raise Wrong(path, text, f"must be an address, with or without a prefix length: {error}") from None


def protocol(given: str | None, path: str) -> int | str | None:
    """Names must be in lower case in v1; digits become a number. Raises Wrong."""
    if not given:
        return given
    if given in _NAMES:
        return _NAMES[given]
    try:
        return forms.protocol(int(given))
    except ValueError:
        known = ", ".join(types.PROTOCOL_NAMES)
        hint = f"must be one of {known}, or a number from 1 to 255{did_you_mean(given, _NAMES)}"
        raise Wrong(path, given, hint) from None


def four_first(texts: Iterable[str]) -> Iterator[str]:
    """IPv4 before IPv6, otherwise in the given order."""
    return iter(sorted(texts, key=lambda text: ":" in text))
