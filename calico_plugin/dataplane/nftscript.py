"""Ruleset <-> nft's language, pure: rules as text, the script from one state of our table to another, reading back.

Every rule carries a comment: a hash over its text and all texts before it in the chain. A chain in the kernel is
right when its comments are, so a restarted process recognises its own work without comparing rules (policy 5.1).
Written for nft 1.0.6: `icmp type` and `icmp code` are two tests, negated pairs are concatenations (policy 5.3).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import Any, Iterable, Mapping

import msgspec

from calico_plugin.dataplane.nfelements import Operation
from calico_plugin.model.desired import (
    AddressSet,
    Chain,
    Field,
    Hook,
    Match,
    Rule,
    Ruleset,
    SetType,
    Verdict,
    VerdictMap,
)
from calico_plugin.model.names import NFT_TABLE

FAMILY = "inet"
TABLE = f"{FAMILY} {NFT_TABLE}"

_TYPES = {
    SetType.IPV4: "ipv4_addr",
    SetType.IPV6: "ipv6_addr",
    SetType.IPV4_PORT: "ipv4_addr . inet_proto . inet_service",
    SetType.IPV6_PORT: "ipv6_addr . inet_proto . inet_service",
    SetType.INTERFACE: "ifname",
    SetType.INTERFACE_IPV4: "ifname . ipv4_addr",
    SetType.INTERFACE_IPV6: "ifname . ipv6_addr",
}
_TYPE_OF = {text: kind for kind, text in _TYPES.items()}
_INTERFACE_FIRST = (SetType.INTERFACE, SetType.INTERFACE_IPV4, SetType.INTERFACE_IPV6)
_MAP_TYPE = "ifname : verdict"

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
    Field.CONNECTION_STATE: "ct state",
    Field.CONNECTION_STATUS: "ct status",
}
# Felix's accept bit, the lowest of its mask 0xffff0000 (policy 4.9); only preDNAT policy sets it.
SPARED_MARK = 0x10000
_QUOTED = (Field.IN_INTERFACE, Field.OUT_INTERFACE)
_NFPROTO = {"4": "ipv4", "6": "ipv6"}
_ICMP = {Field.ICMP4: "icmp", Field.ICMP6: "icmpv6"}


def render_match(match: Match) -> str:
    """One criterion in nft's words."""
    if match.field in _ICMP:
        return _render_icmp(_ICMP[match.field], match)
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
    if rule.log is not None:
        parts.append(f'log prefix "{rule.log}"')
    parts.append(_render_verdict(rule))
    return " ".join(part for part in parts if part)


def _render_verdict(rule: Rule) -> str:
    if rule.verdict in (Verdict.JUMP, Verdict.GOTO):
        return f"{rule.verdict.value} {rule.target}"
    return _VERDICTS[rule.verdict].format(target=rule.target)


_VERDICTS = {
    Verdict.ACCEPT: "accept",
    Verdict.DROP: "drop",
    Verdict.RETURN: "return",
    Verdict.MAP_IN: "iifname vmap @{target}",
    Verdict.MAP_OUT: "oifname vmap @{target}",
    Verdict.ESTABLISHED: "ct state vmap {{ established : accept, related : accept, invalid : drop }}",
    Verdict.MASQUERADE: "masquerade fully-random",
    Verdict.UNTRACK: "notrack accept",
    Verdict.SPARE: f"meta mark set meta mark | {SPARED_MARK:#x} accept",
    Verdict.CONTINUE: "",
}


@dataclass(frozen=True, slots=True)
class Print:
    """What makes a chain right: its hook and the comments of its rules."""

    hook: Hook | None
    comments: tuple[str, ...]


@lru_cache(maxsize=65536)
def _rendered(chain: Chain) -> tuple[tuple[str, str], ...]:
    """(rule, comment) pairs."""
    found, digest = [], b""
    for rule in chain.rules:
        text = render_rule(rule)
        digest = hashlib.blake2b(digest + text.encode(), digest_size=8).digest()
        found.append((text, digest.hex()))
    return tuple(found)


def fingerprint(chain: Chain) -> Print:
    return Print(chain.hook, tuple(comment for _, comment in _rendered(chain)))


@dataclass(slots=True)
class State:
    """What the table holds, as far as we know: written by us or read from the kernel."""

    exists: bool = False
    sets: dict[str, AddressSet] = field(default_factory=dict)
    maps: dict[str, VerdictMap] = field(default_factory=dict)
    chains: dict[str, Chain | Print] = field(default_factory=dict)

    @classmethod
    def of(cls, ruleset: Ruleset) -> State:
        return cls(True, dict(ruleset.sets), dict(ruleset.maps), dict(ruleset.chains))


