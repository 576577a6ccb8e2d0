"""Names, labels, selectors, addresses: what single words may look like. A checker returns what is wrong, or nothing."""

from __future__ import annotations

import re
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Callable, Iterator

from calico_plugin.errors import InvalidInput
from calico_plugin.model.problem import Problem

SelectorParser = Callable[[str], object]
"""Parses a selector or raises InvalidInput whose `hint` says where it is wrong."""

Problems = Iterator[Problem]
Network = IPv4Network | IPv6Network

MAX_NAME = 253
MAX_SELECTOR = 1024
_LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_DNS_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_DNS_LABEL = re.compile(_LABEL)
_QUALIFIED = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
_INTERFACE = re.compile(r"[A-Za-z0-9_.-]{1,15}")
_MAC = re.compile(r"[0-9A-Fa-f]{2}([:-])([0-9A-Fa-f]{2}\1){4}[0-9A-Fa-f]{2}")
_GLOBAL = re.compile(r"\bglobal\s*\(")


def name_fault(name: str) -> str:
    """DNS name rule of all objects (datamodel 2.2)."""
    if _DNS_NAME.fullmatch(name) and len(name) <= MAX_NAME:
        return ""
    mended = re.sub(r"[-.]*\.[-.]*", ".", re.sub(r"[^a-z0-9.-]+", "-", name.lower())).strip("-.")
    hint = "use a-z, 0-9, - and ., starting and ending with a letter or digit, at most 253 characters"
    return hint + (f"; {mended} would do" if mended and mended != name else "")


def label_fault(name: str) -> str:
    """One part of a DNS name, at most 63."""
    fits = _DNS_LABEL.fullmatch(name) and len(name) <= 63
    return "" if fits else "use a-z, 0-9 and -, at most 63 characters, without dots"


def label_key_fault(key: str) -> str:
    """A qualified name: an optional DNS prefix and a slash, then up to 63 of A-Za-z0-9-_. (policy V33)."""
    prefix, slash, name = key.rpartition("/")
    fits = (
        _QUALIFIED.fullmatch(name)
        and len(name) <= 63
        and (not slash or (_DNS_NAME.fullmatch(prefix) and len(prefix) <= MAX_NAME))
    )
    return "" if fits else "a label name is an optional DNS prefix and a slash, then 1 to 63 of A-Z a-z 0-9 - _ ."


def label_value_fault(value: str) -> str:
    fits = not value or (_QUALIFIED.fullmatch(value) and len(value) <= 63)
    return "" if fits else "a label value is empty or 1 to 63 of A-Z a-z 0-9 - _ ., with a letter or digit at both ends"


def interface_fault(name: str) -> str:
    return "" if _INTERFACE.fullmatch(name) else "an interface name has 1 to 15 of A-Z a-z 0-9 _ . -"


def mac_fault(mac: str) -> str:
    return "" if _MAC.fullmatch(mac) else "must be a MAC address such as 02:42:ac:1f:00:07"


def selector_problems(path: str, selector: str, parse: SelectorParser, global_allowed: bool = False) -> Problems:
    """A selector parses, is not too long, and holds global() only where it may stand, and alone (policy V1-V3)."""
    if not selector:
        return
    if len(selector) > MAX_SELECTOR:
        yield Problem(path, selector, f"a selector has at most {MAX_SELECTOR} characters")
    try:
        parse(selector)
    except InvalidInput as error:
        yield Problem(path, selector, f"{error.hint}; see the selector grammar (has(role) && role == 'web')")
        return
    if _GLOBAL.search(_unquoted(selector)):
        if not global_allowed:
            yield Problem(path, selector, "global() may only stand in a rule's namespaceSelector")
        elif not re.fullmatch(r"\s*global\s*\(\s*\)\s*", selector):
            yield Problem(path, selector, "global() must be the whole namespaceSelector")


def _unquoted(selector: str) -> str:
    return re.sub(r"'[^']*'|\"[^\"]*\"", "''", selector)


def network_or_none(text: str) -> Network | None:
    """A network with its prefix length; host bits are masked. No zone, no netmask form, digits only after the slash."""
    address, slash, length = text.partition("/")
    if not slash or not length.isdigit() or "%" in text:
        return None
    try:
        return ip_network(f"{address}/{length}", strict=False)
    except ValueError:
        return None


def is_masked(text: str) -> bool:
    """True when no host bit is set."""
    try:
        ip_network(text, strict=True)
    except ValueError:
        return False
    return True


def version_of(text: str) -> int | None:
    """4 or 6 for an address, None for anything else."""
    try:
        return None if "%" in text else ip_address(text).version
    except ValueError:
        return None


def cidr_fault(text: str, strict: bool = True) -> str:
    """A CIDR in its usual form; `strict` refuses host bits."""
    network = network_or_none(text)
    if network is None:
        version = version_of(text)
        return (
            f"write {text}/{32 if version == 4 else 128}: a prefix length is needed"
            if version
            else "must be a CIDR such as 10.50.0.0/16"
        )
    return f"has host bits set; write {network}" if strict and not is_masked(text) else ""


def single_address_version(text: str) -> int | None:
    """IP version of `10.0.0.1`, `10.0.0.1/32`, `fd00::1/128`; None when it is not one address."""
    network = network_or_none(text)
    if network is not None:
        return network.version if network.prefixlen == network.max_prefixlen else None
    return version_of(text)
