"""What DNS says to a query about containers' names; nothing to all others, which are none of our business.

A name that we know has an answer for every type: the addresses for A and AAAA, else none (NOERROR), since 'no such
name' to one type would deny the name. RFC 1035, 2308 (no data), 6891 (EDNS).
"""

from __future__ import annotations

import random
from functools import lru_cache
from typing import Protocol, Sequence

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rdataclass
import dns.rdatatype
import dns.reversename
import dns.rrset

TTL_SECONDS = 5
# What fits into 512 bytes, which all can take, whatever the name: 12 + 255 + 4 + 14 * 16. Of IPv6 addresses fewer.
_MOST: dict[int, int] = {dns.rdatatype.A: 14, dns.rdatatype.AAAA: 8, dns.rdatatype.PTR: 1}
_VERSION: dict[int, str] = {dns.rdatatype.A: ".", dns.rdatatype.AAAA: ":"}
_LARGEST = 1232
# What is remembered must not grow with what anybody sends.
_LONGEST_QUERY = 512


class Names(Protocol):
    """What may be known to one who asks."""

    def addresses(self, name: str) -> Sequence[str] | None:
        """Of a name in lower case; None when it is unknown."""

    def titles(self, address: str) -> Sequence[str] | None:
        """Names of an address; None when it is unknown."""


def answer(query: bytes, names: Names) -> bytes | None:
    """The answer to a query's bytes (those of a UDP datagram); None where there is nothing that we know."""
    if len(query) > _LONGEST_QUERY:
        return None
    number, rest = query[:2], query[2:]
    asked = _asked(rest)
    found = _found(*asked, names) if asked is not None else None
    said = _response(rest, tuple(found)) if found is not None else None
    return number + said if said is not None else None


# Those who ask again send the same bytes but for the first two, the query's number; a library is not fast.


@lru_cache(maxsize=4096)
def _asked(rest: bytes) -> tuple[str, str, int] | None:
    """Name in lower case, address for one that is reversed, and type that a query asks for; None for no such query."""
    try:
        message = _message(rest)
        if message.opcode() != dns.opcode.QUERY or message.flags & dns.flags.QR or len(message.question) != 1:
            return None
        (asked,) = message.question
        if asked.rdclass != dns.rdataclass.IN:
            return None
        address = dns.reversename.to_address(asked.name) if _is_reversed(asked.name) else ""
        return asked.name.to_text(omit_final_dot=True).lower(), address, asked.rdtype
    except (dns.exception.DNSException, ValueError, UnicodeError):
        return None


def _found(name: str, address: str, kind: int, names: Names) -> list[str] | None:
    """Data of the answer in DNS' text form, in any order, so that those who take the first take turns."""
    if address:
        titles = names.titles(address)
        found = None if titles is None else [f"{title}." for title in titles if kind == dns.rdatatype.PTR]
    else:
        addresses = names.addresses(name)
        found = None if addresses is None else [one for one in addresses if _VERSION.get(kind, " ") in one]
    return None if found is None else random.sample(found, min(len(found), _MOST.get(kind, 0)))


@lru_cache(maxsize=4096)
def _response(rest: bytes, found: tuple[str, ...]) -> bytes | None:
    """All but the number; None for data that DNS cannot hold."""
    message = _message(rest)
    response = dns.message.make_response(message, recursion_available=True, our_payload=_LARGEST)
    (asked,) = message.question
    try:
        if found:
            response.answer.append(dns.rrset.from_text(asked.name, TTL_SECONDS, asked.rdclass, asked.rdtype, *found))
        return response.to_wire()[2:]
    except (dns.exception.DNSException, ValueError):
        return None


def _message(rest: bytes) -> dns.message.Message:
    return dns.message.from_wire(b"\0\0" + rest)


def _is_reversed(name: dns.name.Name) -> bool:
    return name.is_subdomain(dns.reversename.ipv4_reverse_domain) or name.is_subdomain(
        dns.reversename.ipv6_reverse_domain
    )
