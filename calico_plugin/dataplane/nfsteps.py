"""From one state of our table to another: steps of one transaction, pure and in no language yet.

Every rule carries a comment: a hash over the rule and all rules before it in the chain. A chain in the kernel is right
when its comments are, so a restarted process recognises its own work without comparing rules (policy 5.1).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Iterable, Mapping

from calico_plugin.model.desired import AddressSet, Chain, Hook, PortMap, Rule, Ruleset, SetType, VerdictMap
from calico_plugin.model.entries import moved

SCHEME = b"1"
"""Part of every comment's hash: change it whenever the same rule is written to the kernel in another way."""


@dataclass(frozen=True, slots=True)
class Line:
    """A rule with the comment that it carries."""

    rule: Rule
    comment: str


@dataclass(frozen=True, slots=True)
class Elements:
    """Members of one set; with `targets` of a verdict map, member -> chain (goto); with `data` of a port map."""

    type: SetType
    interval: bool
    members: tuple[str, ...]
    targets: tuple[str, ...] = ()
    data: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """`verb` (add, delete, flush), `sort` (table, set, map, chain, rule, element), `name` of the object or its holder.

    `body`: the set or map to declare, the base chain's hook, the rule, the elements.
    """

    verb: str
    sort: str
    name: str = ""
    body: AddressSet | VerdictMap | PortMap | Hook | Line | Elements | None = None


@dataclass(frozen=True, slots=True)
class Print:
    """What makes a chain right: its hook and the comments of its rules."""

    hook: Hook | None
    comments: tuple[str, ...]


@lru_cache(maxsize=512)
def lines(chain: Chain) -> tuple[Line, ...]:
    """The chain's rules with their comments."""
    found, digest = [], SCHEME
    for rule in chain.rules:
        digest = hashlib.blake2b(digest + repr(rule).encode("utf-8", "surrogatepass"), digest_size=8).digest()
        found.append(Line(rule, digest.hex()))
    return tuple(found)


def fingerprint(chain: Chain) -> Print:
    return Print(chain.hook, tuple(line.comment for line in lines(chain)))


@dataclass(slots=True)
class State:
    """What the table holds, as far as we know: written by us or read from the kernel."""

    exists: bool = False
    sets: Mapping[str, AddressSet] = field(default_factory=dict)
    maps: Mapping[str, VerdictMap] = field(default_factory=dict)
    chains: Mapping[str, Chain | Print] = field(default_factory=dict)
    ports: Mapping[str, PortMap] = field(default_factory=dict)

    @classmethod
    def of(cls, ruleset: Ruleset) -> State:
        return cls(True, ruleset.sets, ruleset.maps, ruleset.chains, ruleset.ports)


@dataclass(frozen=True, slots=True)
class Script:
    """Steps of one transaction, and how many objects of each sort they touch. No steps: nothing to do."""

    steps: tuple[Step, ...] = ()
    sets: int = 0
    members: int = 0
    chains: int = 0
    elements: int = 0
    removed: int = 0
    names: tuple[str, ...] = ()


def difference(actual: State, desired: Ruleset, whole: bool = False) -> Script:
    """Steps from `actual` to `desired`: sets, chains, rules, dispatch; removals last (policy 5.2).

    `whole` throws the table away and makes it anew, in the same transaction.
    """
    build = _Builder(State() if whole else actual)
    if whole:
        build.steps += [Step("add", "table"), Step("delete", "table")]
    if not build.actual.exists:
        build.steps.append(Step("add", "table"))
    build.sets(desired.sets)
    build.chains(desired)
    build.maps(desired.maps)
    build.ports(desired.ports)
    build.removals(desired)
    return build.script()


def _others(actual: Mapping[str, object], desired: Mapping[str, object]) -> list[str]:
    """Names of what is not the very instance that we wrote: few of thousands, so this is kept short."""
    if actual is desired:
        return []
    return [name for name, wanted in desired.items() if actual.get(name) is not wanted]


def _gone(actual: Mapping[str, object], desired: Mapping[str, object]) -> list[str]:
    return [] if actual is desired else [name for name in actual if name not in desired]


