"""Who is called what, and who may know: the names of all containers of the cluster, by network.

A name counts while both are there: the record of the endpoint's names and the endpoint itself, from which its
addresses are taken. So a name never outlives its endpoint, whoever forgot to remove it. Names have no case.

Incremental: a change costs what it changes. One thread at a time; the owner of an index has the lock.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Collection, Iterable, Iterator, Mapping, TypeVar

from calico_plugin.model.docker import EndpointNames
from calico_plugin.naming import wire

T = TypeVar("T")
EndpointId = tuple[str, str]
"""Node and Docker's endpoint id."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An endpoint that has names. `full` are those with the network behind, `bare` those without, all lower case."""

    node: str
    container: str
    network: str
    addresses: tuple[str, ...]
    bare: frozenset[str]
    full: frozenset[str]
    # What an address is called: the first name, with the network.
    title: str

    @property
    def questions(self) -> frozenset[str]:
        """Everything that may be asked about it."""
        return self.bare | self.full | frozenset(map(wire.reverse, self.addresses))


class Index:
    """`node` is this host's: its endpoints are those who ask, from one of their own addresses or (`askers`, address ->
    container) from one on a network of another driver. `changes` grows with every change of what may be asked.
    """

    def __init__(self, node: str, askers: Mapping[str, str] | None = None) -> None:
        self._node, self._askers = node, askers or {}
        self.changes = 0
        self._records: dict[EndpointId, EndpointNames] = {}
        self._addresses: dict[EndpointId, tuple[str, ...]] = {}
        self._entries: dict[EndpointId, Entry] = {}
        self._called_so: dict[str, dict[EndpointId, None]] = {}
        self._by_address: dict[str, dict[EndpointId, None]] = {}
        # Of this host: container -> its endpoints; network -> how many.
        self._containers: dict[str, dict[EndpointId, None]] = {}
        self._present: Counter[str] = Counter()
        self._prefixes: Counter[bytes] = Counter()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def prefixes(self) -> frozenset[bytes]:
        """The first bytes of everything that may be asked (`wire.prefix`)."""
        return frozenset(self._prefixes)

    # What is known

    def on_names(self, endpoint: EndpointId, names: EndpointNames | None) -> None:
        """The record of an endpoint's names came, changed or went."""
        _set(self._records, endpoint, names)
        self._refresh(endpoint)

    def on_addresses(self, endpoint: EndpointId, addresses: tuple[str, ...] | None) -> None:
        """The endpoint came, changed or went; addresses without prefix length."""
        _set(self._addresses, endpoint, addresses)
        self._refresh(endpoint)

    def on_askers(self, askers: Mapping[str, str]) -> None:
        """All addresses of this host's containers."""
        self._askers = askers

    # Questions

    def networks_of(self, address: str) -> frozenset[str] | None:
        """Our networks of the container of this host that has the address; None when none has it."""
        holders = (self._entries[one] for one in self._by_address.get(address, ()) if one[0] == self._node)
        container = next((entry.container for entry in holders), self._askers.get(address, ""))
        endpoints = self._containers.get(container)
        return None if endpoints is None else frozenset(self._entries[one].network for one in endpoints)

    def addresses(self, name: str, networks: Collection[str]) -> tuple[str, ...] | None:
        """Who is called so in one of the networks; None when nobody is. `name` in lower case, without a dot behind."""
        return _joined(entry for entry in self._called(name) if entry.network in networks)

    def addresses_for_host(self, name: str) -> tuple[str, ...] | None:
        """The same where it is not known which container of this host asks: Docker asks on its behalf.

        Docker has answered what is on this host already, so a network in which somebody here is called so is not
        meant, nor is one that nobody here is on. A bare name must then be left in one network only.
        """
        called = [entry for entry in self._called(name) if self._present[entry.network]]
        here = {entry.network for entry in called if entry.node == self._node}
        meant = [entry for entry in called if entry.network not in here]
        bare = {entry.network for entry in meant if name in entry.bare}
        return _joined(entry for entry in meant if name in entry.full or len(bare) == 1)

    def titles(self, address: str, networks: Collection[str] | None) -> tuple[str, ...] | None:
        """What has the address, in one of the networks (None: in any that this host is on)."""
        entries = (self._entries[endpoint] for endpoint in self._by_address.get(address, ()))
        return tuple(sorted({entry.title for entry in entries if entry.title and self._may(entry, networks)})) or None

    # Parts

    def _may(self, entry: Entry, networks: Collection[str] | None) -> bool:
        return bool(self._present[entry.network]) if networks is None else entry.network in networks

    def _called(self, name: str) -> Iterator[Entry]:
        return (self._entries[endpoint] for endpoint in self._called_so.get(name, ()))

    def _refresh(self, endpoint: EndpointId) -> None:
        old, new = self._entries.get(endpoint), self._entry(endpoint)
        if old == new:
            return
        self.changes += 1
        if old is not None:
            self._drop(endpoint, old)
        if new is not None:
            self._add(endpoint, new)

    def _entry(self, endpoint: EndpointId) -> Entry | None:
        record, addresses = self._records.get(endpoint), self._addresses.get(endpoint)
        if record is None or addresses is None:
            return None
        bare = _possible(record.names)
        full = _possible(f"{name}.{record.network}" for name in record.names)
        return Entry(
            node=endpoint[0],
            container=record.container,
            network=record.network,
            addresses=addresses,
            bare=frozenset(bare),
            full=frozenset(full),
            title=next(iter(full + bare), ""),
        )

    def _add(self, endpoint: EndpointId, entry: Entry) -> None:
        self._entries[endpoint] = entry
        for name in entry.bare | entry.full:
            self._called_so.setdefault(name, {})[endpoint] = None
        for address in entry.addresses:
            self._by_address.setdefault(address, {})[endpoint] = None
        self._prefixes.update(map(wire.prefix, entry.questions))
        if entry.node == self._node:
            self._containers.setdefault(entry.container, {})[endpoint] = None
            self._present[entry.network] += 1

    def _drop(self, endpoint: EndpointId, entry: Entry) -> None:
        del self._entries[endpoint]
        for name in entry.bare | entry.full:
            _discard(self._called_so, name, endpoint)
        for address in entry.addresses:
            _discard(self._by_address, address, endpoint)
        for question in entry.questions:
            _less(self._prefixes, wire.prefix(question))
        if entry.node == self._node:
            _discard(self._containers, entry.container, endpoint)
            _less(self._present, entry.network)


def _joined(entries: Iterable[Entry]) -> tuple[str, ...] | None:
    found = dict.fromkeys(address for entry in entries for address in entry.addresses)
    return tuple(found) or None


def _possible(names: Iterable[str]) -> list[str]:
    """Docker takes aliases that no DNS query can hold."""
    return [name.lower() for name in names if wire.labels(name)]


def _set(known: dict[EndpointId, T], endpoint: EndpointId, value: T | None) -> None:
    if value is None:
        known.pop(endpoint, None)
    else:
        known[endpoint] = value


def _discard(known: dict[str, dict[EndpointId, None]], name: str, endpoint: EndpointId) -> None:
    known[name].pop(endpoint)
    if not known[name]:
        del known[name]


def _less(counter: Counter, item: object) -> None:
    counter[item] -= 1
    if not counter[item]:
        del counter[item]
