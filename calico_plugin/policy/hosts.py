"""Host endpoints of this node: which interface each governs, and the lists that it is bound to at each stage."""

from __future__ import annotations

from typing import Callable, Mapping

from calico_plugin.model.keys import ResourceKey
from calico_plugin.policy.chains import ListPart
from calico_plugin.policy.lists import Lists
from calico_plugin.policy.reading import Host
from calico_plugin.policy.stages import ALL, STAGES, Stage, resolve

PartOf = Callable[[Host, Stage], ListPart]


class Hosts:
    """The host endpoints of this node. `bind` does all of them again when anything was touched: they are few."""

    def __init__(self) -> None:
        self._local: dict[ResourceKey, Host] = {}
        self._interfaces: Mapping[str, frozenset[str]] = {}
        self._links: Mapping[str, bool] | None = None
        self._held: list[ListPart] = []
        self._dirty = False
        self.governed: Mapping[str, Host] = {}
        self.elements: Mapping[str, Mapping[str, str]] = {}
        self.everywhere: Mapping[str, str] = {}

    def __contains__(self, key: ResourceKey) -> bool:
        return key in self._local

    @property
    def wants_interfaces(self) -> bool:
        return any(host.interface != ALL for host in self._local.values())

    def place(self, key: ResourceKey, host: Host | None) -> None:
        if host is not None:
            self._local[key] = host
            self._dirty = True
        elif self._local.pop(key, None) is not None:
            self._dirty = True

    def touch(self, key: ResourceKey) -> None:
        self._dirty = self._dirty or key in self._local

    def set_interfaces(self, interfaces: Mapping[str, frozenset[str]], links: Mapping[str, bool] | None) -> None:
        """Addresses of each interface of the host, as text without prefix lengths; of each link whether it is up, None
        where that is not known.
        """
        self._links = links
        if interfaces != self._interfaces:
            self._interfaces = interfaces
            self._dirty = self._dirty or bool(self._local)

    def bind(self, lists: Lists, part_of: PartOf) -> bool:
        """Whether anything may have changed."""
        if not self._dirty:
            return False
        self._dirty = False
        self.governed = resolve(self._local.values(), self._interfaces)
        parts = {(stage, interface): part_of(host, stage)
                 for interface, host in self.governed.items() for stage in STAGES
                 if interface != ALL or stage.name != "raw"}
        # Where no policy stands the endpoint restricts nothing, except the host's own traffic.
        kept = {place: part for place, part in parts.items() if part.tiers or place[0].name == "host"}
        names = {place: lists.hold(part) for place, part in kept.items()}
        for part in self._held:
            lists.drop(part)
        self._held = list(kept.values())
        self.elements = {
            stage.map: {interface: name for (at, interface), name in names.items() if at is stage and interface != ALL}
            for stage in STAGES
        }
        self.everywhere = {stage.map: name for (stage, interface), name in names.items() if interface == ALL}
        return True

    def states(self) -> dict[ResourceKey, str]:
        """`up`, `down`, or `error` where it governs no interface, as Felix tells them."""
        held: dict[ResourceKey, list[str]] = {key: [] for key in self._local}
        for interface, host in self.governed.items():
            if host.key in held:
                held[host.key].append(interface)
        return {key: self._state(interfaces) for key, interfaces in held.items()}

    def _state(self, interfaces: list[str]) -> str:
        links = self._links
        known = [interface for interface in interfaces if links is None or interface == ALL or interface in links]
        if not known:
            return "error"
        return "up" if links is None or any(links.get(interface, True) for interface in known) else "down"

    def lost(self) -> dict[ResourceKey, str]:
        """Endpoints that govern no interface, and why."""
        return {key: self._why(self._local[key]) for key, state in self.states().items() if state == "error"}

    def _why(self, host: Host) -> str:
        if not host.interface:
            return "governs no interface: none has an expected address"
        other = self.governed.get(host.interface, host)
        if other.key != host.key:
            return f"governs no interface: {other.key.name} governs {host.interface}, the smaller name does"
        return f"spec.interfaceName = {host.interface!r}: this host has no such interface; policy waits for it"
