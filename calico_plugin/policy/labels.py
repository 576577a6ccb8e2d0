"""Effective labels: an object's own, then those of its profiles in list order (policy 1.6)."""

from __future__ import annotations

from collections import defaultdict
from typing import Generic, Hashable, Iterable, TypeVar

from calico_plugin.policy.selector import Labels

I = TypeVar("I", bound=Hashable)  # noqa: E741  # I for item


class Inheritance(Generic[I]):
    """Knows who inherits from which profile, so that a changed profile touches only its heirs."""

    def __init__(self) -> None:
        self._own: dict[I, Labels] = {}
        self._parents: dict[I, tuple[str, ...]] = {}
        self._profiles: dict[str, Labels] = {}
        self._heirs: dict[str, dict[I, None]] = defaultdict(dict)

    def set_item(self, item: I, own: Labels, parents: tuple[str, ...]) -> Labels:
        """The item's effective labels."""
        self._disown(item)
        self._own[item], self._parents[item] = own, parents
        for parent in parents:
            self._heirs[parent][item] = None
        return self.labels(item)

    def remove_item(self, item: I) -> None:
        self._disown(item)
        self._own.pop(item, None)
        self._parents.pop(item, None)

    def set_profile(self, name: str, labels: Labels) -> Iterable[I]:
        """Heirs whose effective labels must be asked for again."""
        if self._profiles.get(name, {}) == labels:
            return ()
        if labels:
            self._profiles[name] = labels
        else:
            self._profiles.pop(name, None)
        return tuple(self._heirs.get(name, ()))

    def labels(self, item: I) -> Labels:
        merged: dict[str, str] = {}
        for parent in reversed(self._parents[item]):
            merged.update(self._profiles.get(parent, {}))
        merged.update(self._own[item])
        return merged

    def _disown(self, item: I) -> None:
        for parent in self._parents.get(item, ()):
            heirs = self._heirs[parent]
            heirs.pop(item, None)
            if not heirs:
                self._heirs.pop(parent, None)