class _Builder:
    """Collects the steps of one script."""

    def __init__(self, actual: State) -> None:
        self.actual = actual
        self.steps: list[Step] = []
        self.count = dict.fromkeys(("sets", "members", "chains", "elements", "removed"), 0)
        self.names: list[str] = []

    def script(self) -> Script:
        return Script(tuple(self.steps), **self.count, names=tuple(self.names))

    def touch(self, sort: str, name: str, number: int = 1) -> None:
        self.count[sort] += number
        self.names.append(name)

    def sets(self, desired: Mapping[str, AddressSet]) -> None:
        for name in _others(self.actual.sets, desired):
            wanted, there = desired[name], self.actual.sets.get(name)
            if there is None:
                self.steps.append(Step("add", "set", name, wanted))
                self.touch("sets", name)
                self.members("add", wanted, wanted.members)
                continue
            self.members("delete", wanted, there.members - wanted.members)
            self.members("add", wanted, wanted.members - there.members)

    def members(self, verb: str, wanted: AddressSet, members: Iterable[str]) -> None:
        chosen = tuple(members)
        if chosen:
            self.steps.append(Step(verb, "element", wanted.name, Elements(wanted.type, wanted.interval, chosen)))
            self.touch("members", wanted.name, len(chosen))

    def chains(self, desired: Ruleset) -> None:
        """And what their rules look things up in, empty."""
        others = ((name, desired.chains[name]) for name in _others(self.actual.chains, desired.chains))
        changed = [chain for name, chain in others if self.differs(self.actual.chains.get(name), chain)]
        for chain in changed:
            self.declare(chain)
        for name, wanted in desired.maps.items():
            if name not in self.actual.maps:
                self.steps.append(Step("add", "map", name, wanted))
                self.touch("elements", name, 0)
        for name, ports in desired.ports.items():
            if name not in self.actual.ports:
                self.steps.append(Step("add", "map", name, ports))
                self.touch("elements", name, 0)
        for chain in changed:
            self.fill(chain)

    def differs(self, there: Chain | Print | None, wanted: Chain) -> bool:
        if isinstance(there, Chain):
            return there != wanted
        return there is None or there != fingerprint(wanted)

    def declare(self, chain: Chain) -> None:
        there = self.actual.chains.get(chain.name)
        if there is not None and there.hook != chain.hook:
            self.steps += [Step("flush", "chain", chain.name), Step("delete", "chain", chain.name)]
            there = None
        if there is None:
            self.steps.append(Step("add", "chain", chain.name, chain.hook))
        else:
            self.steps.append(Step("flush", "chain", chain.name))
        self.touch("chains", chain.name)

    def fill(self, chain: Chain) -> None:
        self.steps += [Step("add", "rule", chain.name, line) for line in lines(chain)]

    def maps(self, desired: Mapping[str, VerdictMap]) -> None:
        for name, wanted in desired.items():
            there = self.actual.maps.get(name)
            if there is wanted:
                continue
            gone, new = moved(there.elements if there is not None else {}, wanted.elements)
            self.elements("delete", wanted, gone)
            self.elements("add", wanted, new)

    def ports(self, desired: Mapping[str, PortMap]) -> None:
        for name, wanted in desired.items():
            there = self.actual.ports.get(name)
            if there is wanted:
                continue
            old = there.elements if there is not None else {}
            self.entries("delete", wanted, {key: to for key, to in old.items() if to != wanted.elements.get(key)})
            self.entries("add", wanted, {key: to for key, to in wanted.elements.items() if to != old.get(key)})

    def entries(self, verb: str, ports: PortMap, changed: Mapping[str, str]) -> None:
        if changed:
            body = Elements(ports.type, False, tuple(changed), data=tuple(changed.values()))
            self.steps.append(Step(verb, "element", ports.name, body))
            self.touch("elements", ports.name, len(changed))

    def elements(self, verb: str, wanted: VerdictMap, changed: Mapping[str, str]) -> None:
        if changed:
            body = Elements(wanted.type, wanted.interval, tuple(changed), tuple(changed.values()))
            self.steps.append(Step(verb, "element", wanted.name, body))
            self.touch("elements", wanted.name, len(changed))

    def removals(self, desired: Ruleset) -> None:
        """References first: rules, then the maps that they named, the chains that those named, sets."""
        chains = _gone(self.actual.chains, desired.chains)
        self.steps += [Step("flush", "chain", name) for name in chains]
        self.remove("map", _gone(self.actual.maps, desired.maps))
        self.remove("map", _gone(self.actual.ports, desired.ports))
        self.remove("chain", chains)
        self.remove("set", _gone(self.actual.sets, desired.sets))

    def remove(self, sort: str, names: list[str]) -> None:
        for name in names:
            self.steps.append(Step("delete", sort, name))
            self.touch("removed", name)
