"""Names as they stand in a DNS query (RFC 1035 3.1), as far as the kernel compares them.

A query's name begins 12 bytes after its UDP header: labels, each behind its length, the last one empty. The kernel
looks at the first four of these bytes only, which tells most names apart; what looks like one of ours is then read.
"""

from __future__ import annotations

from ipaddress import ip_address

_LONGEST_LABEL, _LONGEST_NAME = 63, 253
# Bit 5 tells upper from lower case of a letter. The first byte is a length.
MASK = b"\xff\xdf\xdf\xdf"


def labels(name: str) -> tuple[bytes, ...] | None:
    """The labels of a name; None for what cannot be one: empty or too long parts, characters beyond ASCII."""
    if not name.isascii() or len(name) > _LONGEST_NAME:
        return None
    parts = tuple(part.encode() for part in name.split("."))
    return parts if all(0 < len(part) <= _LONGEST_LABEL for part in parts) else None


def prefix(name: str) -> bytes:
    """The four bytes by which the kernel knows queries for a name, without case. Raises ValueError for no name."""
    parts = labels(name)
    if parts is None:
        raise ValueError(f"{name!r} is no DNS name")
    # The empty label is followed by the type, whose first byte is 0 for all types that matter.
    wire = b"".join(bytes([len(part)]) + part for part in parts) + bytes(3)
    return bytes(byte & mask for byte, mask in zip(wire, MASK))


def reverse(address: str) -> str:
    """The name under which an address is asked for: `4.3.2.1.in-addr.arpa`."""
    return ip_address(address).reverse_pointer
