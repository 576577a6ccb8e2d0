"""Members of address sets: which addresses (or address, protocol, port triples) belong to each selector in use.

Objects of the whole cluster are indexed against the selectors in use only. Equal members from several objects are
counted, so that one leaving does not take the other's address away (policy 2.6, 5.4).
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_network
from typing import Iterable, Mapping

from calico_plugin.model.desired import AddressSet, SetType
from calico_plugin.model.keys import ResourceKey
from calico_plugin.model.members import Members
from calico_plugin.policy.index import LabelIndex
from calico_plugin.policy.rules import FAMILIES, Network, SetSpec, User, disjoint, member
from calico_plugin.policy.selector import Labels

_OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_PLAIN = re.compile(rf"({_OCTET}(?:\.{_OCTET}){{3}})(?:/32)?")
_DIGEST = 12
_HALVES = {"0.0.0.0/0": ("0.0.0.0/1", "128.0.0.0/1"), "::/0": ("::/1", "8000::/1")}


@dataclass(frozen=True, slots=True)
class Contribution:
    """What one object brings into sets: members of both families, and its named ports as (name, protocol number, port).
    """

    ipv4: tuple[str, ...]
    ipv6: tuple[str, ...]
    ports: tuple[tuple[str, int, int], ...] = ()

    @property
    def members(self) -> Mapping[int, tuple[str, ...]]:
        """By family."""
        return {4: self.ipv4, 6: self.ipv6}

    def of(self, spec: SetSpec, family: int) -> Iterable[str]:
        """The members it gives to a set."""
        members = self.ipv4 if family == 4 else self.ipv6
        if not spec.port_name:
            return members
        return [
            f"{address} . {protocol} . {port}"
            for name, protocol, port in self.ports
            if name == spec.port_name and spec.protocol in (None, protocol)
            for address in members
        ]


@lru_cache(maxsize=8192)
def read_network(text: str) -> Network:
    """Raises ValueError. Host bits are masked off."""
    return ip_network(text, strict=False)


def contribution(cidrs: Iterable[str], ports: tuple[tuple[str, int, int], ...] = ()) -> Contribution:
    """Raises ValueError for what is no CIDR. The whole address space is written as two halves, as nft wants it."""
    found: dict[int, dict[str, None]] = {4: {}, 6: {}}
    for cidr in cidrs:
        if (address := _single(cidr)) is not None:
            found[4][address] = None
            continue
        net = read_network(cidr)
        text = member(net)
        found[net.version].update(dict.fromkeys(_HALVES.get(text, (text,))))
    return Contribution(tuple(found[4]), tuple(found[6]), ports)


def _single(cidr: str) -> str | None:
    """The address of a plain one of IPv4, as nearly all are: much faster than to read it as a network."""
    found = _PLAIN.fullmatch(cidr)
    return found[1] if found else None


class _Counted:
    """Members of one family, each as long as somebody brings it; `built` as they were when last asked for."""

    def __init__(self) -> None:
        self._built = Members()
        self._came: set[str] = set()
        self._went: set[str] = set()
        # Members that several objects bring: how many besides the first.
        self._more: dict[str, int] = {}
        self.number = self.prefixes = 0

    def __contains__(self, text: str) -> bool:
        return text in self._came or text in self._built and text not in self._went

    def __bool__(self) -> bool:
        return self.number > 0

    def add(self, text: str) -> bool:
        """Whether the member is new."""
        if text in self:
            self._more[text] = self._more.get(text, 0) + 1
            return False
        self._came.add(text)
        self._went.discard(text)
        self.number += 1
        self.prefixes += "/" in text
        return True

    def take(self, text: str) -> bool:
        """Whether the member is gone now."""
        more = self._more.pop(text, 0)
        if more:
            if more > 1:
                self._more[text] = more - 1
            return False
        self._came.discard(text)
        self._went.add(text)
        self.number -= 1
        self.prefixes -= "/" in text
        return True

    def build(self) -> Members:
        self._built = self._built.changed(self._came, self._went)
        self._came, self._went = set(), set()
        return self._built


class _Live:
    """One set spec in use: who uses it, and its members."""

    def __init__(self, spec: SetSpec) -> None:
        self.spec = spec
        self.users: set[User] = set()
        self.members = {family: _Counted() for family in FAMILIES}
        self.families = self.present()

    def present(self) -> tuple[int, ...]:
        """IP versions for which there is a set: those that it has members of, else IPv4. Others would cost something:
        the kernel looks for sets one by one, so each makes the changes of all others slower.
        """
        return tuple(family for family in FAMILIES if self.members[family]) or FAMILIES[:1]

    def name(self, family: int) -> str:
        """Empty when there is no set. Its kind is part of the name: another kind is another set (policy 5.4).

        The kernel compares each name of the table with the one that a message asks for: twelve characters of the
        digest (72 bits) instead of all 38 halve what a member costs among a thousand sets.
        """
        if family not in self.families:
            return ""
        letter = "n" if self.spec.port_name else "i" if self.members[family].prefixes else "s"
        return f"{letter}{family}-{self.spec.id[2:2 + _DIGEST]}"

    def build(self, family: int) -> AddressSet:
        counted = self.members[family]
        if self.spec.port_name:
            return AddressSet(self.name(family), SetType[f"IPV{family}_PORT"], counted.build())
        kind = SetType[f"IPV{family}"]
        if not counted.prefixes:
            return AddressSet(self.name(family), kind, counted.build())
        return AddressSet(self.name(family), kind, without_covered(counted.build()), interval=True)


def without_covered(texts: Iterable[str]) -> frozenset[str]:
    """Interval sets may not overlap: only members that no wider one covers."""
    return frozenset(map(member, disjoint(map(read_network, texts))))


class MemberSets:
    """All sets in use. `dirty` collects (spec id, family) whose members changed since the last `take_dirty`."""

    def __init__(self) -> None:
        self._index: LabelIndex[str, ResourceKey] = LabelIndex(self._started, self._stopped)
        self._contributions: dict[ResourceKey, Contribution] = {}
        self._live: dict[str, _Live] = {}
        self._by_selector: dict[str, dict[str, None]] = defaultdict(dict)
        self._dirty: set[tuple[str, int]] = set()

    def set_item(self, item: ResourceKey, labels: Labels, brings: Contribution) -> None:
        old = self._contributions.get(item)
        if old is not None and old != brings:
            for key in self._index.selectors_of(item):
                self._swap(key, old, brings)
        self._contributions[item] = brings
        self._index.set_item(item, labels)

    def remove_item(self, item: ResourceKey) -> None:
        self._index.remove_item(item)
        self._contributions.pop(item, None)

    def set_labels(self, item: ResourceKey, labels: Labels) -> None:
        """Labels that changed by inheritance."""
        if item in self._contributions:
            self._index.set_item(item, labels)

    def acquire(self, spec: SetSpec, user: User) -> None:
        live = self._live.get(spec.id)
        if live is None:
            live = self._start(spec)
        live.users.add(user)

    def _start(self, spec: SetSpec) -> _Live:
        live = self._live[spec.id] = _Live(spec)
        specs = self._by_selector[spec.selector.id]
        known = bool(specs)
        specs[spec.id] = None
        self._dirty.update((spec.id, family) for family in FAMILIES)
        if not known:
            self._index.set_selector(spec.selector.id, spec.selector)
            return live
        for item in self._index.items_of(spec.selector.id):
            self._change(live, None, self._contributions[item])
        return live

    def release(self, spec: SetSpec, user: User) -> None:
        live = self._live[spec.id]
        live.users.discard(user)
        if live.users:
            return
        del self._live[spec.id]
        self._dirty.update((spec.id, family) for family in FAMILIES)
        specs = self._by_selector[spec.selector.id]
        del specs[spec.id]
        if not specs:
            del self._by_selector[spec.selector.id]
            self._index.remove_selector(spec.selector.id)

    def users(self, spec_id: str) -> Iterable[User]:
        live = self._live.get(spec_id)
        return live.users if live is not None else ()

    def name(self, spec: SetSpec, family: int) -> str:
        return self._live[spec.id].name(family)

    def take_dirty(self) -> set[tuple[str, int]]:
        dirty, self._dirty = self._dirty, set()
        return dirty

    def build(self, spec_id: str, family: int) -> AddressSet | None:
        """The set as it should be, or None when there is none (any more)."""
        live = self._live.get(spec_id)
        return live.build(family) if live is not None and family in live.families else None

    def _started(self, key: str, item: ResourceKey) -> None:
        self._swap(key, None, self._contributions[item])

    def _stopped(self, key: str, item: ResourceKey) -> None:
        self._swap(key, self._contributions[item], None)

    def _swap(self, key: str, old: Contribution | None, new: Contribution | None) -> None:
        for spec_id in self._by_selector.get(key, ()):
            self._change(self._live[spec_id], old, new)

    def _change(self, live: _Live, old: Contribution | None, new: Contribution | None) -> None:
        """Add before taking, so that a member that stays is never seen leaving."""
        for family in FAMILIES:
            members = live.members[family]
            changed = [members.add(text) for text in (new.of(live.spec, family) if new else ())]
            changed += [members.take(text) for text in (old.of(live.spec, family) if old else ())]
            if any(changed):
                self._dirty.add((live.spec.id, family))
        families = live.present()
        if families != live.families:
            live.families = families
            self._dirty.update((live.spec.id, family) for family in FAMILIES)
