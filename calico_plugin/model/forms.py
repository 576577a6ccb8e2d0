"""How single values are written: durations, AS numbers, ports, protocols. Each function returns the stored form or
raises ValueError.

Sources: Calico's `numorstring` types (datamodel 2.1, policy 2.6).
"""

from __future__ import annotations

import re

from calico_plugin.model.duration import as_text, nanoseconds

PROTOCOLS = ("TCP", "UDP", "ICMP", "ICMPv6", "SCTP", "UDPLite")
MAX_AS_NUMBER = 2**32 - 1
MAX_PORT = 65535

_PORT_NAME = re.compile(r"(?=.*[a-z])[a-z0-9]([a-z0-9-]*[a-z0-9])?")


def duration(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"must be a duration with a unit, such as {value}s")
    return as_text(nanoseconds(value))


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
