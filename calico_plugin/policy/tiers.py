"""Order of tiers and of policies in a tier (policy 2.3)."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Iterable

from calico_plugin.model.keys import ResourceKey
from calico_plugin.policy.chains import TierPart
from calico_plugin.policy.reading import BUILT_IN_TIERS, PolicyInfo, TierInfo

_BROKEN = TierInfo("", -math.inf, False, broken=True)


class Tiers:
    """The tiers that exist. The built-in ones always do."""

    def __init__(self, block_size: int, sort_from: int) -> None:
        self._sizes = block_size, sort_from
        self._known: dict[str, TierInfo] = dict(BUILT_IN_TIERS)

    def set(self, name: str, info: TierInfo | None) -> bool:
        """Whether that changed anything; None takes the tier away, or back to what is built in."""
        info = info or BUILT_IN_TIERS.get(name)
        if self._known.get(name) == info:
            return False
        if info is None:
            del self._known[name]
        else:
            self._known[name] = info
        return True

    def parts(self, direction: str, policies: Iterable[PolicyInfo], open_end: bool = False) -> tuple[TierPart, ...]:
        """The policies by tier, in order. `open_end`: what no policy decides goes on, whatever the tier says."""
        by_tier: dict[tuple[str, bool], list[PolicyInfo]] = defaultdict(list)
        for policy in policies:
            by_tier[(policy.tier, policy.broken)].append(policy)
        entries = [(self._of(name, broken), name, listed) for (name, broken), listed in by_tier.items()]
        entries.sort(key=lambda entry: self._rank(entry[0], entry[1]))
        return tuple(
            TierPart(direction, name, _ordered(listed), tier.default_pass or open_end, tier.broken, *self._sizes)
            for tier, name, listed in entries
        )

    def _of(self, name: str, broken: bool) -> TierInfo:
        """A tier without an object ends in Deny."""
        return _BROKEN if broken else self._known.get(name) or TierInfo(name, math.inf, False)

    def _rank(self, tier: TierInfo, name: str) -> tuple[bool, float, bytes]:
        """One without an object sorts after all that exist."""
        return not tier.broken and name not in self._known, tier.order, name.encode()


def _ordered(policies: list[PolicyInfo]) -> tuple[ResourceKey, ...]:
    return tuple(policy.key for policy in sorted(policies, key=lambda policy: policy.sort_key))
