"""Networks and addresses as numbers. `ipaddress` objects are right but slow where thousands of blocks are walked."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from calico_plugin.errors import InvalidInput

Address = IPv4Address | IPv6Address
BITS = {4: 32, 6: 128}


@dataclass(frozen=True, slots=True)
class Cidr:
    """A masked network: IP version, first address as a number, prefix length."""

    version: int
    base: int
    prefix: int

    @property
    def size(self) -> int:
        return 1 << (BITS[self.version] - self.prefix)

    @property
    def last(self) -> int:
        return self.base + self.size - 1

    def __contains__(self, number: int) -> bool:
        return self.base <= number <= self.last

    def at(self, offset: int) -> Address:
        return address(self.version, self.base + offset)

    def covers(self, other: Cidr) -> bool:
        return self.version == other.version and self.base <= other.base and other.last <= self.last

    def overlaps(self, other: Cidr) -> bool:
        return self.version == other.version and self.base <= other.last and other.base <= self.last

    def blocks(self, prefix: int) -> int:
        """How many blocks of that prefix length it holds."""
        return 1 << (prefix - self.prefix)

    def block(self, index: int, prefix: int) -> Cidr:
        return Cidr(self.version, self.base + (index << (BITS[self.version] - prefix)), prefix)

    def block_of(self, number: int, prefix: int) -> Cidr:
        """The aligned block of that prefix length around an address."""
        shift = BITS[self.version] - prefix
        return Cidr(self.version, (number >> shift) << shift, prefix)

    def __str__(self) -> str:
        return _text(self.version, self.base, self.prefix)


@lru_cache(maxsize=8192)
def _text(version: int, base: int, prefix: int) -> str:
    return f"{address(version, base)}/{prefix}"


def address(version: int, number: int) -> Address:
    return IPv4Address(number) if version == 4 else IPv6Address(number)


@lru_cache(maxsize=8192)
def parse(text: str) -> Cidr:
    """A network from its text; host bits are masked off. Raises ValueError."""
    network = ip_network(text, strict=False)
    return Cidr(network.version, int(network.network_address), network.prefixlen)


def parse_address(text: str | Address, field: str = "address") -> Address:
    """An address from user input. Raises InvalidInput that names the field."""
    try:
        return ip_address(text)
    except ValueError as error:
        raise InvalidInput(field, str(text), "an IPv4 or IPv6 address without prefix length") from error


def parse_cidr(text: str, field: str = "cidr") -> Cidr:
    """A network from user input. Raises InvalidInput that names the field."""
    try:
        return parse(text)
    except ValueError as error:
        raise InvalidInput(field, text, "a network such as 10.50.0.0/16 or fd00:50::/64") from error
