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
    def prefixes(self) -> tuple[bytes, ...]:
        """First bytes of everything that may be asked about it (`wire.prefix`); one may come twice."""
        return tuple(map(wire.prefix, (*self.bare, *self.full, *map(wire.reverse, self.addresses))))


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
        self._called: dict[str, dict[EndpointId, Entry]] = {}
        self._by_address: dict[str, dict[EndpointId, Entry]] = {}
        # Of this host: container -> its endpoints; network -> how many.
        self._containers: dict[str, dict[EndpointId, Entry]] = {}
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
        holders = (one for one in self._by_address.get(address, {}).values() if one.node == self._node)
        container = next((one.container for one in holders), self._askers.get(address, ""))
        endpoints = self._containers.get(container)
        return None if endpoints is None else frozenset(one.network for one in endpoints.values())

    def addresses(self, name: str, networks: Collection[str]) -> tuple[str, ...] | None:
        """Who is called so in one of the networks; None when nobody is. `name` in lower case, without a dot behind."""
        return _joined([one for one in self._called.get(name, {}).values() if one.network in networks])

    def addresses_for_host(self, name: str) -> tuple[str, ...] | None:
        """The same where it is not known which container of this host asks: Docker asks on its behalf.

        Docker has answered what is on this host already, so a network in which somebody here is called so is not
        meant, nor is one that nobody here is on. A bare name must then be left in one network only.
        """
        called = [one for one in self._called.get(name, {}).values() if self._present[one.network]]
        here = {one.network for one in called if one.node == self._node}
        meant = [one for one in called if one.network not in here]
        bare = {one.network for one in meant if name in one.bare}
        return _joined([one for one in meant if name in one.full or len(bare) == 1])

    def titles(self, address: str, networks: Collection[str] | None) -> tuple[str, ...] | None:
        """What has the address, in one of the networks (None: in any that this host is on)."""
        known = self._present if networks is None else networks
        entries = self._by_address.get(address, {}).values()
        return tuple(sorted({one.title for one in entries if one.title and one.network in known})) or None

    # Parts

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
        for known, key in self._places(entry):
            known.setdefault(key, {})[endpoint] = entry
        self._prefixes.update(entry.prefixes)
        if entry.node == self._node:
            self._present[entry.network] += 1

    def _drop(self, endpoint: EndpointId, entry: Entry) -> None:
        del self._entries[endpoint]
        for known, key in self._places(entry):
            del known[key][endpoint]
            if not known[key]:
                del known[key]
        for prefix in entry.prefixes:
            _less(self._prefixes, prefix)
        if entry.node == self._node:
            _less(self._present, entry.network)

    def _places(self, entry: Entry) -> Iterator[tuple[dict[str, dict[EndpointId, Entry]], str]]:
        """Where an entry is looked for."""
        yield from ((self._called, name) for name in entry.bare | entry.full)
        yield from ((self._by_address, address) for address in entry.addresses)
        if entry.node == self._node:
            yield self._containers, entry.container


def _joined(entries: Iterable[Entry]) -> tuple[str, ...] | None:
    return tuple({address: None for one in entries for address in one.addresses}) or None


def _possible(names: Iterable[str]) -> list[str]:
    """Docker takes aliases that no DNS query can hold."""
    return [name.lower() for name in names if wire.is_possible(name)]


def _set(known: dict[EndpointId, T], endpoint: EndpointId, value: T | None) -> None:
    if value is None:
        known.pop(endpoint, None)
    else:
        known[endpoint] = value


def _less(counter: Counter[T], item: T) -> None:
    counter[item] -= 1
    if not counter[item]:
        del counter[item]
