"""Whose connections a change of rules may forbid: found from what changed upwards, so that it costs what changed.

What can only open is passed over. A set's change concerns the addresses that came or went, a chain's those of the
endpoints whose lists lead to it.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import AbstractSet, Mapping

from calico_plugin.model.desired import DENIES, AddressSet, Chain, Ruleset, Verdict
from calico_plugin.policy.chains import FROM_WORKLOAD, OWN, TO_WORKLOAD

_CHAIN_JUMPS = (Verdict.JUMP, Verdict.GOTO)

Found = dict[str, frozenset[str] | None]
"""Chain -> addresses to look at; None: all of the endpoints that use the chain."""


@dataclass(frozen=True, slots=True)
class _Use:
    """How a chain names a set. `written`: by somebody; a `return` that nobody wrote is a guard, which says nothing that
    the rules behind it do not say.
    """

    chain: str
    verdict: Verdict
    written: bool
    negated: bool

    def harmful(self, came: frozenset[str], went: frozenset[str]) -> frozenset[str]:
        """Of addresses in the set now, and no more: those that this can forbid something."""
        gained, lost = (went, came) if self.negated else (came, went)
        if self.verdict is Verdict.ACCEPT:
            return lost
        if self.verdict in DENIES:
            return gained
        says_nothing = self.verdict is Verdict.CONTINUE or self.verdict is Verdict.RETURN and not self.written
        return frozenset() if says_nothing else gained | lost


class Concern:
    """Keeps who names what from one ruleset to the next: a chain that is the same instance is not read again."""

    def __init__(self) -> None:
        self._rules: Ruleset | None = None
        self._chains: Mapping[str, Chain] = {}
        self._users: dict[str, set[_Use]] = defaultdict(set)
        self._callers: dict[str, set[str]] = defaultdict(set)

    def of(self, rules: Ruleset) -> set[str]:
        """Addresses whose connections `rules` may forbid, and the rules of the last call did not; the first time all
        endpoints' of this host.
        """
        old, self._rules = self._rules, rules
        found: Found = dict.fromkeys(name for name in self._read(rules.chains) if not rules.chains[name].sorts)
        if old is None:
            return set(interfaces_of(rules))
        for name in _others(old.sets, rules.sets):
            came, went = _difference(old.sets.get(name), rules.sets[name])
            for use in self._users.get(name, ()):
                _add(found, use.chain, use.harmful(came, went))
        self._spread(found)
        return _addresses(old, rules, found)

    def _read(self, chains: Mapping[str, Chain]) -> list[str]:
        """Take in what is new; names of chains that were rewritten."""
        known, self._chains = self._chains, chains
        rewritten = [name for name in _others(known, chains) if known.get(name) != chains[name]]
        gone = [] if known is chains else [name for name in known if name not in chains]
        for name in (*gone, *rewritten):
            if name in known:
                self._forget(known[name])
        for name in rewritten:
            self._enter(chains[name])
        return rewritten

    def _enter(self, chain: Chain) -> None:
        for name, use in _uses(chain):
            self._users[name].add(use)
        for name in _targets(chain):
            self._callers[name].add(chain.name)

    def _forget(self, chain: Chain) -> None:
        for name, use in _uses(chain):
            self._users[name].discard(use)
        for name in _targets(chain):
            self._callers[name].discard(chain.name)

    def _spread(self, found: Found) -> None:
        """To the chains that lead there."""
        waiting = list(found)
        while waiting:
            name = waiting.pop()
            waiting += [caller for caller in self._callers.get(name, ()) if _add(found, caller, found[name])]


def interfaces_of(rules: Ruleset) -> Mapping[str, str]:
    """Address -> interface of this host's endpoints."""
    found = {}
    for name in OWN.values():
        for member in rules.sets[name].members:
            interface, _, address = member.partition(" . ")
            found[address] = interface
    return found


def _addresses(old: Ruleset, new: Ruleset, found: Found) -> set[str]:
    """What was found at the chains of interfaces, as addresses."""
    own: dict[str, list[str]] = {}
    for address, interface in interfaces_of(new).items():
        own.setdefault(interface, []).append(address)
    addresses: set[str] = set()
    for name in (FROM_WORKLOAD, TO_WORKLOAD):
        before = old.maps[name].elements if name in old.maps else {}
        for interface, chain in new.maps[name].elements.items():
            if interface not in before:
                continue  # it carried nothing before
            touched = None if before[interface] != chain else found.get(chain, frozenset())
            addresses.update(own.get(interface, ()) if touched is None else touched)
    return addresses


def _add(found: Found, chain: str, addresses: frozenset[str] | None) -> bool:
    """Whether that is news. A prefix stands for more addresses than can be asked for."""
    known = found.get(chain, frozenset())
    if known is None or addresses is not None and addresses <= known:
        return False
    wide = addresses is None or any("/" in address for address in addresses)
    found[chain] = None if addresses is None or wide else known | addresses
    return True


def _others(old: Mapping[str, object], new: Mapping[str, object]) -> list[str]:
    """Names of what is another instance now."""
    return [] if old is new else [name for name, item in new.items() if old.get(name) is not item]


def _uses(chain: Chain) -> list[tuple[str, _Use]]:
    """How a chain sorts packets says nothing that the chains behind it do not say."""
    return [] if chain.sorts else [
        (match.set_name, _Use(chain.name, rule.verdict, bool(rule.origin), match.negated))
        for rule in chain.rules for match in rule.matches if match.set_name
    ]


def _targets(chain: Chain) -> list[str]:
    return list(chain.sorts) or [rule.target for rule in chain.rules if rule.verdict in _CHAIN_JUMPS]


def _difference(old: AddressSet | None, new: AddressSet) -> tuple[frozenset[str], frozenset[str]]:
    """Addresses that came and went; of `address . protocol . port` the address."""
    before: AbstractSet[str] = old.members if old is not None else frozenset()
    came, went = new.members - before, before - new.members
    return frozenset(map(_address, came)), frozenset(map(_address, went))


def _address(member: str) -> str:
    return member.partition(" . ")[0]
