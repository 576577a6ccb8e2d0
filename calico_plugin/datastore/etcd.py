"""The KV protocol on etcd's v3 API; with `transport`, `etcd_stream`, `etcd_errors`, `encoding` all that knows gRPC.

A write whose answer was lost is sent again only under its compare, and when that compare then fails we look into the
key's history whether the lost one had been carried out: a caller never reads "conflict" about its own change. A
transaction that compares other keys than it changes is not sent again; its error says `maybe_applied`.
"""

from __future__ import annotations

from typing import Any, Mapping, Sequence

import grpc
from etcd3.etcdrpc import (
    CompactionRequest,
    DeleteRangeRequest,
    LeaseGrantRequest,
    PutRequest,
    RangeRequest,
    StatusRequest,
    TxnRequest,
)

from calico_plugin.datastore.encoding import (
    compare_message,
    first,
    key_value,
    operation,
    range_of_prefix,
    read_operation,
)
from calico_plugin.datastore.etcd_stream import EtcdWatchStream
from calico_plugin.datastore.kv import Commit, Compare, Delete, KeyValue, Listing, Put
from calico_plugin.datastore.transport import Access, Transport, parse_endpoint, read_pem
from calico_plugin.deadline import Deadline
from calico_plugin.errors import (
    AlreadyExists,
    CalicoError,
    Compacted,
    Conflict,
    DatastoreUnavailable,
    InvalidInput,
    NotFound,
)

# Keys in one answer of a list: bounds memory and lets other requests in between.
PAGE = 1000
# etcd's default of --max-txn-ops.
_MAX_OPERATIONS = 128
_LIST_TRIES = 3
# How many changes of a key we look back through for a write whose answer was lost.
_MAX_HISTORY = 32
_STATUS_SECONDS = 3.0


def connect(
    endpoints: Sequence[str],
    *,
    ca_cert_file: str = "",
    cert_file: str = "",
    key_file: str = "",
    username: str = "",
    password: str = "",
    source: str = "",
) -> EtcdKV:
    """An EtcdKV for settings as the user gave them; no connection is made before the first call.

    When a connection fails the files are read again, since certificates are renewed now and then.
    Raises InvalidInput that names the setting.
    """
    parsed = tuple(parse_endpoint(url.strip()) for url in endpoints if url.strip())
    if not parsed:
        raise InvalidInput("ETCD_ENDPOINTS", "", "at least one endpoint is needed, such as http://127.0.0.1:2379")
    if bool(cert_file) != bool(key_file):
        given, missing = ("ETCD_CERT_FILE", "ETCD_KEY_FILE") if cert_file else ("ETCD_KEY_FILE", "ETCD_CERT_FILE")
        raise InvalidInput(missing, "", f"a certificate and its key go together, and {given} is set")
    if password and not username:
        raise InvalidInput("ETCD_USERNAME", "", "a user is needed when ETCD_PASSWORD is set")

    def access() -> Access:
        return Access(
            ca_cert=read_pem("ETCD_CA_CERT_FILE", ca_cert_file),
            cert=read_pem("ETCD_CERT_FILE", cert_file),
            key=read_pem("ETCD_KEY_FILE", key_file),
            username=username,
            password=password,
        )

    return EtcdKV(Transport(parsed, access(), source, renew=access))


