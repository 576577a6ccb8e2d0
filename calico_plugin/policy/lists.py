"""Which chains are in use: endpoints hold lists, lists hold tiers and profiles, tiers hold policies; all counted.

A *user* is (direction, policy key, profile name or block): whatever has a chain of its own, and therefore sets.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Iterable

from calico_plugin.policy import chains
from calico_plugin.policy.chains import ListPart, TierPart
from calico_plugin.policy.rules import Block, User


class Lists:
    """`take_*` hand over what changed since they were last asked."""

    def __init__(self) -> None:
        self._lists: Counter[ListPart] = Counter()
        self._tiers: Counter[TierPart] = Counter()
        self._users: Counter[User] = Counter()
        self._tiers_of: dict[User, set[TierPart]] = defaultdict(set)
        self._blocks_of: dict[User, set[User]] = defaultdict(set)
        self._changed_users: set[User] = set()
        self._touched_lists: set[ListPart] = set()
        self._touched_tiers: set[TierPart] = set()
        self._touched_users: set[User] = set()
        self._gone: set[str] = set()

    def hold(self, part: ListPart) -> str:
        """Name of the list's chain; it stays until dropped as often as held."""
        name = chains.list_chain_name(part)
        self._lists[part] += 1
        if self._lists[part] == 1:
            self._touched_lists.add(part)
            self._gone.discard(name)
            for tier in part.tiers:
                self._hold_tier(tier)
            for profile in part.profiles:
                self._hold_user((part.direction, profile))
        return name

    def drop(self, part: ListPart) -> None:
        self._lists[part] -= 1
        if self._lists[part]:
            return
        del self._lists[part]
        self._touched_lists.discard(part)
        self._gone.add(chains.list_chain_name(part))
        for tier in part.tiers:
            self._drop_tier(tier)
        for profile in part.profiles:
            self._drop_user((part.direction, profile))

    def uses(self, user: User) -> bool:
        return user in self._users

    def touch(self, user: User) -> None:
        """The user's rules must be rendered again."""
        self._touched_users.add(user)

    def blocks_of(self, user: User) -> Iterable[User]:
        """Blocks that hold the policy: how they are sorted depends on its rules."""
        return tuple(self._blocks_of.get(user, ()))

    def tiers_of(self, user: User) -> Iterable[TierPart]:
        return self._tiers_of.get(user, ())

    def touch_tiers_of(self, user: User) -> None:
        self._touched_tiers.update(self._tiers_of.get(user, ()))

    def touch_all(self) -> None:
        self._touched_lists.update(self._lists)
        self._touched_tiers.update(self._tiers)
        self._touched_users.update(self._users)

    def take_changed_users(self) -> set[User]:
        """Users that came into use or went out of it."""
        taken, self._changed_users = self._changed_users, set()
        return taken

    def take_gone(self) -> set[str]:
        """Names of chains that nobody uses any more."""
        taken, self._gone = self._gone, set()
        return taken

    def take_touched_users(self) -> Iterable[User]:
        taken, self._touched_users = self._touched_users, set()
        return [user for user in taken if user in self._users]

    def take_touched_tiers(self) -> Iterable[TierPart]:
        taken, self._touched_tiers = self._touched_tiers, set()
        return [tier for tier in taken if tier in self._tiers]

    def take_touched_lists(self) -> Iterable[ListPart]:
        taken, self._touched_lists = self._touched_lists, set()
        return taken

    def _hold_tier(self, tier: TierPart) -> None:
        self._tiers[tier] += 1
        if self._tiers[tier] > 1:
            return
        self._touched_tiers.add(tier)
        self._gone.discard(chains.tier_chain_name(tier))
        for user in self._users_of(tier):
            self._tiers_of[user].add(tier)
            self._hold_user(user)

    def _drop_tier(self, tier: TierPart) -> None:
        self._tiers[tier] -= 1
        if self._tiers[tier]:
            return
        del self._tiers[tier]
        self._gone.add(chains.tier_chain_name(tier))
        for user in self._users_of(tier):
            self._tiers_of[user].discard(tier)
            self._drop_user(user)

    def _users_of(self, tier: TierPart) -> Iterable[User]:
        """Its policies, and the blocks that hold several of them."""
        for policy in tier.policies:
            yield tier.direction, policy
        for block in tier.blocks():
            if len(block.policies) > 1:
                yield tier.direction, block

    def _hold_user(self, user: User) -> None:
        self._users[user] += 1
        if self._users[user] == 1:
            self._changed_users.add(user)
            self._gone.difference_update(_chain_of(user))
            for part in _policies_of(user):
                self._blocks_of[part].add(user)

    def _drop_user(self, user: User) -> None:
        self._users[user] -= 1
        if self._users[user]:
            return
        del self._users[user]
        self._tiers_of.pop(user, None)
        self._changed_users.add(user)
        for part in _policies_of(user):
            self._blocks_of[part].discard(user)
            if not self._blocks_of[part]:
                del self._blocks_of[part]
        self._gone.update(_chain_of(user))


def _policies_of(user: User) -> Iterable[User]:
    """Of a block: the users that it holds."""
    direction, subject = user
    return [(direction, key) for key in subject.policies] if isinstance(subject, Block) else ()


def _chain_of(user: User) -> Iterable[str]:
    """Name of its chain; a block has none of its own, see `blocks`."""
    direction, subject = user
    if isinstance(subject, str):
        return (chains.profile_chain_name(direction, subject),)
    return () if isinstance(subject, Block) else (chains.policy_chain_name(direction, subject),)
