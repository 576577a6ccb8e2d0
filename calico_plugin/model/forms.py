"""How single values are written: durations, AS numbers, ports, protocols. Each function returns the stored form or
raises ValueError.

Sources: Go's `time.Duration` text form, Calico's `numorstring` types (datamodel 2.1, policy 2.6).
"""

from __future__ import annotations

import re

PROTOCOLS = ("TCP", "UDP", "ICMP", "ICMPv6", "SCTP", "UDPLite")
MAX_AS_NUMBER = 2**32 - 1
MAX_PORT = 65535

_NANOSECONDS = {
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
_PORT_NAME = re.compile(r"(?=.*[a-z])[a-z0-9]([a-z0-9-]*[a-z0-9])?")


def parse_duration(text: str) -> int:
    """Nanoseconds of ``1m30s``, ``500ms``, ``0``."""
    sign, body = (-1, text[1:]) if text.startswith("-") else (1, text.removeprefix("+"))
    if body == "0":
        return 0
    total, position = 0.0, 0
    for part in _PART.finditer(body):
        if part.start() != position:
            break
        whole, _, fraction = part[1].partition(".")
        unit = _NANOSECONDS[part[2]]
        total += int(whole or 0) * unit + (int(fraction) * unit / 10 ** len(fraction) if fraction else 0)
        position = part.end()
    if position == 0 or position != len(body):
        raise ValueError("must be a duration such as 30s, 1m30s or 500ms")
    return sign * int(total)


def format_duration(nanoseconds: int) -> str:
    """Text as Go writes it: ``0s``, ``1m30s``, ``2h0m0s``, ``1.5s``, ``500ms``."""
    if nanoseconds < 0:
        return "-" + format_duration(-nanoseconds)
    if nanoseconds == 0:
        return "0s"
    if nanoseconds < 10**9:
        unit, size = ("ms", 10**6) if nanoseconds >= 10**6 else ("µs", 10**3) if nanoseconds >= 10**3 else ("ns", 1)
        return _decimal(nanoseconds, size) + unit
    minutes, rest = divmod(nanoseconds, _NANOSECONDS["m"])
    hours, minutes = divmod(minutes, 60)
    seconds = _decimal(rest, 10**9) + "s"
    if hours:
        return f"{hours}h{minutes}m{seconds}"
    return f"{minutes}m{seconds}" if minutes else seconds


def _decimal(value: int, size: int) -> str:
    whole, rest = divmod(value, size)
    fraction = str(rest).rjust(len(str(size)) - 1, "0").rstrip("0") if rest else ""
    return f"{whole}.{fraction}" if fraction else str(whole)


def duration(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"must be a duration with a unit, such as {value}s")
    return format_duration(parse_duration(value))


def as_number(value: object) -> int:
    """64512, "64512" or dotted "1.10" (= 65546)."""
    hint = f"must be an AS number from 0 to {MAX_AS_NUMBER}, plain or dotted (1.10)"
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError(hint)
    if isinstance(value, str):
        match = re.fullmatch(r"(?:(\d{1,10})\.)?(\d{1,10})", value)
        if not match or (match[1] and (int(match[1]) > 65535 or int(match[2]) > 65535)):
            raise ValueError(hint)
        value = int(match[1] or 0) * 65536 + int(match[2])
    if not 0 <= value <= MAX_AS_NUMBER:
        raise ValueError(hint)
    return value


def protocol(value: object) -> int | str:
    """A known name in its exact spelling, or 1 to 255; digits in quotes are a number."""
    if isinstance(value, str) and value.isdigit():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 255:
        return value
    if isinstance(value, str) and value in PROTOCOLS:
        return value
    near = [name for name in PROTOCOLS if isinstance(value, str) and name.lower() == value.lower()]
    raise ValueError(f"use {', '.join(PROTOCOLS)} or 1-255" + (f"; did you mean {near[0]}?" if near else ""))


def port(value: object) -> int | str:
    """80, "80", "8000:8100" or a port name; a range of one is stored as the number."""
    if isinstance(value, int) and not isinstance(value, bool):
        return _port_number(value)
    if not isinstance(value, str):
        raise ValueError("must be a port number, a range such as 8000:8100, or a port name")
    if value.isdigit():
        return _port_number(int(value))
    if re.fullmatch(r"\d+:\d+", value):
        low, high = (_port_number(int(part)) for part in value.split(":"))
        if low > high:
            raise ValueError(f"port range {value} is reversed; write {high}:{low}")
        return low if low == high else f"{low}:{high}"
    if re.fullmatch(r"\d+-\d+", value):
        raise ValueError(f"a port range has a colon; write {value.replace('-', ':')}")
    return port_name(value)


def _port_number(value: int) -> int:
    if not 1 <= value <= MAX_PORT:
        raise ValueError(f"must be a port from 1 to {MAX_PORT}")
    return value


def port_name(value: str) -> str:
    """At most 15 of a-z, 0-9 and `-`, with a letter, no dash at an end or twice in a row (RFC 6335, 5.1)."""
    if len(value) > 15 or "--" in value or not _PORT_NAME.fullmatch(value):
        raise ValueError(
            "a port name has 1 to 15 of a-z, 0-9 and -, with a letter, no dash at an end or twice in a row"
        )
    return value


def number(value: int | float) -> int | float:
    """A number as Go writes it: a whole float has no point."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1e21 else value
