"""Names as they stand in a DNS query (RFC 1035 3.1), as far as the kernel compares them.

A query's name begins 12 bytes after its UDP header: labels, each behind its length, the last one empty. The kernel
looks at the first four of these bytes only, which tells most names apart; what looks like one of ours is then read.
"""

from __future__ import annotations

import re
from ipaddress import ip_address

_NAME = re.compile(r"(?!.{254})[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*")
# Bit 5 tells upper from lower case of a letter. The first byte is a length.
MASK = b"\xff\xdf\xdf\xdf"


def is_possible(name: str) -> bool:
    """Whether it can be asked for: no empty or too long part, letters, digits, `-` and `_`."""
    return _NAME.fullmatch(name) is not None


def prefix(name: str) -> bytes:
    """The four bytes by which the kernel knows queries for a possible name, without case."""
    # The empty label behind is followed by the type, whose first byte is 0 for all types that matter.
    wire = b"".join(bytes([len(part)]) + part.encode() for part in name.split(".", 3)[:3]) + bytes(3)
    return bytes((wire[0], wire[1] & 0xDF, wire[2] & 0xDF, wire[3] & 0xDF))


def reverse(address: str) -> str:
    """The name under which an address is asked for: `4.3.2.1.in-addr.arpa`."""
    return ip_address(address).reverse_pointer
