"""Objects of the table by name, and what others get of them: the same copy as long as nothing changed, so that a whole
kind of objects is told to be unchanged at one look.
"""

from __future__ import annotations

from typing import Any, Iterable, Mapping, TypeVar

T = TypeVar("T")


class Kept(dict[str, T]):
    """A dict; changes go by `[]`, `del`, `pop` and `update`."""

    def __init__(self, items: Mapping[str, T] | Iterable[tuple[str, T]] = ()) -> None:
        super().__init__(items)
        self._copy: Mapping[str, T] | None = None

    def copied(self) -> Mapping[str, T]:
        """As it is now; the same instance as last time if nothing was touched since."""
        if self._copy is None:
            self._copy = dict(self)
        return self._copy

    def __setitem__(self, name: str, item: T) -> None:
        self._copy = None
        super().__setitem__(name, item)

    def __delitem__(self, name: str) -> None:
        self._copy = None
        super().__delitem__(name)

    def pop(self, name: str, *default: Any) -> Any:
        if name in self:
            self._copy = None
        return super().pop(name, *default)

    def update(self, *items: Any, **named: T) -> None:
        self._copy = None
        super().update(*items, **named)
