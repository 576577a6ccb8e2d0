"""A real, small DNS server, for tests: `python dns_server.py ADDRESS NAME=IP...`; NXDOMAIN for all other names.

Says `ready` once it serves UDP port 53 of the address, then writes each question on a line: `TYPE NAME FROM`.
"""
from __future__ import annotations

import socket
import sys

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset


def answer(query: dns.message.Message, known: dict[str, str]) -> dns.message.Message:
    """What a server that knows these names says."""
    asked = query.question[0]
    response = dns.message.make_response(query, recursion_available=True)
    address = known.get(asked.name.to_text(omit_final_dot=True).lower())
    if address is None:
        response.set_rcode(dns.rcode.NXDOMAIN)
    elif asked.rdtype == dns.rdatatype.A:
        response.answer.append(dns.rrset.from_text(asked.name, 60, "IN", "A", address))
    return response


def main() -> None:
    """Serve until killed."""
    address, *pairs = sys.argv[1:]
    known = dict(pair.split("=") for pair in pairs)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as server:
        server.bind((address, 53))
        print("ready", flush=True)
        while True:
            data, client = server.recvfrom(4096)
            query = dns.message.from_wire(data)
            asked = query.question[0]
            print(dns.rdatatype.to_text(asked.rdtype), asked.name.to_text(), client[0], flush=True)
            server.sendto(answer(query, known).to_wire(), client)


if __name__ == "__main__":
    main()
