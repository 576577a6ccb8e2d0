"""Durations as Go writes them (`1m30s`, `0s`, `1.5h`): Calico stores all its times so."""

from __future__ import annotations

import re

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")


def seconds(text: str) -> float:
    """`1m30s` -> 90.0. Raises ValueError that says what is understood."""
    wanted = text.strip()
    position, total = 0, 0.0
    while match := _PART.match(wanted, position):
        total += float(match[1]) * _UNITS[match[2]]
        position = match.end()
    if wanted == "0":
        return 0.0
    if not wanted or position != len(wanted):
        raise ValueError(f"{text!r} is not a duration such as 90s or 1m30s")
    return total
