"""Progress of long work on standard error, for people at a terminal only: nothing of it is ever in a pipe or a log."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import Iterable, Iterator, Sequence, TypeVar

T = TypeVar("T")

FEW = 20
"""So many objects are done before anybody would look."""


def wanted() -> bool:
    return sys.stderr.isatty()


def track(items: Sequence[T], what: str) -> Iterable[T]:
    """The items, with a bar while they are many."""
    if len(items) <= FEW or not wanted():
        return items
    from rich.console import Console
    from rich.progress import track as bar

    return bar(items, description=what, console=Console(stderr=True), transient=True)


@contextmanager
def working(what: str) -> Iterator[None]:
    """A turning mark beside `what` as long as the block takes."""
    if not wanted():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield
