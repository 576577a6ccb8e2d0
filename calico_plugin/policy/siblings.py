"""Interfaces whose containers' ends are in one network namespace: a container in several networks.

Its reply leaves through the interface that has the default route, with the address that was asked. So each of these
interfaces may carry its siblings' addresses, in connections that are there already (`chains`). What is not known to be
in one namespace is not (the kernel names the namespace by a number that is its own).
"""

from __future__ import annotations

from typing import Mapping

from calico_plugin.policy.workloads import Binding

Members = dict[int, set[str]]


class Siblings:
    """`place` and `touch` mark namespaces; `settle` works through them."""

    def __init__(self) -> None:
        self._namespaces: dict[str, int] = {}
        self._groups: dict[int, set[str]] = {}
        self._dirty: set[int] = set()
        self._written: dict[int, Members] = {}
        self._joined: set[str] = set()

    def place(self, interface: str, namespace: int | None) -> bool:
        """Where the container's end of an interface is (None: unknown, or gone); whether that changes anything."""
        old = self._namespaces.get(interface)
        if old == namespace:
            return False
        touched = False
        if old is not None:
            del self._namespaces[interface]
            group = self._groups[old]
            touched = len(group) > 1
            group.discard(interface)
            if not group:
                del self._groups[old]
            self._mark(old, touched)
        if namespace is not None:
            self._namespaces[interface] = namespace
            group = self._groups.setdefault(namespace, set())
            group.add(interface)
            self._mark(namespace, len(group) > 1)
            touched = touched or len(group) > 1
        return touched

    def touch(self, interface: str) -> None:
        """Its endpoint may have changed."""
        namespace = self._namespaces.get(interface)
        if namespace is not None:
            self._mark(namespace, len(self._groups[namespace]) > 1)

    def take_joined(self) -> set[str]:
        """Interfaces that have siblings, of the namespaces where something changed since the last call."""
        joined, self._joined = self._joined, set()
        return joined

    def settle(self, bound: Mapping[str, Binding]) -> dict[int, tuple[set[str], set[str]]]:
        """IP version -> `interface . address` that came and went since the last call."""
        moved: dict[int, tuple[set[str], set[str]]] = {}
        for namespace in self._dirty:
            old, new = self._written.pop(namespace, {}), self._members(namespace, bound)
            if any(new.values()):
                self._written[namespace] = new
                self._joined |= self._groups[namespace]
            for family in old.keys() | new.keys():
                came, went = moved.setdefault(family, (set(), set()))
                came |= new.get(family, set())
                went |= old.get(family, set())
        self._dirty.clear()
        return moved

    def _mark(self, namespace: int, touched: bool) -> None:
        if touched or namespace in self._written:
            self._dirty.add(namespace)

    def _members(self, namespace: int, bound: Mapping[str, Binding]) -> Members:
        members: Members = {4: set(), 6: set()}
        group = [name for name in self._groups.get(namespace, ()) if name in bound]
        for name in group:
            for other in group:
                for family, addresses in bound[other].endpoint.brings.members.items():
                    if other != name:
                        members[family].update(f"{name} . {address}" for address in addresses)
        return members