@dataclass(frozen=True, slots=True)
class Script:
    """Commands of one transaction, and how many objects of each sort they touch. No commands: nothing to do.

    `operations` says the same as `commands` when only elements change, else it is empty.
    """

    commands: tuple[str, ...] = ()
    sets: int = 0
    members: int = 0
    chains: int = 0
    elements: int = 0
    removed: int = 0
    names: tuple[str, ...] = ()
    operations: tuple[Operation, ...] = ()

    @property
    def text(self) -> str:
        return "\n".join(self.commands)


def render(ruleset: Ruleset) -> str:
    """The whole table from nothing, objects and members sorted by name."""
    ordered = Ruleset(*(dict(sorted(table.items())) for table in (ruleset.sets, ruleset.chains, ruleset.maps)))
    return difference(State(), ordered).text + "\n"


def difference(actual: State, desired: Ruleset, whole: bool = False) -> Script:
    """Commands from `actual` to `desired`: sets, chains, rules, dispatch; removals last (policy 5.2).

    `whole` throws the table away and makes it anew, in the same transaction.
    """
    build = _Builder(State() if whole else actual)
    if whole:
        build.commands += [f"add table {TABLE}", f"delete table {TABLE}"]
    if not build.actual.exists:
        build.commands.append(f"add table {TABLE}")
    build.sets(desired.sets)
    build.chains(desired.chains, desired.maps)
    build.maps(desired.maps)
    build.removals(desired)
    return build.script()


class _Builder:
    """Collects the commands of one script."""

    def __init__(self, actual: State) -> None:
        self.actual = actual
        self.commands: list[str] = []
        self.count = dict.fromkeys(("sets", "members", "chains", "elements", "removed"), 0)
        self.names: list[str] = []
        self.operations: list[Operation] = []

    def script(self) -> Script:
        only = self.operations if len(self.operations) == len(self.commands) else ()
        return Script(tuple(self.commands), **self.count, names=tuple(self.names), operations=tuple(only))

    def touch(self, sort: str, name: str, number: int = 1) -> None:
        self.count[sort] += number
        self.names.append(name)

    def sets(self, desired: Mapping[str, AddressSet]) -> None:
        for name, wanted in desired.items():
            there = self.actual.sets.get(name)
            if there is wanted:
                continue
            if there is None:
                flags = " flags interval;" if wanted.interval else ""
                self.commands.append(f"add set {TABLE} {name} {{ type {_TYPES[wanted.type]};{flags} }}")
                self.touch("sets", name)
                self.members("add", wanted, wanted.members)
                continue
            self.members("delete", wanted, there.members - wanted.members)
            self.members("add", wanted, wanted.members - there.members)

    def members(self, verb: str, wanted: AddressSet, members: Iterable[str]) -> None:
        chosen = tuple(members)
        listed = [_member(wanted.type, text) for text in chosen]
        if listed:
            self.operations.append(Operation(verb == "add", wanted.name, wanted.type, wanted.interval, chosen))
            self.commands.append(f"{verb} element {TABLE} {wanted.name} {{ {', '.join(sorted(listed))} }}")
            self.touch("members", wanted.name, len(listed))

    def chains(self, desired: Mapping[str, Chain], maps: Mapping[str, VerdictMap]) -> None:
        changed = [chain for name, chain in desired.items() if self.differs(self.actual.chains.get(name), chain)]
        for chain in changed:
            self.declare(chain)
        for name in maps:
            if name not in self.actual.maps:
                self.commands.append(f"add map {TABLE} {name} {{ type {_MAP_TYPE}; }}")
                self.touch("elements", name, 0)
        for chain in changed:
            self.fill(chain)

    def differs(self, there: Chain | Print | None, wanted: Chain) -> bool:
        if there is wanted:
            return False
        if isinstance(there, Chain):
            return there != wanted
        return there is None or there != fingerprint(wanted)

    def declare(self, chain: Chain) -> None:
        there = self.actual.chains.get(chain.name)
        if there is not None and there.hook != chain.hook:
            self.commands += [f"flush chain {TABLE} {chain.name}", f"delete chain {TABLE} {chain.name}"]
            there = None
        if there is None:
            self.commands.append(f"add chain {TABLE} {chain.name}{_hook(chain.hook)}")
        else:
            self.commands.append(f"flush chain {TABLE} {chain.name}")
        self.touch("chains", chain.name)

    def fill(self, chain: Chain) -> None:
        self.commands += [
            f'add rule {TABLE} {chain.name} {text} comment "{comment}"' for text, comment in _rendered(chain)
        ]

    def maps(self, desired: Mapping[str, VerdictMap]) -> None:
        for name, wanted in desired.items():
            there = self.actual.maps.get(name)
            if there is wanted:
                continue
            old = there.elements if there is not None else {}
            gone = {key: target for key, target in old.items() if target != wanted.elements.get(key)}
            new = {key: target for key, target in wanted.elements.items() if target != old.get(key)}
            self.elements("delete", name, gone)
            self.elements("add", name, new)

    def elements(self, verb: str, name: str, changed: Mapping[str, str]) -> None:
        if changed:
            listed = [f'"{key}" : goto {target}' for key, target in changed.items()]
            keys, targets = tuple(changed), tuple(changed.values())
            self.operations.append(Operation(verb == "add", name, SetType.INTERFACE, False, keys, targets))
            self.commands.append(f"{verb} element {TABLE} {name} {{ {', '.join(sorted(listed))} }}")
            self.touch("elements", name, len(listed))

    def removals(self, desired: Ruleset) -> None:
        """References first: rules, then the maps that they named, the chains that those named, sets."""
        chains = [name for name in self.actual.chains if name not in desired.chains]
        self.commands += [f"flush chain {TABLE} {name}" for name in chains]
        self.remove("map", [name for name in self.actual.maps if name not in desired.maps])
        self.remove("chain", chains)
        self.remove("set", [name for name in self.actual.sets if name not in desired.sets])

    def remove(self, sort: str, names: list[str]) -> None:
        for name in names:
            self.commands.append(f"delete {sort} {TABLE} {name}")
            self.touch("removed", name)


