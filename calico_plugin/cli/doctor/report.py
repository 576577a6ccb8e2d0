"""Findings as text for people and as JSON."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from typing import Iterable, Iterator, Sequence

import click

from calico_plugin.cli.doctor.finding import Finding, Level

_COLOURS = {Level.OK: "green", Level.SKIP: "bright_black", Level.WARN: "yellow", Level.FAIL: "red"}
_MARGIN = 6
_NAME = 13


def text(findings: Sequence[Finding], width: int, coloured: bool) -> str:
    """Problems last, so that they are what stays on the screen; then a line that counts."""
    ordered = sorted(findings, key=lambda finding: list(_COLOURS).index(finding.level))
    lines = [line for finding in ordered for line in _lines(finding, width, coloured)]
    return "\n".join([*lines, "", counted(findings)]) + "\n"


def _lines(finding: Finding, width: int, coloured: bool) -> Iterator[str]:
    word = finding.level.value.upper().ljust(_MARGIN)
    head = click.style(word, fg=_COLOURS[finding.level]) if coloured else word
    first, *rest = _wrapped(finding.summary, width - _MARGIN - _NAME - 1)
    yield f"{head}{finding.check:<{_NAME}} {first}"
    indent = " " * (_MARGIN + _NAME + 1)
    yield from (indent + line for line in rest)
    yield from (indent + line for line in _wrapped(finding.meaning, width - len(indent)) if finding.meaning)
    if finding.command:
        # Not wrapped: it is there to be copied.
        yield f"{indent}-> {finding.command}"


def _wrapped(words: str, width: int) -> list[str]:
    return textwrap.wrap(words, max(width, 40), break_long_words=False, break_on_hyphens=False) or [""]


def counted(findings: Iterable[Finding]) -> str:
    """`20 ok, 1 warning, 2 failures`."""
    number = Counter(finding.level for finding in findings)
    parts = [f"{number[Level.OK]} ok", _plural(number[Level.WARN], "warning"), _plural(number[Level.FAIL], "failure")]
    return ", ".join([*parts, f"{number[Level.SKIP]} not looked at"] if number[Level.SKIP] else parts)


def _plural(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def document(findings: Iterable[Finding]) -> str:
    """JSON: a list of findings."""
    return json.dumps([finding.document() for finding in findings], indent=2)
