"""Protocols and ports as people type them -> a packet."""

from __future__ import annotations

from calico_plugin.cli.policy.places import Place
from calico_plugin.errors import InvalidInput
from calico_plugin.model.problem import did_you_mean
from calico_plugin.policy.explain import Flow

PROTOCOLS = {"tcp": 6, "udp": 17, "icmp": 1, "icmpv6": 58, "sctp": 132, "udplite": 136}
_NAMES = {number: name for name, number in PROTOCOLS.items()}
WITH_PORTS = (6, 17, 132, 136)
_ICMP = {1: 4, 58: 6}
_ECHO = {1: 8, 58: 128}
EPHEMERAL = 49152
"""Source port where none is given: the first that nobody registers."""


def protocol_of(text: str) -> int:
    """Raises InvalidInput."""
    if text.isascii() and text.isdigit() and 0 < int(text) < 256:
        return int(text)
    number = PROTOCOLS.get(text.lower())
    if number is None:
        known = ", ".join(PROTOCOLS)
        raise InvalidInput("PROTO", text, f"use a number or one of {known}{did_you_mean(text.lower(), PROTOCOLS)}")
    return number


def flow(source: Place, destination: Place, protocol: int, port: str, source_port: int | None) -> Flow:
    """A new connection's first packet. Raises InvalidInput."""
    family = _family(source, destination, protocol)
    ends = source.address(family) or "", destination.address(family) or ""
    if protocol in _ICMP:
        kind, _, code = port.partition("/")
        return Flow(*ends, protocol, icmp_type=_number("PORT", kind or str(_ECHO[protocol]), 255, "an ICMP type"),
                    icmp_code=_number("PORT", code or "0", 255, "an ICMP code"))
    if protocol not in WITH_PORTS:
        if port:
            raise InvalidInput("PORT", port, f"protocol {protocol} has no ports")
        return Flow(*ends, protocol)
    if not port:
        raise InvalidInput("PORT", None, f"give the destination's port: {_NAMES[protocol]} has ports")
    return Flow(*ends, protocol, source_port or EPHEMERAL, _port(port, destination, protocol))


def _family(source: Place, destination: Place, protocol: int) -> int:
    common = source.families & destination.families
    if protocol in _ICMP:
        common &= {_ICMP[protocol]}
    if not common:
        raise InvalidInput(
            "SRC and DST", f"{source.name}, {destination.name}", "have no addresses of one IP version in common"
            + (f" that {_NAMES[protocol]} uses" if protocol in _ICMP else ""))
    return min(common)


def _port(text: str, destination: Place, protocol: int) -> int:
    if text.isascii() and text.isdigit():
        return _number("PORT", text, 65535, "a port")
    ports = destination.resource.spec.ports if destination.resource else ()
    for port in ports:
        if port.name == text and PROTOCOLS.get(str(port.protocol).lower(), port.protocol) == protocol:
            return port.port
    known = ", ".join(port.name for port in ports)
    hint = f"the destination's named ports: {known}" if known else "the destination names no ports; give a number"
    raise InvalidInput("PORT", text, hint)


def _number(field: str, text: str, most: int, what: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) > most:
        raise InvalidInput(field, text, f"{what} is 0 to {most}")
    return int(text)


def words(packet: Flow) -> str:
    """`tcp 5432`, `icmp 8`."""
    name = _NAMES.get(packet.protocol, f"protocol {packet.protocol}")
    if packet.icmp_type is not None:
        return f"{name} type {packet.icmp_type}" + (f" code {packet.icmp_code}" if packet.icmp_code else "")
    return f"{name} {packet.destination_port}" if packet.destination_port is not None else name
