"""Which items match which selectors, kept up to date with work proportional to the change (policy 1.7).

A selector is filed under its most restrictive necessary condition; an item under each of its labels. A changed item
meets only the selectors filed under its labels, and of these only those that mention a label that changed; a new
selector meets only the items under its condition.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Callable, Generic, Hashable, Iterable, Iterator, Mapping, TypeVar

from calico_plugin.policy.selector import Labels, Node, Requirement

S = TypeVar("S", bound=Hashable)
I = TypeVar("I", bound=Hashable)  # noqa: E741  # I for item

_MAX_VALUES = 8
"""A condition with more values than this is filed under the label alone: fewer places to keep."""

Place = tuple[str, str | None] | None


class LabelIndex(Generic[S, I]):
    """Calls `started(selector key, item key)` and `stopped(…)` at each change of a match."""

    def __init__(self, started: Callable[[S, I], None], stopped: Callable[[S, I], None]) -> None:
        self._started, self._stopped = started, stopped
        self._selectors: dict[S, Node] = {}
        self._places: dict[Place, dict[S, None]] = defaultdict(dict)
        self._items: dict[I, Labels] = {}
        self._holders: dict[str, dict[str, dict[I, None]]] = defaultdict(dict)
        self._by_selector: dict[S, dict[I, None]] = {}

    def selectors_of(self, item: I) -> list[S]:
        """Selectors that match the item now, of those that are filed where it is: to keep them takes much memory."""
        places = map(self._places.get, _item_places(self._items.get(item, {})))
        return [key for keys in places if keys for key in keys if item in self._by_selector[key]]

    def items_of(self, key: S) -> Iterable[I]:
        """Items that the selector matches now."""
        return self._by_selector.get(key, {}).keys()

    def labels_of(self, item: I) -> Labels | None:
        return self._items.get(item)

    def set_item(self, item: I, labels: Labels) -> None:
        old = self._items.get(item)
        changed: frozenset[str] | None = None
        if old is not None:
            changed = frozenset(name for name in old.keys() | labels.keys() if old.get(name) != labels.get(name))
            if not changed:
                return
        matched = self.selectors_of(item)
        self._refile(item, old or {}, labels)
        self._items[item] = labels
        for key in self._affected(matched, labels, changed):
            self._judge(key, item, self._selectors[key].match(labels))

    def remove_item(self, item: I) -> None:
        if item not in self._items:
            return
        matched = self.selectors_of(item)
        self._refile(item, self._items.pop(item), {})
        for key in matched:
            self._judge(key, item, False)

    def set_selector(self, key: S, node: Node) -> None:
        old = self._selectors.get(key)
        if old == node:
            return
        if old is not None:
            self._unfile(key, old)
        self._selectors[key] = node
        matched = self._by_selector.setdefault(key, {})
        for place in _places(node):
            self._places[place][key] = None
        candidates = dict.fromkeys(self._candidates(node))
        for item in [item for item in matched if item not in candidates]:
            self._judge(key, item, False)
        for item in candidates:
            self._judge(key, item, node.match(self._items[item]))

    def remove_selector(self, key: S) -> None:
        node = self._selectors.pop(key, None)
        if node is None:
            return
        self._unfile(key, node)
        for item in tuple(self._by_selector[key]):
            self._judge(key, item, False)
        del self._by_selector[key]

    def _judge(self, key: S, item: I, matches: bool) -> None:
        matched = self._by_selector[key]
        if matches == (item in matched):
            return
        if matches:
            matched[item] = None
            self._started(key, item)
        else:
            del matched[item]
            self._stopped(key, item)

    def _refile(self, item: I, old: Labels, new: Labels) -> None:
        for name in old.keys() | new.keys():
            before, after = old.get(name), new.get(name)
            if before == after:
                continue
            if before is not None:
                self._take(name, before, item)
            if after is not None:
                self._holders[name].setdefault(after, {})[item] = None

    def _take(self, name: str, value: str, item: I) -> None:
        values = self._holders[name]
        values[value].pop(item, None)
        if not values[value]:
            del values[value]
        if not values:
            del self._holders[name]

    def _unfile(self, key: S, node: Node) -> None:
        for place in _places(node):
            self._places[place].pop(key, None)
            if not self._places[place]:
                del self._places[place]

    def _affected(self, matched: Iterable[S], labels: Labels, changed: frozenset[str] | None) -> list[S]:
        """Selectors whose answer for an item may have changed that had those that matched."""
        keys = dict.fromkeys(matched)
        for place in _item_places(labels):
            keys.update(self._places.get(place, {}))
        if changed is None:
            return list(keys)
        return [key for key in keys if not self._selectors[key].label_names.isdisjoint(changed)]

    def _candidates(self, node: Node) -> Iterator[I]:
        for place in _places(node):
            if place is None:
                yield from self._items
                continue
            name, value = place
            values = self._holders.get(name, {})
            for holders in values.values() if value is None else (values.get(value, {}),):
                yield from holders


def _item_places(labels: Labels) -> Iterator[Place]:
    yield None
    for name, value in labels.items():
        yield (name, value)
        yield (name, None)


def _places(node: Node) -> tuple[Place, ...]:
    """Where a selector is filed: one label's values, a label, or (None) everything; empty when it can never match."""
    wanted: Mapping[str, Requirement] = node.requirements()
    best: tuple[Place, ...] = (None,)
    weight = 10**9
    for name, requirement in wanted.items():
        if requirement.absent:
            continue
        values = requirement.values
        if values is not None and len(values) < min(weight, _MAX_VALUES):
            best, weight = tuple((name, value) for value in sorted(values)), len(values)
        elif weight > _MAX_VALUES:
            best, weight = ((name, None),), _MAX_VALUES + 1
    return best
