"""Our table in nft's language, pure: matches, rules and steps as text.

Written for nft 1.0.6: `icmp type` and `icmp code` are two tests, negated pairs are concatenations (policy 5.3).
"""

from __future__ import annotations

from calico_plugin.dataplane.nfexpressions import SAMPLE_BURST, SAMPLE_BYTES, SPARED_MARK
from calico_plugin.dataplane.nfsteps import Elements, Line, Script, State, Step, difference
from calico_plugin.model.desired import (
    LOOKED_UP,
    AddressSet,
    Field,
    Hook,
    Match,
    PortMap,
    Rule,
    Ruleset,
    Sample,
    SetType,
    Verdict,
    VerdictMap,
)
from calico_plugin.model.names import NFT_TABLE

FAMILY = "inet"
TABLE = f"{FAMILY} {NFT_TABLE}"

TYPES = {
    SetType.IPV4: "ipv4_addr",
    SetType.IPV6: "ipv6_addr",
    SetType.IPV4_PORT: "ipv4_addr . inet_proto . inet_service",
    SetType.IPV6_PORT: "ipv6_addr . inet_proto . inet_service",
    SetType.PORT: "inet_proto . inet_service",
    SetType.INTERFACE: "ifname",
    SetType.INTERFACE_IPV4: "ifname . ipv4_addr",
    SetType.INTERFACE_IPV6: "ifname . ipv6_addr",
    SetType.SERVICE: "inet_service",
    SetType.PROTOCOL: "inet_proto",
}
_INTERFACE_FIRST = (SetType.INTERFACE, SetType.INTERFACE_IPV4, SetType.INTERFACE_IPV6)
PORT_DATA = {4: "ipv4_addr . inet_service", 6: "ipv6_addr . inet_service"}

_FIELDS = {
    Field.FAMILY: "meta nfproto",
    Field.PROTOCOL: "meta l4proto",
    Field.SOURCE4: "ip saddr",
    Field.SOURCE6: "ip6 saddr",
    Field.DESTINATION4: "ip daddr",
    Field.DESTINATION6: "ip6 daddr",
    Field.SOURCE_PORT: "th sport",
    Field.DESTINATION_PORT: "th dport",
    Field.SOURCE_NAMED4: "ip saddr . meta l4proto . th sport",
    Field.SOURCE_NAMED6: "ip6 saddr . meta l4proto . th sport",
    Field.DESTINATION_NAMED4: "ip daddr . meta l4proto . th dport",
    Field.DESTINATION_NAMED6: "ip6 daddr . meta l4proto . th dport",
    Field.IN_INTERFACE: "iifname",
    Field.OUT_INTERFACE: "oifname",
    Field.IN_INTERFACE_SOURCE4: "iifname . ip saddr",
    Field.IN_INTERFACE_SOURCE6: "iifname . ip6 saddr",
    Field.OUT_INTERFACE_SOURCE4: "oifname . ip saddr",
    Field.OUT_INTERFACE_SOURCE6: "oifname . ip6 saddr",
    Field.CONNECTION_STATE: "ct state",
    Field.CONNECTION_STATUS: "ct status",
}
_QUOTED = (Field.IN_INTERFACE, Field.OUT_INTERFACE)
_NFPROTO = {"4": "ipv4", "6": "ipv6"}
_ICMP = {Field.ICMP4: "icmp", Field.ICMP6: "icmpv6"}


def render_match(match: Match) -> str:
    """One criterion in nft's words."""
    if match.field in _ICMP:
        return _render_icmp(_ICMP[match.field], match)
    if match.field is Field.LOCAL:
        return "fib daddr type local"
    if match.field is Field.SPARED:
        return f"meta mark & {SPARED_MARK:#x} {'==' if match.negated else '!='} 0"
    operator = "!= " if match.negated else ""
    if match.set_name:
        return f"{_FIELDS[match.field]} {operator}@{match.set_name}"
    values = [_value(match.field, value) for value in match.values]
    if match.field is Field.CONNECTION_STATE:
        return f"ct state {operator}{','.join(values)}"
    if match.field is Field.CONNECTION_STATUS:
        # The status is a word of bits: `!= dnat` compares all of it (policy 5.3).
        return f"ct status & {values[0]} {'==' if match.negated else '!='} 0"
    listed = values[0] if len(values) == 1 else "{ " + ", ".join(values) + " }"
    return f"{_FIELDS[match.field]} {operator}{listed}"


def _value(what: Field, value: str) -> str:
    if what is Field.FAMILY:
        return _NFPROTO[value]
    return f'"{value}"' if what in _QUOTED else value


