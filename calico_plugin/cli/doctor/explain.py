"""`calicoctl doctor --explain TEXT`: which known error a pasted text is, however it was quoted and wrapped. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import SequenceMatcher

from calico_plugin.cli.doctor.texts import KNOWN, Known

ALIKE = 0.5
"""Share of an example's words that a text must have to be taken for it."""
_QUOTES = re.compile(r"[\"'`“”‘’]")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_WORD = re.compile(r"[a-z][a-z-]+")


@dataclass(frozen=True, slots=True)
class Match:
    """`sure`: the pattern was found; otherwise it is the known text that is most like the given one."""

    known: Known
    sure: bool


def plain(text: str) -> str:
    """In lower case, without quotes, backslashes and colours, with single blanks."""
    return " ".join(_QUOTES.sub("", _COLOURS.sub("", text).replace("\\", "")).lower().split())


def explain(text: str) -> tuple[Match, ...]:
    """All known texts that are in it, the ones that begin latest first: in a chain of errors the last one is the cause.

    When none is, the most alike one, or nothing.
    """
    given = plain(text)
    found = [(match.start(), known) for known in KNOWN if (match := re.search(known.pattern, given))]
    if found:
        return tuple(Match(known, True) for _, known in sorted(found, key=lambda pair: -pair[0]))
    best = max(KNOWN, key=lambda known: _alike(given, known), default=None)
    return (Match(best, False),) if best and _alike(given, best) >= ALIKE else ()


def _alike(given: str, known: Known) -> float:
    """How much of an example's words the text has, misspelt ones too; 0 to 1."""
    words, wanted = set(_WORD.findall(given)), set(_WORD.findall(plain(known.example)))
    if not words or not wanted:
        return 0.0
    hits = sum(1 for word in wanted if any(SequenceMatcher(None, word, other).ratio() > 0.8 for other in words))
    return hits / len(wanted)
