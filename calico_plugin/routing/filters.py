"""BGPFilter -> functions of BIRD's filter language (node-and-cli 2.6), pure.

All matches of a rule hold together; no match means always; past the last rule the defaults go on. What cannot be said
becomes a `reject`: a rule that is not understood must not let through what it meant to stop.
"""

from __future__ import annotations

import hashlib
import re
from ipaddress import ip_network
from typing import Any, Iterable

from calico_plugin.model.resources import BGPFilter
from calico_plugin.model.resources.bgp import BGPFilterRule
from calico_plugin.routing.sessions import parse_as

# LOCAL_PREF of a route is this less its priority: the smaller number is the better one in both.
_MOST_PRIORITY = 2147483647


def filter_function(name: str, direction: str, version: int) -> str:
    """BIRD's name of a BGPFilter's function: quoted, at most 64 characters (2.6)."""
    if len(name) > 45:
        name = f"{name[:28]}_{hashlib.sha256(name.encode()).hexdigest()[:16].upper()}"
    return f"'bgp_{name}_{direction}FilterV{version}'"


def rule_lines(owner: BGPFilter, rules: Iterable[BGPFilterRule], version: int, problems: list[str]) -> tuple[str, ...]:
    lines = []
    for index, rule in enumerate(rules):
        try:
            lines.append(rule_line(rule, version))
        except ValueError as error:
            # A rule we cannot express must not let through what it meant to stop.
            problems.append(f"{owner}: rule {index + 1}: {error}; replaced by reject")
            lines.append("reject;")
    return tuple(lines)


def rule_line(rule: BGPFilterRule, version: int) -> str:
    """`if <all matches> then accept;`. Raises ValueError for what cannot be expressed."""
    action = rule.action.lower()
    if action not in ("accept", "reject"):
        raise ValueError(f"action {rule.action!r} is neither Accept nor Reject")
    if rule.operations and action != "accept":
        raise ValueError("operations go with Accept only")
    conditions = [*_cidr_conditions(rule, version), *_other_conditions(rule), *_path_conditions(rule)]
    steps = [step for operation in rule.operations for step in _operation(operation)]
    body = f"{{ {' '.join(steps)} {action}; }}" if steps else f"{action};"
    if not conditions:
        return " ".join([*steps, f"{action};"])
    return f"if {' && '.join(f'({one})' for one in conditions)} then {body}"


def _cidr_conditions(rule: BGPFilterRule, version: int) -> list[str]:
    if bool(rule.cidr) != bool(rule.match_operator):
        raise ValueError("cidr and matchOperator go together")
    if not rule.cidr:
        if rule.prefix_length is not None:
            raise ValueError("prefixLength needs a cidr")
        return []
    network = ip_network(rule.cidr, strict=False)
    if network.version != version:
        raise ValueError(f"cidr {rule.cidr} is not IPv{version}")
    operator = {"Equal": "=", "NotEqual": "!=", "In": "~", "NotIn": "!~"}.get(rule.match_operator)
    if operator is None:
        raise ValueError(f"matchOperator {rule.match_operator!r} is none of Equal, NotEqual, In, NotIn")
    if operator in ("=", "!="):
        return [f"net {operator} {network}"]
    longest = 32 if version == 4 else 128
    low, high = network.prefixlen, longest
    if rule.prefix_length is not None:
        low = max(low, rule.prefix_length.min or 0)
        high = min(high, longest if rule.prefix_length.max is None else rule.prefix_length.max)
    if high < low:
        return ["false"] if operator == "~" else []
    return [f"net {operator} [ {network}{{{low},{high}}} ]"]


def _other_conditions(rule: BGPFilterRule) -> list[str]:
    conditions = []
    if rule.source:
        if rule.source != "RemotePeers":
            raise ValueError(f"source {rule.source!r} is not RemotePeers")
        conditions.append("defined(source) && source = RTS_BGP")
    if rule.interface:
        if not re.fullmatch(r"[-A-Za-z0-9_.*?@]+", rule.interface):
            raise ValueError(f"interface {rule.interface!r} is no interface pattern")
        conditions.append(f'defined(ifname) && ifname ~ "{rule.interface}"')
    if rule.peer_type:
        if rule.peer_type not in ("eBGP", "iBGP"):
            raise ValueError(f"peerType {rule.peer_type!r} is neither eBGP nor iBGP")
        conditions.append("same_as" if rule.peer_type == "iBGP" else "!same_as")
    return conditions


def _path_conditions(rule: BGPFilterRule) -> list[str]:
    conditions = []
    if rule.priority is not None:
        metric, preference = _priority(rule.priority)
        # Of a route of ours it is the metric; one that came from a node of our AS carries it as LOCAL_PREF.
        conditions.append(
            f"(defined(krt_metric) && krt_metric = {metric}) || "
            f"(defined(bgp_local_pref) && bgp_local_pref = {preference})"
        )
    if rule.communities:
        for value in rule.communities.values:
            attribute, text = community(value)
            conditions.append(f"{text} ~ {attribute}")
    if rule.as_path_prefix:
        numbers = " ".join(str(parse_as(number)) for number in rule.as_path_prefix)
        conditions.append(f"bgp_path ~ [= {numbers} * =]")
    return conditions


def _operation(operation: dict[str, Any]) -> list[str]:
    """Statements of one operation, such as `{addCommunity: {value: "64512:7"}}`."""
    if len(operation) == 1:
        (name, argument), = operation.items()
        if name == "addCommunity" and isinstance(argument, dict):
            attribute, text = community(str(argument.get("value", "")))
            return [f"{attribute}.add({text});"]
        if name == "prependASPath" and isinstance(argument, dict):
            # Each statement puts one number in front.
            return [f"bgp_path.prepend({parse_as(one)});" for one in reversed(argument.get("prefix") or [])]
        if name == "setPriority" and isinstance(argument, dict):
            # Not as the kernel's metric: when that changes, BIRD 2 leaves the route with the old one behind.
            return [f"bgp_local_pref = {_priority(argument.get('value'))[1]};"]
    raise ValueError(f"operation {', '.join(operation) or 'without a name'} is not offered here")


def _priority(value: object) -> tuple[int, int]:
    """A route's priority as metric of a kernel's route and as LOCAL_PREF, which is how it travels in an AS (2.9)."""
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < _MOST_PRIORITY:
        raise ValueError(f"priority {value!r} is no number from 1 to {_MOST_PRIORITY - 1}")
    return value, _MOST_PRIORITY - value


def community(text: str) -> tuple[str, str]:
    """`a:b` or `a:b:c` -> BIRD's attribute and value. Raises ValueError."""
    parts = text.split(":")
    limit, attribute = {2: (1 << 16, "bgp_community"), 3: (1 << 32, "bgp_large_community")}.get(len(parts), (0, ""))
    if not attribute or not all(part.isdecimal() and int(part) < limit for part in parts):
        raise ValueError(f"community {text} is neither a:b (16 bit each) nor a:b:c (32 bit each)")
    return attribute, "(" + ",".join(parts) + ")"
