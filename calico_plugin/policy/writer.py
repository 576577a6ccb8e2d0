"""Chains and sets as they should be: renders again only what was touched."""

from __future__ import annotations

from collections import defaultdict
from typing import Iterable, Mapping, TypeVar

from calico_plugin.model.desired import AddressSet, Chain, SetType, VerdictMap
from calico_plugin.model.keys import ResourceKey
from calico_plugin.policy import chains, ports
from calico_plugin.policy.blocks import Piece, Sorter
from calico_plugin.policy.farends import NO_SET
from calico_plugin.policy.kept import Kept
from calico_plugin.policy.lists import Lists
from calico_plugin.policy.members import MemberSets
from calico_plugin.policy.options import PolicyOptions
from calico_plugin.policy.reading import PolicyInfo, ProfileInfo, missing_profile
from calico_plugin.policy.rules import Block, SetSpec, Subject, User
from calico_plugin.policy.sorting import Sorted

T = TypeVar("T")


class Book:
    """Everything that has rules, by name."""

    def __init__(self) -> None:
        self.policies: dict[ResourceKey, PolicyInfo] = {}
        self.profiles: dict[str, ProfileInfo] = {}

    def profile(self, name: str) -> ProfileInfo:
        """A name that does not resolve denies."""
        return self.profiles.get(name) or missing_profile(name)

    def policy(self, key: ResourceKey) -> PolicyInfo:
        return self.policies[key]

    def specs(self, subject: Subject, direction: str) -> Iterable[SetSpec]:
        """Sets that the subject's chain names."""
        if isinstance(subject, Block):
            return ()
        rules = (self.profile(subject) if isinstance(subject, str) else self.policies[subject]).rules
        return (spec for rule in rules[direction] for spec in rule.specs())


