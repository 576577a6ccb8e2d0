"""Text for people: tables as the original lays them out, JSON, and the parsing of `-o`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Sequence

from calico_plugin.cli import terminal
from calico_plugin.errors import InvalidInput
from calico_plugin.model.problem import did_you_mean

_GAP = "   "
_PLAIN = ("ps", "wide", "yaml", "yml", "json")
_WITH_VALUE = ("custom-columns", "go-template", "go-template-file")


@dataclass(frozen=True, slots=True)
class Form:
    """How to print; `name` is ps, wide, custom-columns, yaml, json or go-template, `value` what followed the `=`."""

    name: str
    value: str = ""

    @property
    def is_table(self) -> bool:
        return self.name in ("ps", "wide", "custom-columns")

    @property
    def headings(self) -> tuple[str, ...]:
        return tuple(self.value.split(",")) if self.name == "custom-columns" else ()


def parse_form(text: str) -> Form:
    """Raises InvalidInput for an unknown one, or one that lacks its value."""
    name, equals, value = text.partition("=")
    if name in _PLAIN and not equals:
        return Form("yaml" if name == "yml" else name)
    if name not in _WITH_VALUE:
        known = ", ".join((*_PLAIN, *(f"{word}=…" for word in _WITH_VALUE)))
        hint = f"unrecognized output format {text!r}{did_you_mean(name, (*_PLAIN, *_WITH_VALUE))}; known: {known}"
        raise InvalidInput("--output", text, hint)
    if not value:
        raise InvalidInput(
            "--output", text, f"write {name}=" + ("HEADING,HEADING" if name == "custom-columns" else "TEMPLATE")
        )
    if name == "go-template-file":
        return Form("go-template", _read(value))
    return Form(name, value)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput("--output", f"go-template-file={path}", f"cannot be read: {error}") from error


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns padded to the longest cell and three blanks, also after the last; a blank line at the end.

    On a terminal, long cells are cut so that lines fit.
    """
    headings, rows = terminal.fit(headings, rows, len(_GAP), terminal.width())
    widths = [max(len(row[index]) for row in (headings, *rows)) for index in range(len(headings))]
    lines = ["".join(cell.ljust(width) + _GAP for cell, width in zip(row, widths)) for row in (headings, *rows)]
    return "\n".join(lines) + "\n\n"


class Row:
    """Lines of a table whose rows are not all known yet: a column never gets narrower."""

    def __init__(self, headings: Sequence[str]) -> None:
        self._widths = [max(len(heading), 5) for heading in headings]

    def line(self, cells: Sequence[str]) -> str:
        self._widths = [max(width, len(cell)) for width, cell in zip(self._widths, cells)]
        return "".join(cell.ljust(width) + _GAP for cell, width in zip(cells, self._widths))


def boxed(headings: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[bool] = ()) -> str:
    """A bordered table; `right` says which columns stand at the right. On a terminal it is fitted as `table` is."""
    room = terminal.width()
    headings, rows = terminal.fit(headings, rows, len(" | "), room - 1 if room else None)
    widths = [max(len(row[index]) for row in (headings, *rows)) for index in range(len(headings))]
    rule = "+" + "+".join("-" * (width + 2) for width in widths) + "+"
    aligned = [right[index] if right else False for index in range(len(headings))]

    def line(cells: Sequence[str], to_right: Sequence[bool]) -> str:
        padded = [cell.rjust(width) if r else cell.ljust(width) for cell, width, r in zip(cells, widths, to_right)]
        return "| " + " | ".join(padded) + " |"

    body = [line(row, aligned) for row in rows]
    return "\n".join([rule, line(headings, [False] * len(headings)), rule, *body, rule]) + "\n"


def dump_json(value: Any) -> str:
    """Two blanks of indent, no final newline: as the original prints it."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
