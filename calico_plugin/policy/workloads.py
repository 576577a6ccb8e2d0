"""Interfaces of this node's workloads: which endpoint each belongs to, and the lists that it is bound to."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Callable, Mapping

from calico_plugin.model.keys import ResourceKey
from calico_plugin.policy.chains import ListPart
from calico_plugin.policy.lists import Lists
from calico_plugin.policy.reading import Endpoint

PartOf = Callable[[Endpoint, str], ListPart]


@dataclass(frozen=True, slots=True)
class Binding:
    """What is in force on an interface."""

    endpoint: Endpoint
    ingress: ListPart
    egress: ListPart


@dataclass(slots=True)
class Moved:
    """Members of the fixed sets that came and went with a round of bindings."""

    known: tuple[set[str], set[str]] = field(default_factory=lambda: (set(), set()))
    own: Mapping[int, tuple[set[str], set[str]]] = field(
        default_factory=lambda: {4: (set(), set()), 6: (set(), set())})

    def interfaces(self) -> set[str]:
        came, went = self.known
        return came | went

    def note(self, endpoint: Endpoint, side: int) -> None:
        """`side` 0: came, 1: went."""
        self.known[side].add(endpoint.interface)
        for family, sides in self.own.items():
            sides[side].update(f"{endpoint.interface} . {address}" for address in endpoint.brings.members[family])


class Workloads:
    """`bind` works through the interfaces that were touched since."""

    def __init__(self) -> None:
        self._local: dict[ResourceKey, Endpoint] = {}
        self._claims: dict[str, dict[ResourceKey, Endpoint]] = defaultdict(dict)
        self._dirty: set[str] = set()
        self.bound: dict[str, Binding] = {}
        self.from_workload: Mapping[str, str] = {}
        self.to_workload: Mapping[str, str] = {}

    def __contains__(self, key: ResourceKey) -> bool:
        return key in self._local

    def place(self, key: ResourceKey, endpoint: Endpoint | None) -> None:
        """An endpoint of this node is there, or (None) is not."""
        old = self._local.pop(key, None)
        if old is not None:
            del self._claims[old.interface][key]
            self._dirty.add(old.interface)
        if endpoint is not None:
            self._local[key] = self._claims[endpoint.interface][key] = endpoint
            self._dirty.add(endpoint.interface)

    def touch(self, key: ResourceKey) -> None:
        """What governs the endpoint may have changed."""
        if key in self._local:
            self._dirty.add(self._local[key].interface)

    def bind(self, lists: Lists, part_of: PartOf) -> Moved | None:
        """None when nothing was touched. Lists are held before others are dropped, so that shared chains stay."""
        if not self._dirty:
            return None
        moved = Moved()
        from_workload, to_workload = dict(self.from_workload), dict(self.to_workload)
        for interface in self._dirty:
            old, new = self.bound.pop(interface, None), self._binding(interface, part_of)
            from_workload.pop(interface, None)
            to_workload.pop(interface, None)
            if new is not None:
                self.bound[interface] = new
                from_workload[interface] = lists.hold(new.egress)
                to_workload[interface] = lists.hold(new.ingress)
                moved.note(new.endpoint, 0)
            if old is not None:
                lists.drop(old.ingress)
                lists.drop(old.egress)
                moved.note(old.endpoint, 1)
        self._dirty.clear()
        self.from_workload, self.to_workload = from_workload, to_workload
        return moved

    def _binding(self, interface: str, part_of: PartOf) -> Binding | None:
        """The smallest of those who claim the interface governs it (policy 4.3)."""
        claims = self._claims.get(interface)
        if not claims:
            self._claims.pop(interface, None)
            return None
        endpoint = min(claims.values(), key=lambda claim: claim.rank)
        return Binding(endpoint, part_of(endpoint, "ingress"), part_of(endpoint, "egress"))