class Writer:
    """`changed` users are those whose rules were edited; `Lists` knows who came into use."""

    def __init__(self, book: Book, lists: Lists, members: MemberSets) -> None:
        self._book, self._lists, self._members = book, lists, members
        self._specs: dict[User, dict[str, SetSpec]] = {}
        self._set_names: dict[tuple[str, int], str] = {}
        self._sorters: dict[User, Sorter] = {}
        self._sorted: dict[User, list[Sorted]] = {}
        self._moved: dict[User, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
        self.sets: Kept[AddressSet] = Kept((item.name, item) for item in chains.fixed_sets())
        self.chains: Kept[Chain] = Kept()
        self.maps: Kept[VerdictMap] = Kept()

    def users(self) -> Iterable[User]:
        """All whose chains exist."""
        return tuple(self._specs)

    def settle(self, changed: Iterable[User]) -> None:
        """Sets of the chains that are used now; chains whose sets changed their kind are to be rendered again."""
        users = {*changed, *self._lists.take_changed_users()}
        users.update(block for user in tuple(users) for block in self._lists.blocks_of(user))
        for user in users:
            self._settle_user(user)
        for spec_id, family in self._members.take_dirty():
            self._write_set(spec_id, family)

    def _settle_user(self, user: User) -> None:
        direction, subject = user
        old, new = self._specs.pop(user, {}), {}
        if self._lists.uses(user):
            self._lists.touch(user)
            new = {spec.id: spec for spec in self._book.specs(subject, direction)}
            self._specs[user] = new
        elif isinstance(subject, Block):
            self._sorters.pop(user, None)
            self._put_sorted(user, [])
        for spec in new.values():
            self._members.acquire(spec, user)
        for spec_id, spec in old.items():
            if spec_id not in new:
                self._members.release(spec, user)

    def _write_set(self, spec_id: str, family: int) -> None:
        built = self._members.build(spec_id, family)
        name = built.name if built is not None else ""
        old_name = self._set_names.pop((spec_id, family), "")
        if name != old_name:
            self.sets.pop(old_name, None)
        for user in self._members.users(spec_id):
            if name != old_name:
                self._lists.touch(user)
            for block in self._lists.blocks_of(user):
                self._moved[block][family].add(spec_id)
        if built is not None:
            self._set_names[(spec_id, family)] = name
            self.sets[name] = built

    def move(self, name: str, kind: SetType, came: set[str], went: set[str]) -> None:
        """Members of a fixed set; what came and went stays."""
        members = (self.sets[name].members - went) | came
        self.replace(AddressSet(name, kind, members))

    def replace(self, item: AddressSet) -> None:
        """An equal set stays the instance that it was."""
        if self.sets[item.name] != item:
            self.sets[item.name] = item

    def write(self, options: PolicyOptions) -> None:
        """Render what was touched."""
        for name in self._lists.take_gone():
            self.chains.pop(name, None)
        for user in self._lists.take_touched_users():
            self._write_user(user, options)
        for block, sets in self._moved.items():
            self._write_moved(block, sets)
        self._moved.clear()
        for tier in self._lists.take_touched_tiers():
            self.put(chains.tier_chain(tier, self._book.policy, self._pieces, self._members.name, options))
        for part in self._lists.take_touched_lists():
            self.put(chains.list_chain(part, options))

    def _write_user(self, user: User, options: PolicyOptions) -> None:
        direction, subject = user
        if subject == ports.PROFILE:
            self.put(ports.profile_chain(direction, options))
            return
        if isinstance(subject, str):
            self.put(chains.profile_chain(self._book.profile(subject), direction, self._members.name, options))
            return
        if isinstance(subject, Block):
            self._write_block(user, direction, subject)
            return
        name = chains.policy_chain_name(direction, subject)
        inlined = chains.inlined(self._book.policy(subject), direction)
        if inlined or name not in self.chains:
            self._lists.touch_tiers_of(user)
        if inlined:
            self.chains.pop(name, None)
        else:
            rules = chains.policy_rules(self._book.policy(subject), direction, self._members.name, options)
            self.put(Chain(name, rules))

    def _write_block(self, user: User, direction: str, block: Block) -> None:
        sorter = self._sorters.get(user)
        if sorter is None:
            sort_from = next(iter(self._lists.tiers_of(user))).sort_from
            sorter = self._sorters[user] = Sorter(chains.run_prefix(direction), block, direction, sort_from)
        before = sorter.pieces
        self._put_sorted(user, sorter.update(chains.members(block, direction, self._book.policy), self._set_of))
        if sorter.pieces != before:
            self._lists.touch_tiers_of(user)

    def _write_moved(self, user: User, sets: Mapping[int, Iterable[str]]) -> None:
        """A block of which only sets changed: by IP version, ids of their specs."""
        sorter = self._sorters.get(user)
        if sorter is None:
            return
        before = sorter.pieces
        self._put_sorted(user, sorter.move(sets, self._set_of))
        if sorter.pieces != before:
            self._lists.touch_tiers_of(user)

    def _pieces(self, direction: str, block: Block) -> tuple[Piece, ...]:
        return self._sorters[(direction, block)].pieces

    def _set_of(self, spec: SetSpec, family: int) -> AddressSet:
        return self.sets.get(self._members.name(spec, family)) or NO_SET

    def _put_sorted(self, user: User, new: list[Sorted]) -> None:
        """What the block's runs consist of now, instead of before."""
        old, self._sorted[user] = self._sorted.get(user, []), new
        if not new:
            del self._sorted[user]
        _swap(self.sets, [one.sets for one in old], [one.sets for one in new])
        _swap(self.maps, [one.maps for one in old], [one.maps for one in new])
        _swap(self.chains, [one.chains for one in old], [one.chains for one in new])

    def put(self, chain: Chain) -> None:
        """An equal chain stays the instance that it was."""
        if self.chains.get(chain.name) != chain:
            self.chains[chain.name] = chain


def _swap(table: dict[str, T], old: Iterable[Mapping[str, T]], new: Iterable[Mapping[str, T]]) -> None:
    """An equal object stays the instance that it was."""
    wanted = {name: item for part in new for name, item in part.items()}
    for name in {name for part in old for name in part} - wanted.keys():
        del table[name]
    for name, item in wanted.items():
        there = table.get(name)
        if there is not item and there != item:
            table[name] = item
