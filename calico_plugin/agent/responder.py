"""Answers DNS queries of this host's containers for names of containers, in place of the server that was asked.

The kernel hands us what looks like such a query (dataplane.nametable); one that we know is answered and goes no
further, every other goes on unchanged. So nothing depends on us but names of containers, no port is open, and policy
is not touched: a container that may not reach its DNS server gets names all the same, and nothing else.

One thread owns all; the watch and Docker's thread put messages into its mailbox.
"""

from __future__ import annotations

import select
import time
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface
from typing import Callable, Iterable, Mapping, Sequence, Type, TypeVar

import msgspec
import structlog

from calico_plugin.agent.mailbox import Mailbox
from calico_plugin.agent.worker import Worker
from calico_plugin.dataplane import datagram
from calico_plugin.dataplane.datagram import Datagram
from calico_plugin.dataplane.inject import Injector
from calico_plugin.dataplane.nametable import NameTable
from calico_plugin.dataplane.nfqueue import Queue, Queued
from calico_plugin.datastore.kv import KeyValue
from calico_plugin.datastore.watch import Changes, Event, Listed
from calico_plugin.errors import CorruptValue, DataplaneError
from calico_plugin.model import codec, keys, names
from calico_plugin.model.docker import EndpointNames
from calico_plugin.model.resources import WorkloadEndpoint
from calico_plugin.naming import wire
from calico_plugin.naming.answers import answer
from calico_plugin.naming.index import EndpointId, Index
from calico_plugin.observe.log import bug
from calico_plugin.observe.metrics import Metrics
from calico_plugin.observe.problems import NAMES, Problems

T = TypeVar("T", bound=msgspec.Struct)
_ENDPOINTS = keys.kind_prefix("WorkloadEndpoint")
LOOK_EVERY = 2.0
DNS_PORT = 53


def prefixes() -> tuple[str, ...]:
    """What a responder follows."""
    return keys.ENDPOINT_NAMES, _ENDPOINTS


@dataclass(frozen=True, slots=True)
class Asking:
    """Who may ask on this host: containers by each of their addresses, and Docker itself for them, from the host's
    network namespace (`by_host`: of any server, else of one on this host only).
    """

    containers: Mapping[str, str]
    by_host: bool