def _render_icmp(word: str, match: Match) -> str:
    values = match.values
    if len(values) == 1 and not match.negated:
        kind, _, code = values[0].partition(" . ")
        return f"{word} type {kind} {word} code {code}" if code else f"{word} type {kind}"
    operator = "!= " if match.negated else ""
    pairs = " . " in values[0]
    what = f"{word} type . {word} code" if pairs else f"{word} type"
    return f"{what} {operator}{{ {', '.join(values)} }}"


def render_rule(rule: Rule) -> str:
    """A rule without its comment. Rules that somebody wrote are counted."""
    parts = [render_match(match) for match in rule.matches]
    if rule.origin:
        parts.append("counter")
    if isinstance(rule.log, Sample):
        parts.append(f"limit rate {rule.log.per_second}/second burst {SAMPLE_BURST} packets")
        parts.append(f'log prefix "{rule.log.prefix}" group {rule.log.group} snaplen {SAMPLE_BYTES}')
    elif rule.log is not None:
        if rule.rate is not None:
            parts.append(f"limit rate {rule.rate.count}/{_UNITS[rule.rate.seconds]} burst {rule.rate.burst} packets")
        parts.append(f'log prefix "{rule.log}"')
    parts.append(_render_verdict(rule))
    return " ".join(part for part in parts if part)


_UNITS = {1: "second", 60: "minute", 3600: "hour", 86400: "day"}


def _render_verdict(rule: Rule) -> str:
    if rule.verdict in (Verdict.JUMP, Verdict.GOTO):
        return f"{rule.verdict.value} {rule.target}"
    if rule.verdict is Verdict.MASQUERADE and rule.target:
        return f"masquerade to {rule.target} fully-random"
    return _VERDICTS[rule.verdict].format(target=rule.target)


_VERDICTS = {
    Verdict.ACCEPT: "accept",
    Verdict.DROP: "drop",
    Verdict.REJECT: "reject with icmpx type port-unreachable",
    Verdict.RETURN: "return",
    **{verdict: f"{_FIELDS[field]} vmap @{{target}}" for verdict, field in LOOKED_UP.items()},
    Verdict.MASQUERADE: "masquerade fully-random",
    Verdict.PUBLISH4: "dnat ip to meta l4proto . th dport map @{target}",
    Verdict.PUBLISH6: "dnat ip6 to meta l4proto . th dport map @{target}",
    Verdict.PUBLISH_AT4: "dnat ip to ip daddr . meta l4proto . th dport map @{target}",
    Verdict.PUBLISH_AT6: "dnat ip6 to ip6 daddr . meta l4proto . th dport map @{target}",
    Verdict.SNAT: "snat ip to {target} fully-random",
    Verdict.UNTRACK: "notrack accept",
    Verdict.SPARE: f"meta mark set meta mark | {SPARED_MARK:#x} accept",
    Verdict.CONTINUE: "",
}


def _hook(hook: object) -> str:
    if not isinstance(hook, Hook):
        return ""
    return f" {{ type {hook.type} hook {hook.hook} priority {hook.priority}; policy accept; }}"


def _member(kind: SetType, text: str) -> str:
    if kind not in _INTERFACE_FIRST:
        return text
    interface, dot, rest = text.partition(" . ")
    return f'"{interface}"{dot}{rest}'


def render_step(step: Step) -> str:
    """One command."""
    where = f"{TABLE} {step.name}" if step.name else TABLE
    if isinstance(step.body, Line):
        return f'add rule {where} {render_rule(step.body.rule)} comment "{step.body.comment}"'
    if isinstance(step.body, Elements):
        return f"{step.verb} element {where} {{ {', '.join(sorted(_members(step.body)))} }}"
    if isinstance(step.body, (AddressSet, VerdictMap)):
        flags = " flags interval;" if step.body.interval else ""
        to = " : verdict" if isinstance(step.body, VerdictMap) else ""
        return f"add {step.sort} {where} {{ type {TYPES[step.body.type]}{to};{flags} }}"
    if isinstance(step.body, PortMap):
        return f"add map {where} {{ type {TYPES[step.body.type]} : {PORT_DATA[step.body.version]}; }}"
    return f"{step.verb} {step.sort} {where}{_hook(step.body)}"


def _members(elements: Elements) -> list[str]:
    keys = [_member(elements.type, text) for text in elements.members]
    if elements.data:
        return [f"{key} : {data}" for key, data in zip(keys, elements.data)]
    if not elements.targets:
        return keys
    return [f"{key} : goto {target}" for key, target in zip(keys, elements.targets)]


def script_text(script: Script) -> str:
    return "\n".join(map(render_step, script.steps))


def render(ruleset: Ruleset) -> str:
    """The whole table from nothing, objects and members sorted by name."""
    ordered = Ruleset(
        dict(sorted(ruleset.sets.items())), dict(sorted(ruleset.chains.items())), dict(sorted(ruleset.maps.items())),
        dict(sorted(ruleset.ports.items())))
    return script_text(difference(State(), ordered)) + "\n"
