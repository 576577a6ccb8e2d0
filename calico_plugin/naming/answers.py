"""What DNS says to a query about containers' names; nothing to all others, which are none of our business.

A name that we know has an answer for every type: the addresses for A and AAAA, else none (NOERROR), since 'no such
name' to one type would deny the name. RFC 1035, 2308 (no data), 6891 (EDNS).
"""

from __future__ import annotations

import random
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
_MOST = {dns.rdatatype.A: 14, dns.rdatatype.AAAA: 8, dns.rdatatype.PTR: 1}
_VERSION = {dns.rdatatype.A: ".", dns.rdatatype.AAAA: ":"}
_LARGEST = 1232


class Names(Protocol):
    """What may be known to one who asks."""

    def addresses(self, name: str) -> Sequence[str] | None:
        """Of a name in lower case; None when it is unknown."""

    def titles(self, address: str) -> Sequence[str] | None:
        """Names of an address; None when it is unknown."""


def answer(query: bytes, names: Names) -> bytes | None:
    """The answer to a query's bytes (those of a UDP datagram); None where there is nothing that we know."""
    try:
        message = dns.message.from_wire(query)
        return _answer(message, names)
    except (dns.exception.DNSException, ValueError, UnicodeError):
        return None


def _answer(message: dns.message.Message, names: Names) -> bytes | None:
    if message.opcode() != dns.opcode.QUERY or message.flags & dns.flags.QR or len(message.question) != 1:
        return None
    asked = message.question[0]
    if asked.rdclass != dns.rdataclass.IN:
        return None
    found = _found(asked.name, asked.rdtype, names)
    if found is None:
        return None
    response = dns.message.make_response(message, recursion_available=True, our_payload=_LARGEST)
    if found:
        response.answer.append(dns.rrset.from_text(asked.name, TTL_SECONDS, asked.rdclass, asked.rdtype, *found))
    return response.to_wire()


def _found(name: dns.name.Name, kind: dns.rdatatype.RdataType, names: Names) -> list[str] | None:
    """Data of the answer in DNS' text form, in any order, so that those who take the first take turns."""
    if kind == dns.rdatatype.PTR:
        address = dns.reversename.to_address(name) if _is_reversed(name) else ""
        titles = names.titles(address) if address else None
        found = None if titles is None else [f"{title}." for title in titles]
    else:
        addresses = names.addresses(name.to_text(omit_final_dot=True).lower())
        found = None if addresses is None else [one for one in addresses if _VERSION.get(kind, " ") in one]
    return None if found is None else random.sample(found, min(len(found), _MOST.get(kind, 0)))


def _is_reversed(name: dns.name.Name) -> bool:
    return name.is_subdomain(dns.reversename.ipv4_reverse_domain) or name.is_subdomain(
        dns.reversename.ipv6_reverse_domain
    )