class EtcdKV:
    """`kv.KV` on a real etcd; shared by all threads, usable on both sides of a fork."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    @property
    def endpoints(self) -> tuple[str, ...]:
        return self._transport.urls

    def get(self, key: str, deadline: Deadline) -> KeyValue | None:
        return first(self._read("range", RangeRequest(key=key.encode()), deadline).kvs)

    def get_many(self, keys: Sequence[str], deadline: Deadline) -> dict[str, KeyValue | None]:
        """Beyond etcd's limit for one transaction the later parts are read at the revision of the first."""
        found: dict[str, KeyValue | None] = {}
        revision = 0
        for start in range(0, len(keys), _MAX_OPERATIONS):
            part = keys[start : start + _MAX_OPERATIONS]
            request = TxnRequest(success=[read_operation(key, revision) for key in part])
            answer = self._read("txn", request, deadline)
            found.update(_values(part, answer.responses))
            revision = revision or answer.header.revision
        return found

    def list(self, prefix: str, deadline: Deadline, *, keys_only: bool = False, revision: int = 0) -> Listing:
        """Read in pages, all at one revision. With `revision` raises Compacted when that is gone."""
        for attempt in range(_LIST_TRIES):
            try:
                return self._list_once(prefix, deadline, keys_only, revision)
            except Compacted:
                # Compacted between two pages of ours: the next try gets a newer revision.
                if revision or attempt == _LIST_TRIES - 1:
                    raise
        raise AssertionError("not reached")

    def create(self, key: str, value: bytes, deadline: Deadline) -> int:
        commit = self.commit((Compare(key, 0),), (Put(key, value),), deadline)
        if not commit.succeeded:
            raise AlreadyExists(key, commit.current[key])
        return commit.revision

    def replace(self, key: str, value: bytes, revision: int, deadline: Deadline) -> int:
        commit = self.commit((Compare(key, revision),), (Put(key, value),), deadline)
        if not commit.succeeded:
            raise _lost(key, revision, commit.current[key])
        return commit.revision

    def put(self, key: str, value: bytes, deadline: Deadline, *, ttl: int | None = None) -> int:
        """Repeated when its answer was lost: putting the same again changes nothing for a key that is written blind."""
        lease = self._read("lease_grant", LeaseGrantRequest(TTL=ttl), deadline).ID if ttl else 0
        answer = self._read("put", PutRequest(key=key.encode(), value=value, lease=lease), deadline)
        return int(answer.header.revision)

    def delete(self, key: str, deadline: Deadline, *, revision: int | None = None) -> KeyValue:
        """After a lost answer what was there may be known by its key only: then the value is empty."""
        if revision is None:
            return self._delete_any(key, deadline)
        request = TxnRequest(
            compare=[compare_message(Compare(key, revision))],
            success=[operation(Delete(key))],
            failure=[read_operation(key)],
        )
        answer, doubtful = self._transport.call("txn", request, deadline)
        if answer.succeeded:
            return key_value(answer.responses[0].response_delete_range.prev_kvs[0])
        current = first(answer.responses[0].response_range.kvs)
        if doubtful and (current is None or current.create_revision > revision):
            return self._at_revision(key, revision, deadline) or KeyValue(key, b"", revision, 0)
        raise _lost(key, revision, current)

    def delete_prefix(self, prefix: str, deadline: Deadline) -> int:
        key, end = range_of_prefix(prefix)
        return int(self._read("delete_range", DeleteRangeRequest(key=key, range_end=end), deadline).deleted)

    def commit(
        self, compares: Sequence[Compare], operations: Sequence[Put | Delete], deadline: Deadline
    ) -> Commit:
        request = TxnRequest(
            compare=[compare_message(compare) for compare in compares],
            success=[operation(change) for change in operations],
            failure=[read_operation(compare.key) for compare in compares],
        )
        repeat = not operations or _guards_itself(compares, operations)
        try:
            answer, doubtful = self._transport.call("txn", request, deadline, repeat=repeat)
        except DatastoreUnavailable as error:
            blind_deletes = not compares and all(isinstance(change, Delete) for change in operations)
            if not (error.maybe_applied and blind_deletes) or deadline.expired():
                raise
            return self._delete_rest([change.key for change in operations], deadline)
        if answer.succeeded:
            return Commit(True, answer.header.revision, {})
        if doubtful:
            revision = self._applied_at(compares, operations, answer.header.revision, deadline)
            if revision:
                return Commit(True, revision, {})
        current = _values([compare.key for compare in compares], answer.responses)
        return Commit(False, answer.header.revision, current)

    def watch(self, prefix: str, revision: int) -> EtcdWatchStream:
        return EtcdWatchStream(self._transport, {prefix: revision})

    def watch_many(self, starts: Mapping[str, int]) -> EtcdWatchStream:
        return EtcdWatchStream(self._transport, starts)

    def compact(self, revision: int, deadline: Deadline) -> None:
        """Forget history before a revision: for tests and for our own embedded etcd."""
        self._read("compact", CompactionRequest(revision=revision, physical=False), deadline)

    def status(self, deadline: Deadline) -> dict[str, str]:
        found: dict[str, str] = {}
        for member in self._transport.members():
            try:
                metadata = self._transport.stream_metadata(deadline)
                seconds = min(_STATUS_SECONDS, deadline.check("etcd"))
                found[member.url] = member.status(StatusRequest(), timeout=seconds, metadata=metadata).version
            except grpc.RpcError as error:
                found[member.url] = str(self._transport.error(error.code(), error.details() or ""))
            except CalicoError as error:
                found[member.url] = str(error)
        return found

    def close(self) -> None:
        self._transport.close()

    def _read(self, method: str, request: Any, deadline: Deadline) -> Any:
        """A call that may be repeated at will."""
        return self._transport.call(method, request, deadline)[0]

    def _list_once(self, prefix: str, deadline: Deadline, keys_only: bool, revision: int) -> Listing:
        key, end = range_of_prefix(prefix)
        items: list[KeyValue] = []
        while True:
            request = RangeRequest(key=key, range_end=end, limit=PAGE, revision=revision, keys_only=keys_only)
            answer = self._read("range", request, deadline)
            revision = revision or answer.header.revision
            items.extend(map(key_value, answer.kvs))
            if not answer.more:
                return Listing(tuple(items), revision)
            key = answer.kvs[-1].key + b"\0"

    def _delete_any(self, key: str, deadline: Deadline) -> KeyValue:
        try:
            request = operation(Delete(key)).request_delete_range
            answer, _ = self._transport.call("delete_range", request, deadline, repeat=False)
        except DatastoreUnavailable as error:
            if not error.maybe_applied or deadline.expired():
                raise
            current = self.get(key, deadline)
            return self.delete(key, deadline, revision=current.revision) if current else KeyValue(key, b"", 0, 0)
        if not answer.prev_kvs:
            raise NotFound(key)
        return key_value(answer.prev_kvs[0])

    def _delete_rest(self, keys: Sequence[str], deadline: Deadline) -> Commit:
        """Finish blind deletes that may have been carried out: what is still there goes at the revision it has."""
        while True:
            found = self.get_many(keys, deadline)
            compares = [Compare(key, item.revision if item else 0) for key, item in found.items()]
            commit = self.commit(compares, [Delete(key) for key, item in found.items() if item], deadline)
            if commit.succeeded:
                return commit

    def _at_revision(self, key: str, revision: int, deadline: Deadline) -> KeyValue | None:
        """The key as it was at a revision; None also when that is compacted."""
        try:
            return first(self._read("range", RangeRequest(key=key.encode(), revision=revision), deadline).kvs)
        except Compacted:
            return None

    def _applied_at(
        self, compares: Sequence[Compare], operations: Sequence[Put | Delete], now: int, deadline: Deadline
    ) -> int:
        """The revision at which a transaction whose answer was lost was carried out; 0 when it was not.

        Walks back through the history of one key that it put, to the revision that it compared with.
        """
        puts = [change for change in operations if isinstance(change, Put)]
        if not puts:
            held = self.get_many([change.key for change in operations], deadline)
            return now if operations and not any(held.values()) else 0
        base = max((compare.revision for compare in compares), default=0)
        revision = now
        for _ in range(_MAX_HISTORY):
            item = self._at_revision(puts[0].key, revision, deadline)
            if item is None or item.revision <= base:
                return 0
            if item.value == puts[0].value and self._all_put_at(puts, item.revision, deadline):
                return item.revision
            revision = item.revision - 1
        return 0

    def _all_put_at(self, puts: Sequence[Put], revision: int, deadline: Deadline) -> bool:
        request = TxnRequest(success=[read_operation(put.key, revision) for put in puts])
        found = _values([put.key for put in puts], self._read("txn", request, deadline).responses)
        return all((item := found[put.key]) and (item.revision, item.value) == (revision, put.value) for put in puts)


def _values(keys: Sequence[str], responses: Sequence[Any]) -> dict[str, KeyValue | None]:
    return {key: first(response.response_range.kvs) for key, response in zip(keys, responses)}


def _guards_itself(compares: Sequence[Compare], operations: Sequence[Put | Delete]) -> bool:
    """True when the transaction, once carried out, cannot be carried out again: it changes what it compares."""
    put = [change.key for change in operations if isinstance(change, Put)]
    deleted = {change.key for change in operations if isinstance(change, Delete)}
    return any(
        any(key.startswith(compare.key) for key in put)
        if compare.prefix
        else compare.key in put or (compare.revision > 0 and compare.key in deleted)
        for compare in compares
    )


def _lost(key: str, revision: int, current: KeyValue | None) -> NotFound | Conflict:
    if current is None:
        return NotFound(key)
    return Conflict(key, current, f"it was read at revision {revision} and is now at {current.revision}")
