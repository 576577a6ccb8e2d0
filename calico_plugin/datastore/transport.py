"""How a request reaches etcd: channels, fail-over between endpoints, user and token, deadlines.

Channels are made at the first call of a process (gRPC does not survive a fork), shared by all threads, and remade after
a fork, and after a failure when the files of TLS were renewed meanwhile. One endpoint is used until it fails; then the
next, within the same deadline. A call says whether an earlier try of it may have been carried out (`doubtful`), so that
writes can look before they believe a failed compare.
"""

from __future__ import annotations

import os
import random
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Sequence
from urllib.parse import urlsplit

import grpc
from etcd3.etcdrpc import AuthenticateRequest, AuthStub, KVStub, LeaseStub, MaintenanceStub, WatchStub

from calico_plugin.datastore import etcd_errors
from calico_plugin.datastore.etcd_errors import Retry
from calico_plugin.deadline import Deadline
from calico_plugin.errors import CalicoError, DatastoreUnavailable, InvalidInput

# A member that hangs must not eat the time of the others. Longer than an election (1 s), so that one is waited for.
TRY_SECONDS = 3.0
# How long a call goes on while every endpoint refuses: an etcd restart or an election passes unseen.
PATIENCE_SECONDS = 5.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 0.5
_SHORTEST_TRY = 0.05
_TOKEN_RENEWALS = 2

_OPTIONS: tuple[tuple[str, Any], ...] = (
    # Lists and watches answer with more than gRPC's default of 4 MB.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # etcd tolerates a ping each 5 s while a call is open (--grpc-keepalive-min-time), none without.
    ("grpc.keepalive_time_ms", 6000),
    ("grpc.keepalive_timeout_ms", 4000),
    # Without this one, gRPC waits a minute for the answer to its ping, whatever keepalive_timeout says.
    ("grpc.http2.ping_timeout_ms", 4000),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.http2.max_pings_without_data", 0),
    # The defaults wait up to two minutes before they try a restarted etcd again.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.dns_min_time_between_resolutions_ms", 1000),
    # A proxy for web pages is no way to the datastore.
    ("grpc.enable_http_proxy", 0),
    # Trying again is decided here, where it is known what may be repeated.
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
)

Metadata = tuple[tuple[str, str], ...]
# A member without a leader answers at once instead of waiting for one.
_HAS_LEADER: Metadata = (("hasleader", "true"),)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One `http(s)://host:port`, and the name gRPC uses for it."""

    url: str
    target: str
    secure: bool


@dataclass(frozen=True, slots=True)
class Access:
    """Who we are to etcd: PEM texts (None: not given), user and password (empty: none)."""

    ca_cert: bytes | None = None
    cert: bytes | None = None
    key: bytes | None = None
    username: str = ""
    password: str = ""


def parse_endpoint(url: str) -> Endpoint:
    """Raises InvalidInput."""
    parts = urlsplit(url)
    hint = "an endpoint is http://HOST:PORT or https://HOST:PORT; several are separated by commas"
    try:
        port = parts.port
    except ValueError:
        raise InvalidInput("ETCD_ENDPOINTS", url, hint) from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port is None or parts.path not in ("", "/"):
        raise InvalidInput("ETCD_ENDPOINTS", url, hint)
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return Endpoint(url.rstrip("/"), f"{host}:{port}", parts.scheme == "https")


def read_pem(setting: str, path: str) -> bytes | None:
    """The file of a TLS setting, None when the setting is empty. Raises InvalidInput that names the setting."""
    if not path:
        return None
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InvalidInput(setting, path, f"the file cannot be read: {error.strerror}") from error
    if b"-----BEGIN " not in data:
        raise InvalidInput(setting, path, "the file must hold PEM text (-----BEGIN …)")
    return data


class Member:
    """One endpoint's channel and its call objects, which are costly to make and cheap to use."""

    def __init__(self, endpoint: Endpoint, access: Access) -> None:
        self.url = endpoint.url
        self.channel = _open_channel(endpoint, access)
        kv = KVStub(self.channel)
        self.range, self.put, self.delete_range = kv.Range, kv.Put, kv.DeleteRange
        self.txn, self.compact = kv.Txn, kv.Compact
        self.lease_grant = LeaseStub(self.channel).LeaseGrant
        self.authenticate = AuthStub(self.channel).Authenticate
        self.status = MaintenanceStub(self.channel).Status
        self.watch = WatchStub(self.channel).Watch


