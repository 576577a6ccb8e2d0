"""What is wrong with an object that a user gave: the exact path, the value, and what would be right."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Iterable


@dataclass(frozen=True, slots=True)
class Problem:
    """`path` is the member's place (``spec.ingress[0].action``); `value` None means that it is missing."""

    path: str
    value: Any
    hint: str

    def __str__(self) -> str:
        shown = "" if self.value is None else f" = {_shown(self.value)}"
        return f"{self.path}{shown}: {self.hint}"


def _shown(value: Any) -> str:
    text = {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def member(path: str, name: str) -> str:
    """Path of a member: ``spec.cidr``; names that hold dots or blanks stand in brackets: ``metadata.labels["a/b"]``."""
    if not name.replace("_", "").replace("-", "").isalnum():
        return f'{path}["{name}"]'
    return f"{path}.{name}" if path else name


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word that is most like the given one, or nothing when none is near."""
    spelled = {name.lower(): name for name in known}
    near = get_close_matches(word.lower(), list(spelled), n=1, cutoff=0.6)
    return spelled[near[0]] if near else ""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean X?` with the nearest known word, or nothing when none is near."""
    near = nearest(word, known)
    return f"; did you mean {near}?" if near else ""
