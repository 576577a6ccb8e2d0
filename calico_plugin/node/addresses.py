"""The addresses under which a node is known: what was asked for, is stored, is found; and who else claims them.

Pure: the kernel's view and the other nodes come in as values (node-and-cli 1.2, 1.4).
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_interface
from typing import Callable, Iterable

from calico_plugin.config import AUTODETECT, NONE, NodeSettings
from calico_plugin.errors import Conflict, InvalidInput
from calico_plugin.model.autodetect import Method
from calico_plugin.model.resources import Node
from calico_plugin.node.detect import Reach, detect, find
from calico_plugin.node.interfaces import Interface

METHODS = "IP_AUTODETECTION_METHOD=interface=NAME, cidr=NETWORK or can-reach=ADDRESS"


@dataclass(frozen=True, slots=True)
class Addresses:
    """With prefix length, or empty. `notes` are log lines (level, text) about how they were chosen."""

    ipv4: str
    ipv6: str
    notes: tuple[tuple[str, str], ...] = ()

    def bare(self) -> tuple[str, ...]:
        return tuple(str(ip_interface(one).ip) for one in (self.ipv4, self.ipv6) if one)


@dataclass(frozen=True, slots=True)
class View:
    """What a decision about addresses stands on."""

    interfaces: tuple[Interface, ...]
    reach: Reach
    others: tuple[Node, ...]

    def taken(self) -> dict[str, str]:
        """Bare address -> name of the other node that has it."""
        return {address: node.name for node in self.others for address in node_addresses(node)}


def node_addresses(node: Node) -> tuple[str, ...]:
    """Bare BGP addresses of a Node; broken ones count as absent."""
    bgp = node.spec.bgp
    found = []
    for text in (bgp.ipv4_address, bgp.ipv6_address) if bgp else ():
        try:
            found.append(str(ip_interface(text).ip))
        except ValueError:
            continue
    return tuple(found)


def resolve(settings: NodeSettings, stored: Node | None, view: View) -> Addresses:
    """The node's addresses. Raises InvalidInput when one that must be is not found: every candidate with its reason."""
    bgp = stored.spec.bgp if stored else None
    notes: list[tuple[str, str]] = []
    note = _collect(notes)
    ipv4 = _one("IP", settings.ip, settings.ip_method, bgp.ipv4_address if bgp else "", view, 4, note)
    ipv6 = _one("IP6", settings.ip6, settings.ip6_method, bgp.ipv6_address if bgp else "", view, 6, note)
    return Addresses(ipv4, ipv6, tuple(notes))


Note = Callable[[str, str], None]


def _collect(notes: list[tuple[str, str]]) -> Note:
    return lambda level, text: notes.append((level, text))


def _one(variable: str, wanted: str, method: Method, stored: str, view: View, version: int, note: Note) -> str:
    if wanted == NONE or (version == 6 and not wanted):
        return stored
    if not wanted and stored:
        if not find(stored, view.interfaces):
            note("warning", f"Unable to confirm IPv{version} address {stored} is assigned to this host")
        return stored
    if wanted and wanted != AUTODETECT:
        return _given(variable, wanted, view, version, note)
    return _detected(method, stored, view, version, note)


def _given(variable: str, wanted: str, view: View, version: int, note: Note) -> str:
    here = find(wanted, view.interfaces)
    if not here:
        note("warning", f"Unable to confirm IPv{version} address {wanted} is assigned to this host")
    note("info", f"Using IPv{version} address from environment: {variable}={wanted}")
    if "/" in wanted:
        return wanted
    # The prefix length decides what counts as the same subnet.
    return here.address or str(ip_interface(wanted))


def _detected(method: Method, stored: str, view: View, version: int, note: Note) -> str:
    found = detect(method, version, view.interfaces, view.reach, view.taken())
    for reason in found.rejected:
        note("debug", f"Not used: {reason}")
    if found:
        note("info", f"Using autodetected IPv{version} address on interface {found.interface}: {found.address}")
        note("debug", f"It was found {found.how}")
        return found.address
    if stored:
        note("warning", f"No IPv{version} address was found by {method}; the stored one, {stored}, is kept")
        if not find(stored, view.interfaces):
            note("warning", f"Unable to confirm IPv{version} address {stored} is assigned to this host")
        return stored
    raise _nothing_found(method, version, found.rejected)


def _nothing_found(method: Method, version: int, rejected: Iterable[str]) -> InvalidInput:
    variable = "IP_AUTODETECTION_METHOD" if version == 4 else "IP6_AUTODETECTION_METHOD"
    seen = "; ".join(rejected) or "there is no address at all"
    prefix = "IP" if version == 4 else "IP6"
    return InvalidInput(
        variable,
        str(method),
        f"no IPv{version} address of this host was found ({seen}). "
        f"Say which one to use: {prefix}=ADDRESS, or {METHODS.replace('IP_', prefix + '_')}",
    )


class AddressTaken(Conflict):
    """Another node has one of our addresses."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.args = (text,)


def check_conflicts(name: str, addresses: Addresses, stored: Node | None, view: View) -> tuple[str, ...]:
    """Warnings about this node's own change of address. Raises AddressTaken, which names every node that has ours."""
    mine = set(addresses.bare())
    claims = [
        f"Calico node '{node.name}' is already using the IPv{ip_interface(address).version} address {address}"
        f" ({_carrier(address, view)})"
        for node in view.others
        for address in node_addresses(node)
        if address in mine
    ]
    if claims:
        owners = [node.name for node in view.others if mine & set(node_addresses(node))]
        commands = " and ".join(f"`calicoctl delete node {owner}`" for owner in owners)
        raise AddressTaken(
            f"{'; '.join(claims)}. If that node is this host under an old name, run {commands}. "
            f"If the address is not the right one, choose another: IP=ADDRESS, or {METHODS}"
        )
    before = node_addresses(stored) if stored else ()
    return tuple(
        f"Node {name} had the address {old} before and has {', '.join(sorted(mine))} now: "
        "if it did not move, two hosts share one name"
        for old in before
        if old not in mine and mine
    )


def _carrier(address: str, view: View) -> str:
    here = find(address, view.interfaces)
    return f"here on interface {here.interface}" if here else "here on no interface"
