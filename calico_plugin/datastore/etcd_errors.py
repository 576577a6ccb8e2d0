"""What etcd and gRPC say when they fail -> our errors. Every text has the word etcd, the endpoints and their source."""

from __future__ import annotations

import re
from enum import Enum
from typing import Sequence

import grpc

from calico_plugin.errors import CalicoError, Compacted, DatastoreError, DatastoreUnauthorized, DatastoreUnavailable

DEFAULT_SOURCE = "the default"


class Retry(Enum):
    """What a failed call allows: another try, another try after a new token, or nothing."""

    AGAIN = "again"
    NEW_TOKEN = "new token"
    NO = "no"


# The server did not do it, or we cannot know; another endpoint may. UNKNOWN, INTERNAL and CANCELLED are what gRPC
# makes of a connection that breaks in the middle of an answer.
_RETRIED = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.ABORTED,
    }
)
_UNAUTHORIZED = frozenset({grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED})
# etcd's texts (api/v3rpc/rpctypes); the codes of these are not always telling.
_TOKEN_TEXTS = ("invalid auth token", "user name is empty", "revision of auth store is old")
_LOGIN_TEXTS = ("invalid user ID or password", "user name not found", "user name is empty", "authentication failed")
# With these the request was certainly not carried out.
_NOT_DONE_TEXTS = (
    "failed to connect to all addresses",
    "too many requests",
    "not capable",
    "DNS resolution failed",
)


def retry_of(code: grpc.StatusCode, details: str) -> Retry:
    """May this call be tried again?"""
    if any(text in details for text in _TOKEN_TEXTS):
        return Retry.NEW_TOKEN
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return Retry.NEW_TOKEN
    if code in _RETRIED or (code is grpc.StatusCode.RESOURCE_EXHAUSTED and "too many requests" in details):
        return Retry.AGAIN
    return Retry.NO


def surely_not_done(details: str) -> bool:
    """True when a failed write certainly changed nothing."""
    return any(text in details for text in _NOT_DONE_TEXTS)


def error_of(code: grpc.StatusCode, details: str, endpoints: Sequence[str], source: str) -> CalicoError:
    """The error to raise for a call that will not be tried again."""
    where = place(endpoints, source)
    if code is grpc.StatusCode.OUT_OF_RANGE and "compacted" in details:
        return Compacted(f"etcd at {where} no longer has the revision asked for: {details}")
    if code in _UNAUTHORIZED or any(text in details for text in _LOGIN_TEXTS + _TOKEN_TEXTS):
        return DatastoreUnauthorized(
            f"etcd at {where} refuses access: {details or code.name}; "
            "check ETCD_USERNAME, ETCD_PASSWORD and the user's role"
        )
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return unavailable("no answer in time", endpoints, source)
    if code in _RETRIED:
        return unavailable(details or code.name, endpoints, source)
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return DatastoreError(f"etcd at {where} does not offer the v3 API that is needed: {details or code.name}")
    if "database space exceeded" in details:
        return DatastoreError(
            f"etcd at {where} is full: {details}; compact and defragment it, then disarm the alarm "
            "(etcdctl alarm disarm)"
        )
    return DatastoreError(f"etcd at {where} refuses the request: {details or code.name} ({code.name})")


def unavailable(
    why: str, endpoints: Sequence[str], source: str, *, maybe_applied: bool = False
) -> DatastoreUnavailable:
    """`maybe_applied`: a write was sent whose answer was lost."""
    doubt = "; whether the change was stored is not known" if maybe_applied else ""
    hint = _hint(why, endpoints, source)
    error = DatastoreUnavailable(f"etcd does not answer at {place(endpoints, source)}: {_brief(why)}{doubt}{hint}")
    error.maybe_applied = maybe_applied
    return error


def place(endpoints: Sequence[str], source: str) -> str:
    """Endpoints and where they came from, for messages."""
    return f"{', '.join(endpoints)} (from {source})" if source else ", ".join(endpoints)


def _brief(why: str) -> str:
    """gRPC repeats itself at length; its last clause is the one that says something."""
    last = why.rsplit("last error: ", 1)[-1]
    return re.sub(r"^[A-Z_]+: ipv[46]:\S+: ", "", last).removeprefix("Failed to connect to remote host: ").strip(" .;")


_CUT = re.compile("Socket closed|Connection reset|Broken pipe|EOF", re.IGNORECASE)


def _hint(why: str, endpoints: Sequence[str], source: str) -> str:
    """What the user may look at; empty when we have no idea."""
    if "CERTIFICATE_VERIFY_FAILED" in why or "Hostname Verification Check failed" in why:
        return "; check ETCD_CA_CERT_FILE and that the certificate of etcd names this host"
    if "TSI_DATA_CORRUPTED" in why or "BAD_CERTIFICATE" in why or "CERTIFICATE_REQUIRED" in why:
        return "; does etcd want a client certificate? Check ETCD_CERT_FILE and ETCD_KEY_FILE"
    if "WRONG_VERSION_NUMBER" in why or "Handshake read failed" in why:
        return "; does this etcd speak plain http:// instead of https://?"
    if why.endswith("Socket closed") and any(endpoint.startswith("http:") for endpoint in endpoints):
        return "; does this etcd want https:// instead of http://?"
    # With TLS 1.3 the server's alert about a missing certificate may be overtaken by the reset of the connection.
    if _CUT.search(why) and any(endpoint.startswith("https:") for endpoint in endpoints):
        return "; does etcd want a client certificate? Check ETCD_CERT_FILE and ETCD_KEY_FILE"
    if source == DEFAULT_SOURCE:
        return "; set ETCD_ENDPOINTS if etcd is elsewhere (with sudo use `sudo -E`, which keeps the environment)"
    return ""
