"""One etcd watch stream that carries the watches of several prefixes and that any thread may close."""

from __future__ import annotations

import queue
import threading
from typing import Any, Iterator, Mapping

import grpc
from etcd3.etcdrpc import WatchCreateRequest, WatchRequest, WatchResponse

from calico_plugin.datastore.encoding import change_of, range_of_prefix
from calico_plugin.datastore.kv import Change
from calico_plugin.datastore.transport import Metadata, Transport
from calico_plugin.deadline import Deadline
from calico_plugin.errors import Compacted

_LOGIN_SECONDS = 5.0


class EtcdWatchStream:
    """`next_revisions` says for each prefix where a new stream has to go on after what was delivered.

    etcd never splits a revision over two answers unless asked to (fragment), and each answer belongs to one prefix.

    Each watch starts one revision early and drops what comes from there: etcd before 3.4.36 and 3.5.18 loses a delete
    at exactly the start revision when history was compacted up to it, without a word. One earlier it says "compacted".
    """

    def __init__(self, transport: Transport, starts: Mapping[str, int]) -> None:
        self._transport = transport
        self._prefixes = tuple(starts)
        self.next_revisions = dict(starts)
        self._by_id: dict[int, str] = {}
        self._requests: queue.SimpleQueue[WatchRequest | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._call: Any = None
        self._logged_in_again = False

    def __iter__(self) -> Iterator[tuple[Change, ...]]:
        while not self._closed:
            response = self._receive()
            if response is None:
                return
            if response.created and not response.canceled:
                self._on_created(response)
                if len(self._by_id) == len(self._prefixes):
                    yield ()
            elif response.canceled:
                self._on_canceled(response)
            elif response.watch_id in self._by_id:
                changes = self._on_events(response)
                if changes or not response.events:
                    yield changes

    def close(self) -> None:
        with self._lock:
            self._closed = True
        self._end_call()

    def _end_call(self) -> None:
        with self._lock:
            call, self._call = self._call, None
            requests, self._requests = self._requests, queue.SimpleQueue()
        # Ends the thread in which gRPC waits for more of them.
        requests.put(None)
        if call is not None:
            call.cancel()

    def _receive(self) -> WatchResponse | None:
        """The next answer, or None once closed."""
        try:
            call = self._call or self._open()
            return next(call, None) if call is not None else None
        except grpc.RpcError as error:
            if self._closed:
                return None
            self._transport.leave(self._member)
            self.close()
            raise self._transport.error(error.code(), error.details() or "") from None

    def _open(self) -> Any:
        self._metadata: Metadata = self._transport.stream_metadata(Deadline(_LOGIN_SECONDS))
        self._member = self._transport.member()
        self._by_id.clear()
        for prefix in self._prefixes:
            key, end = range_of_prefix(prefix)
            create = WatchCreateRequest(
                key=key,
                range_end=end,
                start_revision=max(1, self.next_revisions[prefix] - 1),
                prev_kv=True,
                progress_notify=True,
            )
            self._requests.put(WatchRequest(create_request=create))
        with self._lock:
            if not self._closed:
                # The iterator stays open: a proxy of etcd ends a watch whose client has said all.
                self._call = self._member.watch(iter(self._requests.get, None), metadata=self._metadata)
            return self._call

    def _on_created(self, response: WatchResponse) -> None:
        # etcd answers create requests in their order.
        prefix = self._prefixes[len(self._by_id)]
        self._by_id[response.watch_id] = prefix
        if response.header.revision < self.next_revisions[prefix] - 1:
            self.close()
            raise Compacted(
                f"etcd at {self._member.url} is at revision {response.header.revision}, "
                "before the one already seen: list again"
            )

    def _on_canceled(self, response: WatchResponse) -> None:
        refused = "permission denied" in response.cancel_reason or "auth" in response.cancel_reason
        # A token that etcd has forgotten reads like a missing right, so we try once with a new one.
        if refused and self._transport.forget_token(self._metadata) and not self._logged_in_again:
            self._logged_in_again = True
            self._end_call()
            return
        self.close()
        if response.compact_revision:
            raise Compacted(f"etcd has compacted up to revision {response.compact_revision}: list again")
        reason = response.cancel_reason or "the watch was cancelled"
        code = grpc.StatusCode.OUT_OF_RANGE if "compacted" in reason else grpc.StatusCode.UNAVAILABLE
        raise self._transport.error(grpc.StatusCode.PERMISSION_DENIED if refused else code, reason)

    def _on_events(self, response: WatchResponse) -> tuple[Change, ...]:
        prefix = self._by_id[response.watch_id]
        start = self.next_revisions[prefix]
        # Also an answer without events (progress) moves the place to go on from.
        last = response.events[-1].kv.mod_revision if response.events else response.header.revision
        self.next_revisions[prefix] = max(start, last + 1)
        return tuple(change_of(event) for event in response.events if event.kv.mod_revision >= start)