def _hook(hook: Hook | None) -> str:
    if hook is None:
        return ""
    return f" {{ type {hook.type} hook {hook.hook} priority {hook.priority}; policy accept; }}"


def _member(kind: SetType, text: str) -> str:
    if kind not in _INTERFACE_FIRST:
        return text
    interface, dot, rest = text.partition(" . ")
    return f'"{interface}"{dot}{rest}'


def parse(listing: str) -> State:
    """What `list table` in JSON says. An object that we could not have made gets a print that equals none of ours."""
    state = State(exists=True)
    comments: dict[str, list[str]] = {}
    hooks: dict[str, Hook | None] = {}
    for entry in msgspec.json.decode(listing)["nftables"]:
        for sort, body in entry.items():
            if sort == "set":
                state.sets[body["name"]] = _parse_set(body)
            elif sort == "map":
                state.maps[body["name"]] = VerdictMap(body["name"], dict(map(_parse_element, body.get("elem", ()))))
            elif sort == "chain":
                comments[body["name"]], hooks[body["name"]] = [], _parse_hook(body)
            elif sort == "rule":
                comments[body["chain"]].append(body.get("comment", ""))
    for name, listed in comments.items():
        state.chains[name] = Print(hooks[name], tuple(listed))
    return state


def _parse_hook(body: Mapping[str, Any]) -> Hook | None:
    return Hook(body["type"], body["hook"], body["prio"]) if "hook" in body else None


def _parse_set(body: Mapping[str, Any]) -> AddressSet:
    written = body["type"] if isinstance(body["type"], str) else " . ".join(body["type"])
    kind = _TYPE_OF.get(written, SetType.INTERFACE)
    members = frozenset(_parse_member(item) for item in body.get("elem", ()))
    return AddressSet(body["name"], kind, members, "interval" in body.get("flags", ()))


def _parse_member(item: Any) -> str:
    if isinstance(item, Mapping):
        if "elem" in item:
            return _parse_member(item["elem"]["val"])
        if "concat" in item:
            return " . ".join(_parse_member(part) for part in item["concat"])
        if "prefix" in item:
            return str(ip_network(f"{item['prefix']['addr']}/{item['prefix']['len']}", strict=False))
        return str(item)
    text = str(item)
    # Python and the kernel's tools spell some IPv6 addresses differently.
    return str(ip_address(text)) if ":" in text and "%" not in text and _is_address(text) else text


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _parse_element(item: Any) -> tuple[str, str]:
    key, verdict = item
    if isinstance(key, Mapping):
        key = key.get("elem", {}).get("val", str(key))
    target = verdict.get("goto") if isinstance(verdict, Mapping) else None
    return str(key), target["target"] if target else str(verdict)