def _open_channel(endpoint: Endpoint, access: Access) -> grpc.Channel:
    if not endpoint.secure:
        return grpc.insecure_channel(endpoint.target, options=_OPTIONS)
    credentials = grpc.ssl_channel_credentials(access.ca_cert, access.key, access.cert)
    return grpc.secure_channel(endpoint.target, credentials, options=_OPTIONS)


class _LoginBusy(grpc.RpcError):
    """No token yet, because another thread's attempt to get one takes long or has just failed."""

    @staticmethod
    def code() -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE

    @staticmethod
    def details() -> str:
        return "the login takes too long"


class Transport:
    """Calls etcd by the name of a `Member` method; shared by all threads of a process."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        access: Access,
        source: str,
        *,
        renew: Callable[[], Access] | None = None,
        try_seconds: float = TRY_SECONDS,
        patience: float = PATIENCE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.urls = tuple(endpoint.url for endpoint in endpoints)
        self.source = source
        self._endpoints, self._access, self._renew = tuple(endpoints), access, renew
        self._try_seconds, self._patience, self._clock, self._sleep = try_seconds, patience, clock, sleep
        self._lock = threading.Lock()
        self._login_lock = threading.Lock()
        self._members: tuple[Member, ...] = ()
        self._pid = 0
        # Hosts with the same list of endpoints must not all use its first.
        self._current = random.randrange(len(self._endpoints))
        self._token: str | None = None
        self._metadata: Metadata = _HAS_LEADER
        self._closed = False

    @property
    def closed(self) -> bool:
        return self._closed

    def members(self) -> tuple[Member, ...]:
        """All endpoints' channels, made now if this process has none. Raises DatastoreUnavailable after `close`."""
        if self._pid != os.getpid():
            self._open()
        if self._closed:
            raise DatastoreUnavailable(f"the connection to etcd at {', '.join(self.urls)} is closed")
        return self._members

    def member(self) -> Member:
        """The endpoint in use."""
        return self.members()[self._current]

    def leave(self, member: Member) -> None:
        """Go on to the next endpoint, unless another thread did already."""
        with self._lock:
            if self._members and self._members[self._current] is member:
                self._current = (self._current + 1) % len(self._members)
        if any(endpoint.secure for endpoint in self._endpoints):
            self._take_renewed_files()

    def _take_renewed_files(self) -> None:
        """A connection keeps the certificate that it was made with; a new one shall have the one that is valid now."""
        try:
            access = self._renew() if self._renew else self._access
        except InvalidInput:
            return  # just being replaced: the next failure looks again
        with self._lock:
            if access != self._access and not self._closed and self._pid == os.getpid():
                self._access = access
                # Watches may still be alive on the channels of before: they are dropped here, not closed.
                self._members = tuple(Member(endpoint, access) for endpoint in self._endpoints)

    def call(self, method: str, request: Any, deadline: Deadline, *, repeat: bool = True) -> tuple[Any, bool]:
        """The answer, and whether an earlier try may have been carried out too.

        `repeat=False`: no second try once the request may have been carried out; the error then has `maybe_applied`.
        """
        left = deadline.check(f"etcd at {', '.join(self.urls)}")
        give_up = self._clock() + self._patience
        doubtful, failures, renewals, pause = False, 0, 0, _FIRST_PAUSE
        cause = (grpc.StatusCode.DEADLINE_EXCEEDED, "")
        while True:
            member, metadata, sent = self.member(), self._known_metadata(), False
            try:
                metadata = metadata or self._log_in(member, left)
                sent = True
                return getattr(member, method)(request, timeout=self._try_time(left), metadata=metadata), doubtful
            except grpc.RpcError as error:
                code, details = error.code(), error.details() or ""
            # A last try that was short of time must not hide what the tries before it were told.
            cause = cause if code is grpc.StatusCode.DEADLINE_EXCEEDED and failures else (code, details)
            retry = etcd_errors.retry_of(code, details)
            if retry is Retry.NEW_TOKEN and self._access.username and renewals < _TOKEN_RENEWALS:
                renewals += 1
                if sent:
                    self._forget_token(metadata)
                continue
            if retry is not Retry.AGAIN or self._closed:
                raise self._error(code, details, doubtful)
            doubtful = doubtful or (sent and not etcd_errors.surely_not_done(details))
            self.leave(member)
            failures += 1
            left = deadline.left()
            whole_round = failures % len(self._endpoints) == 0
            if left <= 0 or (doubtful and not repeat) or (whole_round and self._clock() >= give_up):
                raise self._error(*cause, doubtful)
            if whole_round:
                self._sleep(min(pause, left))
                pause = min(2 * pause, _LONGEST_PAUSE)
                left = deadline.left()
                if left < _SHORTEST_TRY:
                    # It could only end in doubt whether it was carried out.
                    raise self._error(*cause, doubtful)

    def stream_metadata(self, deadline: Deadline) -> Metadata:
        """Metadata for a stream, after logging in if there is a user."""
        member = self.member()
        try:
            return self._known_metadata() or self._log_in(member, deadline.check("etcd"))
        except grpc.RpcError as error:
            self.leave(member)
            raise self._error(error.code(), error.details() or "", False) from None

    def forget_token(self, metadata: Metadata) -> bool:
        """Drop a token that etcd refused; True when there is a user, so that another try makes sense."""
        if self._access.username:
            self._forget_token(metadata)
        return bool(self._access.username)

    def error(self, code: grpc.StatusCode, details: str) -> CalicoError:
        return self._error(code, details, False)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            members, self._members = self._members, ()
        for member in members:
            member.channel.close()

    def _open(self) -> None:
        with self._lock:
            if self._pid == os.getpid() or self._closed:
                return
            # The channels of before a fork belong to the parent: they are dropped here, not closed.
            self._members = tuple(Member(endpoint, self._access) for endpoint in self._endpoints)
            self._pid = os.getpid()

    def _try_time(self, left: float) -> float:
        return left if len(self._endpoints) == 1 else min(left, self._try_seconds)

    def _known_metadata(self) -> Metadata | None:
        """None when a token has to be fetched first."""
        return self._metadata if self._token is not None or not self._access.username else None

    def _log_in(self, member: Member, left: float) -> Metadata:
        """Fetch a token, once for all threads that wait for one; an etcd without authentication needs none."""
        if not self._login_lock.acquire(timeout=self._try_time(left)):
            raise _LoginBusy
        try:
            known = self._known_metadata()
            if known is not None:
                return known
            if member is not self.member():
                # Another thread has just found that this one does not answer.
                raise _LoginBusy
            token = self._authenticate(member, left)
        finally:
            self._login_lock.release()
        with self._lock:
            self._metadata = _HAS_LEADER + ((("token", token),) if token else ())
            self._token = token
            return self._metadata

    def _authenticate(self, member: Member, left: float) -> str:
        request = AuthenticateRequest(name=self._access.username, password=self._access.password)
        try:
            return str(member.authenticate(request, timeout=self._try_time(left)).token)
        except grpc.RpcError as error:
            if "authentication is not enabled" in (error.details() or ""):
                return ""
            raise

    def _forget_token(self, used: Metadata | None) -> None:
        with self._lock:
            if self._metadata is used:
                self._token, self._metadata = None, _HAS_LEADER

    def _error(self, code: grpc.StatusCode, details: str, doubtful: bool) -> CalicoError:
        error = etcd_errors.error_of(code, details, self.urls, self.source)
        if doubtful and isinstance(error, DatastoreUnavailable):
            return etcd_errors.unavailable(details or code.name, self.urls, self.source, maybe_applied=True)
        return error
