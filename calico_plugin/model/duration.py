"""Durations as Go's `time.Duration` writes them (`1m30s`, `0s`, `1.5h`): Calico stores all its times so."""

from __future__ import annotations

import re

_UNITS = {
    "ns": 1,
    "us": 10**3,
    "µs": 10**3,
    "μs": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)")


def seconds(text: str) -> float:
    """`1m30s` -> 90.0; not negative. White space around it is no matter. Raises ValueError that names the text."""
    try:
        found = nanoseconds(text.strip())
    except ValueError as error:
        raise ValueError(f"{text!r} {error}") from None
    if found < 0:
        raise ValueError(f"{text!r} must be a duration of 0 or more")
    return found / 10**9


def nanoseconds(text: str) -> int:
    """`1.5ms` -> 1500000, `0` -> 0, `-1s` -> -1000000000. Raises ValueError that says what is understood."""
    sign, body = (-1, text[1:]) if text.startswith("-") else (1, text.removeprefix("+"))
    if body == "0":
        return 0
    total, position = 0.0, 0
    while part := _PART.match(body, position):
        whole, _, fraction = part[1].partition(".")
        unit = _UNITS[part[2]]
        total += int(whole or 0) * unit + (int(fraction) * unit / 10 ** len(fraction) if fraction else 0)
        position = part.end()
    if position == 0 or position != len(body):
        raise ValueError("must be a duration such as 30s, 1m30s or 500ms")
    return sign * int(total)


def as_text(given: int) -> str:
    """Nanoseconds as Go writes them: `0s`, `1m30s`, `2h0m0s`, `1.5s`, `500ms`."""
    if given < 0:
        return "-" + as_text(-given)
    if given == 0:
        return "0s"
    if given < 10**9:
        unit, size = ("ms", 10**6) if given >= 10**6 else ("µs", 10**3) if given >= 10**3 else ("ns", 1)
        return _decimal(given, size) + unit
    minutes, rest = divmod(given, _UNITS["m"])
    hours, minutes = divmod(minutes, 60)
    tail = _decimal(rest, 10**9) + "s"
    if hours:
        return f"{hours}h{minutes}m{tail}"
    return f"{minutes}m{tail}" if minutes else tail


def _decimal(value: int, size: int) -> str:
    whole, rest = divmod(value, size)
    fraction = str(rest).rjust(len(str(size)) - 1, "0").rstrip("0") if rest else ""
    return f"{whole}.{fraction}" if fraction else str(whole)
