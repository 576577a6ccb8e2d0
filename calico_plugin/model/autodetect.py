"""How a host's own address is to be found: IP_AUTODETECTION_METHOD (node-and-cli 1.2), parsed and checked."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_network

FIRST_FOUND, CAN_REACH, CIDR = "first-found", "can-reach", "cidr"
INTERFACE, SKIP_INTERFACE = "interface", "skip-interface"
KNOWN = f"{FIRST_FOUND}, {CAN_REACH}=DESTINATION, {INTERFACE}=REGEX[,…], {SKIP_INTERFACE}=REGEX[,…] or {CIDR}=CIDR[,…]"


@dataclass(frozen=True, slots=True)
class Method:
    """`kind` is one of the five words, `values` what stands after its `=`, split at commas (one item for can-reach)."""

    kind: str = FIRST_FOUND
    values: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.kind}={','.join(self.values)}" if self.values else self.kind


def parse(text: str) -> Method:
    """Raises ValueError that says what would be right."""
    kind, equals, rest = text.strip().partition("=")
    if kind in ("", FIRST_FOUND) and not equals:
        return Method()
    if kind not in (CAN_REACH, INTERFACE, SKIP_INTERFACE, CIDR):
        raise ValueError(f"use {KNOWN}")
    values = (rest.strip(),) if kind == CAN_REACH else tuple(part.strip() for part in rest.split(",") if part.strip())
    if not any(values):
        raise ValueError(f"{kind}= needs a value")
    for value in values:
        _check(kind, value)
    return Method(kind, values)


def _check(kind: str, value: str) -> None:
    try:
        if kind in (INTERFACE, SKIP_INTERFACE):
            re.compile(value)
        elif kind == CIDR:
            ip_network(value, strict=False)
    except re.error as error:
        raise ValueError(f"{value!r} is no regular expression: {error}") from error
    except ValueError as error:
        raise ValueError(f"{value!r} is no CIDR") from error
