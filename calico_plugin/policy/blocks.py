"""Blocks: a tier with many policies is cut into runs that several tiers may share, and that an edit rewrites alone.

Where a cut falls is decided by the policy's own name, so that a new policy changes one block and moves no other. In a
block, policies that can be told apart by what a packet carries stand behind maps (`sorting`); a policy that may match
any packet, or that leaves the tier (Pass), stands between such runs, in its place.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Iterable, Iterator, Sequence

from calico_plugin.model.keys import ResourceKey
from calico_plugin.policy.keys import Condition, Keys, conditions, keys, ports_tell_more
from calico_plugin.policy.rules import Block, Parsed
from calico_plugin.policy.sorting import Run, SetOf, Sorted

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
    """One block in one direction. `update` again when a policy or a set of it changed."""

    def __init__(self, prefix: str, block: Block, direction: str, least: int) -> None:
        self._prefix, self._name, self._direction, self._least = prefix, repr(block), direction, least
        self._conditions: dict[ResourceKey, tuple[tuple[Parsed, ...], tuple[Condition, ...]]] = {}
        self._runs: dict[tuple[str, ...], Run] = {}
        self.pieces: tuple[Piece, ...] = ()

    def update(self, members: Sequence[Member], set_of: SetOf) -> list[Sorted]:
        """What the runs consist of; `pieces` is then what stands in the tier."""
        found = {one.key: tuple(self._usable(one, set_of)) for one in members if one.rules is not None}
        by_port = ports_tell_more(found.values())
        known = {key: keys(listed, by_port) for key, listed in found.items()}
        pieces: list[Piece] = []
        runs, done = {}, []
        for run in _runs(members, known):
            if len(run) < self._least:
                pieces += [one.key for one in run]
                continue
            listed = tuple(one.chain for one in run)
            runs[listed] = self._runs.get(listed) or Run(self._name_of(listed), self._direction, listed)
            pieces.append(runs[listed].name)
            done.append(runs[listed].update([key for one in run if (key := known[one.key])], set_of))
        self._runs, self.pieces = runs, tuple(pieces)
        return done

    def _usable(self, member: Member, set_of: SetOf) -> Iterator[Condition]:
        assert member.rules is not None
        old = self._conditions.get(member.key)
        if old is None or old[0] is not member.rules:
            old = self._conditions[member.key] = member.rules, conditions(member.rules, self._direction)
        for one in old[1]:
            crowded = any(len(set_of(spec, family).members) > _MANY_NETS and set_of(spec, family).interval
                          for spec in one.sets for family in one.families)
            yield replace(one, sets=()) if crowded else one

    def _name_of(self, chains: Iterable[str]) -> str:
        """A block may have several runs, another block the same run."""
        digest = hashlib.blake2b("|".join((self._name, *chains)).encode(), digest_size=8)
        return f"{self._prefix}{digest.hexdigest()}"


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
