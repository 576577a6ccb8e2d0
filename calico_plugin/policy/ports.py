"""Published ports of this node's containers (`docker run -p`): where their packets go, and who may send them. Pure.

::

    prerouting  nat -101   a new connection to an address of this host: port maps -> the container
    output      nat -101   the same for the host's own connections, to 127.0.0.1 too
    postrouting nat  109   only what could not come back is given the host's address: what a container sends through
                           the host to itself, and what the host sends from a loopback address
    input          -21     a container sends nothing to 127.0.0.0/8 of the host but answers: its link has
                           route_localnet while it publishes

They exist only while something is published. A packet costs two lookups when it is the first of a connection to the
host itself, however many ports there are; forwarded packets cost nothing. Policy comes behind translation, so it sees
the client's own address and the container's port; preDNAT policy of host endpoints comes before.

A container that publishes has one profile behind its own: it lets in what was translated on its way to a published
port. Like every profile it counts only where no policy decides, and no profile before it: one that is missing denies.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import Iterable, Iterator, Mapping

from calico_plugin.model.desired import AddressSet, Chain, Field, Hook, Match, PortMap, Rule, SetType, Verdict
from calico_plugin.model.published import Published
from calico_plugin.policy import chains
from calico_plugin.policy.options import PolicyOptions
from calico_plugin.policy.workloads import Binding

PROFILE = "PublishedPorts"
"""No Profile can have this name: names are lower case."""

# Address, protocol and port of containers that others than the host itself may come to through the host.
REACHED = {4: "published4", 6: "published6"}
_ANY = {4: "ports4", 6: "ports6"}
_AT = {4: "ports-at4", 6: "ports-at6"}
_CHAIN = "published"
_DESTINATION, _SOURCE, _GUARD = -101, 109, -21
_LOOPBACK4, _LOOPBACK6 = "127.0.0.0/8", "::1/128"


class Ports:
    """What is published; `maps`, `sets` and `in_force` follow from what `settle` was told."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Published, ...]] = {}
        self.maps: Mapping[str, PortMap] = {}
        self.sets: tuple[AddressSet, ...] = ()
        self.in_force: Mapping[str, tuple[Published, ...]] = {}

    def settle(self, interfaces: Iterable[str], bound: Mapping[str, Binding]) -> bool:
        """Look at these interfaces again; whether anything changed."""
        changed = False
        for interface in interfaces:
            new = bound[interface].endpoint.published if interface in bound else ()
            if new != self._known.get(interface, ()):
                changed = True
                self._known[interface] = new
                if not new:
                    del self._known[interface]
        if changed:
            self._work_out()
        return changed

    def _work_out(self) -> None:
        """One door leads to one container: of several claims the first interface's counts."""
        owners: dict[str, str] = {}
        held: dict[str, list[Published]] = {}
        for interface in sorted(self._known):
            for one in self._known[interface]:
                if owners.setdefault(one.door, interface) == interface:
                    held.setdefault(interface, []).append(one)
        self.in_force = {interface: tuple(listed) for interface, listed in held.items()}
        everything = [one for listed in held.values() for one in listed]
        self.maps = dict(_maps(everything)) if everything else {}
        self.sets = tuple(_sets(everything)) if everything else ()


def reaches_out(port: Published) -> bool:
    """Whether others than the host itself can use it."""
    return not (port.host_ip and ip_address(port.host_ip).is_loopback)


def _maps(ports: Iterable[Published]) -> Iterator[tuple[str, PortMap]]:
    listed = tuple(ports)
    for version in (4, 6):
        mine = [one for one in listed if one.version == version]
        for name, kind, chosen in (
            (_ANY[version], SetType.PORT, [one for one in mine if not one.host_ip]),
            (_AT[version], SetType[f"IPV{version}_PORT"], [one for one in mine if one.host_ip]),
        ):
            yield name, PortMap(name, kind, version, {_key(one): f"{one.address} . {one.port}" for one in chosen})


def _key(port: Published) -> str:
    start = f"{port.host_ip} . " if port.host_ip else ""
    return f"{start}{port.protocol} . {port.host_port}"


def _sets(ports: Iterable[Published]) -> Iterator[AddressSet]:
    for version, name in REACHED.items():
        members = frozenset(
            f"{one.address} . {one.protocol} . {one.port}"
            for one in ports
            if one.version == version and reaches_out(one)
        )
        yield AddressSet(name, SetType[f"IPV{version}_PORT"], members)


def base_chains(options: PolicyOptions) -> list[Chain]:
    local = Rule(Verdict.GOTO, (Match(Field.LOCAL),), _CHAIN)
    # What comes by a link is never for a loopback address, whatever its header says.
    looped4, looped6 = (Rule(Verdict.RETURN, (match,)) for match in (
        Match(Field.DESTINATION4, (_LOOPBACK4,)), Match(Field.DESTINATION6, (_LOOPBACK6,))))
    return [
        Chain("ports-in", (looped4, looped6, local), Hook("nat", "prerouting", _DESTINATION)),
        # The kernel has no way back to ::1: whoever tries it is refused at once, and takes 127.0.0.1.
        Chain("ports-out", (looped6, local), Hook("nat", "output", _DESTINATION)),
        Chain(_CHAIN, tuple(
            rule for version in (4, 6) for rule in (
                Rule(Verdict[f"PUBLISH_AT{version}"], target=_AT[version]),
                Rule(Verdict[f"PUBLISH{version}"], target=_ANY[version]),
            )
        )),
        Chain("ports-back", tuple(_source_rules(options)), Hook("nat", "postrouting", _SOURCE)),
        Chain("ports-guard", (_guard(options),), Hook("filter", "input", _GUARD)),
    ]


def _source_rules(options: PolicyOptions) -> Iterator[Rule]:
    translated = Match(Field.CONNECTION_STATUS, ("dnat",))
    yield Rule(Verdict.RETURN, (Match(Field.OUT_INTERFACE, (f"{options.interface_prefix}*",), negated=True),))
    yield Rule(Verdict.MASQUERADE, (Match(Field.SOURCE4, (_LOOPBACK4,)), translated))
    for version in (4, 6):
        itself = Match(Field[f"OUT_INTERFACE_SOURCE{version}"], set_name=chains.OWN[version])
        yield Rule(Verdict.MASQUERADE, (itself, translated))


def _guard(options: PolicyOptions) -> Rule:
    leaving = Match(Field.IN_INTERFACE, (f"{options.interface_prefix}*",))
    no_answer = Match(Field.CONNECTION_STATE, ("new", "invalid", "untracked"))
    matches = (leaving, Match(Field.DESTINATION4, (_LOOPBACK4,)), no_answer)
    return Rule(Verdict.DROP, matches, origin="loopback address of the host")


def profile_chain(direction: str, options: PolicyOptions) -> Chain:
    """What the implied profile lets in; nothing out."""
    origin = f"Profile|{PROFILE}|rule 0"
    allowed = [
        Rule(Verdict.ACCEPT, (
            Match(Field.CONNECTION_STATUS, ("dnat",)),
            Match(Field[f"DESTINATION_NAMED{version}"], set_name=name),
        ), origin=origin)
        for version, name in REACHED.items()
    ]
    rules = chains.told(allowed if direction == "ingress" else (), direction, options)
    return Chain(chains.profile_chain_name(direction, PROFILE), rules)
