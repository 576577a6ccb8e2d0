"""YAML as the original prints it: names sorted, lists not indented, quotes only where a reader would take a word for
something else.

Source: the output of Go's YAML library as recorded in the golden data; the quoting rules follow YAML 1.1's list of
plain words.
"""

from __future__ import annotations

import json
import re
from typing import Any, Iterator, Mapping

from calico_plugin.cli.manifest import scalar

_INDICATORS = "-?:,[]{}#&*!|>'\"%@`"
_BASE60 = re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")
_DATE = re.compile(r"\d{4}-\d{1,2}-\d{1,2}([Tt ].*)?")
_SPECIAL = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)|<<|=")
_UNPRINTABLE = re.compile(r"[^\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]|\ufeff")


def dump(value: Any) -> str:
    """A document's text, with its final newline."""
    return "\n".join(_block(value, "")) + "\n"


def _block(value: Any, indent: str) -> Iterator[str]:
    if isinstance(value, Mapping) and value:
        for name in sorted(value):
            yield from _entry(f"{indent}{_text(str(name))}:", value[name], indent)
    elif isinstance(value, (list, tuple)) and value:
        for item in value:
            yield from _item(item, indent)
    else:
        yield f"{indent}{_inline(value, indent)}"


def _entry(head: str, value: Any, indent: str) -> Iterator[str]:
    if isinstance(value, Mapping) and value:
        yield head
        yield from _block(value, indent + "  ")
    elif isinstance(value, (list, tuple)) and value:
        yield head
        yield from _block(value, indent)
    else:
        yield f"{head} {_inline(value, indent)}"


def _item(value: Any, indent: str) -> Iterator[str]:
    """A list's entry: its first line stands after the dash."""
    if isinstance(value, (Mapping, list, tuple)) and value:
        lines = list(_block(value, indent + "  "))
        yield f"{indent}- {lines[0][len(indent) + 2:]}"
        yield from lines[1:]
    else:
        yield f"{indent}- {_inline(value, indent)}"


def _inline(value: Any, indent: str) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return json.dumps(value)
    if isinstance(value, str):
        return (
            _literal(value, indent)
            if "\n" in value and not _UNPRINTABLE.search(value.replace("\n", ""))
            else _text(value)
        )
    return "{}" if isinstance(value, Mapping) else "[]"


def _literal(text: str, indent: str) -> str:
    """Several lines as a literal block."""
    chomp = "" if text.endswith("\n") and not text.endswith("\n\n") else "+" if text.endswith("\n") else "-"
    hint = "2" if text[:1] in " \n" else ""
    lines = text.removesuffix("\n").split("\n")
    return f"|{hint}{chomp}\n" + "\n".join(f"{indent}  {line}" if line else "" for line in lines)


def _text(text: str) -> str:
    if (
        not text
        or not isinstance(scalar(text), str)
        or _BASE60.fullmatch(text)
        or _DATE.fullmatch(text)
        or _SPECIAL.fullmatch(text)
    ):
        return json.dumps(text, ensure_ascii=False)
    if _UNPRINTABLE.search(text):
        return json.dumps(text, ensure_ascii=True)
    return text if _is_plain(text) else "'" + text.replace("'", "''") + "'"


def _is_plain(text: str) -> bool:
    first = text[0]
    if first in _INDICATORS and not (first in "-?:" and len(text) > 1 and text[1] != " "):
        return False
    if text != text.strip(" ") or text.startswith(("---", "...")):
        return False
    return ": " not in text and " #" not in text and not text.endswith(":")