class Responder:
    """`put` may be called from any thread. With `enabled` False it only sees to it that nothing of an earlier one is
    left.
    """

    def __init__(
        self,
        node: str,
        metrics: Metrics,
        problems: Problems,
        enabled: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._node, self._metrics, self._problems = node, metrics, problems
        self._enabled, self._clock = enabled, clock
        self._asking = Asking({}, False)
        self._index = Index(node)
        self._seen = -1
        self._mailbox = Mailbox()
        self._table = NameTable(names.NAME_QUEUE, wire.MASK)
        # What the kernel has; None: to be found out.
        self._written: frozenset[bytes] | None = None
        self._listed = False
        self._look_at = 0.0
        self._log = structlog.get_logger(part="names")
        self.worker = Worker("names-answers", self._step, longest=5.0)

    @property
    def transactions(self) -> int:
        """How many nftables transactions were ours."""
        return self._table.transactions

    def put(self, message: Event | Asking) -> None:
        self._mailbox.put(message)

    def stop(self) -> None:
        self.worker.stop()
        self._mailbox.put(None)

    # The worker's thread

    def _step(self) -> None:
        """Until it is told to stop. Raises DataplaneError for what the kernel does not do."""
        self._hear()
        if not self._enabled:
            self._table.remove()
            self._problems.tell(NAMES, ())
            return
        try:
            with ExitStack() as stack:
                queue = Queue(names.NAME_QUEUE)
                stack.callback(queue.close)
                injector = Injector()
                stack.callback(injector.close)
                self._serve(queue, injector)
        except DataplaneError as error:
            self._problems.tell(NAMES, [f"names of containers on other hosts are not answered: {error}"])
            raise

    def _serve(self, queue: Queue, injector: Injector) -> None:
        poll = select.poll()
        for descriptor in (self._mailbox.fileno(), queue.fileno()):
            poll.register(descriptor, select.POLLIN)
        self._program()
        self._problems.tell(NAMES, ())
        while not self.worker.stopping.is_set():
            poll.poll(LOOK_EVERY * 1000)
            self._hear()
            self._program()
            for one in queue.read(0):
                self._decide(queue, injector, one)

    def _decide(self, queue: Queue, injector: Injector, one: Queued) -> None:
        answered = False
        try:
            answered = self._answer(injector, one)
        except Exception as error:
            # One strange query must not keep the others from being answered.
            bug(self._log, "a query could not be looked at", error=str(error), packet=one.packet.hex())
        queue.decide(one, accept=not answered)
        (self._metrics.names_answered if answered else self._metrics.names_passed).inc()

    def _answer(self, injector: Injector, one: Queued) -> bool:
        """Whether the asker has its answer."""
        query = datagram.parse(one.packet)
        asker = self._asker(query, one) if query is not None and query.destination_port == DNS_PORT else None
        said = answer(query.payload, asker) if query is not None and asker is not None else None
        if query is None or said is None:
            return False
        packet = datagram.reply(query, said)
        try:
            if one.device:
                injector.into_link(one.device, one.hardware, query.family, packet)
            else:
                injector.into_stack(query.family, query.source, packet)
        except (OSError, KeyError) as error:
            self._log.warning("an answer could not be sent", to=query.source, error=str(error))
            return False
        return True

    def _asker(self, query: Datagram, one: Queued) -> _Asker | None:
        """None for one to whom we have nothing to say."""
        if not one.device:
            asks = self._asking.by_host or ip_address(query.destination).is_loopback
            return _Asker(self._index, None) if asks else None
        networks = self._index.networks_of(query.source)
        return _Asker(self._index, networks) if networks is not None else None

    # What is known

    def _hear(self) -> None:
        for message in self._mailbox.take():
            if isinstance(message, Listed):
                self._index, self._seen = Index(self._node, self._asking.containers), -1
                for part in message.items.values():
                    self._on_items((item.key, item) for item in part)
                self._listed = True
            elif isinstance(message, Changes):
                self._on_items((change.key, change.item) for change in message.changes)
            elif isinstance(message, Asking):
                self._asking = message
                self._index.on_askers(message.containers)

    def _on_items(self, items: Iterable[tuple[str, KeyValue | None]]) -> None:
        """A mistake of ours about one must not keep the others out."""
        for key, item in items:
            try:
                self._on_item(key, item)
            except Exception as error:
                bug(self._log, "an update failed", key=key, error=str(error))

    def _on_item(self, key: str, item: KeyValue | None) -> None:
        """A value that does not parse counts as absent; who else reads it tells."""
        if (endpoint := keys.parse_endpoint_names(key)) is not None:
            self._index.on_names(endpoint, _decoded(EndpointNames, item))
        elif (endpoint := _endpoint(key)) is not None:
            found = _decoded(WorkloadEndpoint, item)
            self._index.on_addresses(endpoint, _addresses(found) if found is not None else None)

    # The kernel

    def _program(self) -> None:
        """No table before anything is known to be asked for, nor in place of one whose names we do not know yet."""
        if not self._listed:
            return
        if self._clock() >= self._look_at:
            self._look_at = self._clock() + LOOK_EVERY
            if self._written is not None and not self._table.exists():
                self._written = None
        if self._written is None or self._index.changes != self._seen:
            self._seen = self._index.changes
            self._metrics.names_known.set(len(self._index))
            self._write(self._index.prefixes)

    def _write(self, wanted: frozenset[bytes]) -> None:
        written, self._written = self._written, None
        if wanted == written or not wanted and not self._table.exists():
            self._written = wanted
            return
        if written is not None:
            try:
                self._table.change(wanted - written, written - wanted)
                self._written = wanted
                return
            except DataplaneError:
                pass  # somebody else changed it
        self._table.write(wanted)
        self._written = wanted


class _Asker:
    """What one who asks may know (`answers.Names`). Of a query that this host sends itself nobody knows for whom."""

    def __init__(self, index: Index, networks: frozenset[str] | None) -> None:
        self._index, self._networks = index, networks

    def addresses(self, name: str) -> Sequence[str] | None:
        if self._networks is None:
            return self._index.addresses_for_host(name)
        return self._index.addresses(name, self._networks)

    def titles(self, address: str) -> Sequence[str] | None:
        return self._index.titles(address, self._networks)


def _endpoint(key: str) -> EndpointId | None:
    parsed = keys.parse_resource(key)
    parts = names.split_workload_endpoint(parsed.name) if parsed else ()
    return (parts[0], parts[3]) if len(parts) == 4 else None


def _addresses(endpoint: WorkloadEndpoint) -> tuple[str, ...] | None:
    try:
        return tuple(str(ip_interface(text).ip) for text in endpoint.spec.ip_networks)
    except ValueError:
        return None


def _decoded(kind: Type[T], item: KeyValue | None) -> T | None:
    try:
        return codec.decode(kind, item.key, item.value) if item is not None else None
    except CorruptValue:
        return None
