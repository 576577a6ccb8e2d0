"""Blocks: a tier with many policies is cut into runs that several tiers may share, and that an edit rewrites alone.

Where a cut falls is decided by the policy's own name, so that a new policy changes one block and moves no other. In a
block, policies that can be told apart by what a packet carries stand behind maps (`sorting`); a policy that may match
any packet, or that leaves the tier (Pass), stands between such runs, in its place.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Iterable, Iterator, Mapping, Sequence

from calico_plugin.model.keys import ResourceKey
from calico_plugin.policy.farends import SetOf
from calico_plugin.policy.keys import Condition, Keys, conditions, keys, ports_tell_more
from calico_plugin.policy.rules import FAMILIES, Block, Parsed, SetSpec
from calico_plugin.policy.sorting import Run, Sorted

_MANY_NETS = 2000
"""A set with more networks than this is asked itself: cutting them all anew at each change would take too long."""

Piece = ResourceKey | str
"""A policy that stands alone, or the chain of a run."""


def cut(policies: tuple[ResourceKey, ...], size: int, least: int) -> list[Block]:
    """The policies in runs of about `size`. A tier with fewer than `least` is not cut and has blocks of one."""
    if len(policies) < least:
        return [Block((key,)) for key in policies]
    runs: list[list[ResourceKey]] = []
    for key in policies:
        if not runs or _starts(key, size):
            runs.append([])
        runs[-1].append(key)
    return [Block(tuple(run)) for run in runs]


def _starts(key: ResourceKey, size: int) -> bool:
    digest = hashlib.blake2b(str(key).encode("utf-8", "surrogatepass"), digest_size=4).digest()
    return int.from_bytes(digest, "big") % size == 0


@dataclass(frozen=True, slots=True)
class Member:
    """A policy of a block in one direction: its chain, its rules; None for one that leaves the tier."""

    key: ResourceKey
    chain: str
    rules: tuple[Parsed, ...] | None


class Sorter:
    """One block in one direction. `update` when a policy of it changed, `move` when only sets did."""

    def __init__(self, prefix: str, block: Block, direction: str, sort_from: int) -> None:
        self._prefix, self._name, self._direction = prefix, repr(block), direction
        # Where a tier is worth maps at all, so are short runs of it: a look costs about as much as some policies.
        self._least = max(2, sort_from // 3)
        self._conditions: dict[ResourceKey, tuple[tuple[Parsed, ...], tuple[Condition, ...]]] = {}
        self._keys: dict[ResourceKey, tuple[tuple[Condition, ...], bool, Keys | None]] = {}
        self._specs: dict[str, SetSpec] = {}
        self._crowded: frozenset[SetSpec] = frozenset()
        self._members: Sequence[Member] = ()
        self._runs: dict[tuple[str, ...], Run] = {}
        self.pieces: tuple[Piece, ...] = ()

    def update(self, members: Sequence[Member], set_of: SetOf) -> list[Sorted]:
        """What the runs consist of; `pieces` is then what stands in the tier."""
        self._members = members
        found = {one.key: self._conditions_of(one.key, one.rules) for one in members if one.rules is not None}
        self._specs = {spec.id: spec for listed in found.values() for one in listed for spec in one.sets}
        self._crowded = frozenset(spec for spec in self._specs.values() if _crowds(spec, set_of))
        if self._crowded:
            found = {key: tuple(map(self._spare, listed)) for key, listed in found.items()}
        by_port = ports_tell_more(found.values())
        known = {key: self._keys_of(key, listed, by_port) for key, listed in found.items()}
        pieces: list[Piece] = []
        runs, done = {}, []
        for run in _runs(members, known):
            if len(run) < self._least:
                pieces += [one.key for one in run]
                continue
            chains = tuple(one.chain for one in run)
            runs[chains] = self._runs.get(chains) or Run(self._name_of(chains), self._direction, chains)
            pieces.append(runs[chains].name)
            done.append(runs[chains].update([key for one in run if (key := known[one.key])], set_of))
        self._runs, self.pieces = runs, tuple(pieces)
        return done

    def move(self, sets: Mapping[int, Iterable[str]], set_of: SetOf) -> list[Sorted]:
        """`sets`: by IP version, ids of the specs of those that changed."""
        known = {self._specs[spec] for listed in sets.values() for spec in listed if spec in self._specs}
        if any(_crowds(spec, set_of) != (spec in self._crowded) for spec in known):
            self.update(self._members, set_of)
        return [run.move(sets, set_of) for run in self._runs.values()]

    def _conditions_of(self, key: ResourceKey, rules: tuple[Parsed, ...]) -> tuple[Condition, ...]:
        old = self._conditions.get(key)
        if old is None or old[0] is not rules:
            old = self._conditions[key] = rules, conditions(rules, self._direction)
        return old[1]

    def _spare(self, one: Condition) -> Condition:
        return replace(one, sets=()) if not self._crowded.isdisjoint(one.sets) else one

    def _keys_of(self, key: ResourceKey, found: tuple[Condition, ...], by_port: bool) -> Keys | None:
        old = self._keys.get(key)
        if old is None or old[:2] != (found, by_port):
            old = self._keys[key] = found, by_port, keys(found, by_port)
        return old[2]

    def _name_of(self, chains: Iterable[str]) -> str:
        """A block may have several runs, another block the same run."""
        digest = hashlib.blake2b("|".join((self._name, *chains)).encode(), digest_size=8)
        return f"{self._prefix}{digest.hexdigest()}"


def _crowds(spec: SetSpec, set_of: SetOf) -> bool:
    """Whether it has more networks than can be cut anew at each change."""
    sets = (set_of(spec, family) for family in FAMILIES)
    return any(item.interval and len(item.members) > _MANY_NETS for item in sets)


def _runs(members: Iterable[Member], known: dict[ResourceKey, Keys | None]) -> Iterator[list[Member]]:
    """Longest runs of policies that have keys, and each other policy alone."""
    run: list[Member] = []
    for one in members:
        if known.get(one.key) is not None:
            run.append(one)
            continue
        if run:
            yield run
            run = []
        yield [one]
    if run:
        yield run
