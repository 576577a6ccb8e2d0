"""Every way in which gRPC and etcd fail has an error of ours, with a text that helps."""

from __future__ import annotations

import grpc
import pytest

from calico_plugin.datastore.etcd_errors import Retry, error_of, retry_of, surely_not_done, unavailable
from calico_plugin.errors import CalicoError, Compacted, DatastoreError, DatastoreUnauthorized, DatastoreUnavailable

ENDPOINTS = ("http://a:2379", "http://b:2379")
Code = grpc.StatusCode


@pytest.mark.parametrize("code", [code for code in Code if code is not Code.OK], ids=lambda code: code.name)
def test_all_codes_are_mapped(code: grpc.StatusCode) -> None:
    """Each status code becomes a datastore error that names etcd, the endpoints and where they came from."""
    for details in ("something", ""):
        error = error_of(code, details, ENDPOINTS, "the file x")
        assert isinstance(error, DatastoreError)
        text = str(error)
        assert "etcd" in text and "http://a:2379, http://b:2379" in text and "the file x" in text
        assert "\n" not in text and retry_of(code, details) in Retry


@pytest.mark.parametrize(
    ("code", "details", "kind", "retry"),
    [
        (Code.UNAVAILABLE, "etcdserver: no leader", DatastoreUnavailable, Retry.AGAIN),
        (Code.UNAVAILABLE, "etcdserver: request timed out", DatastoreUnavailable, Retry.AGAIN),
        (Code.DEADLINE_EXCEEDED, "Deadline Exceeded", DatastoreUnavailable, Retry.AGAIN),
        (Code.UNKNOWN, "Stream removed", DatastoreUnavailable, Retry.AGAIN),
        (Code.INTERNAL, "Received RST_STREAM", DatastoreUnavailable, Retry.AGAIN),
        (Code.RESOURCE_EXHAUSTED, "etcdserver: too many requests", DatastoreError, Retry.AGAIN),
        (Code.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded", DatastoreError, Retry.NO),
        (Code.INVALID_ARGUMENT, "etcdserver: request is too large", DatastoreError, Retry.NO),
        (Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted", Compacted, Retry.NO),
        (Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision is a future revision", DatastoreError, Retry.NO),
        (Code.UNAUTHENTICATED, "etcdserver: invalid auth token", DatastoreUnauthorized, Retry.NEW_TOKEN),
        (Code.INVALID_ARGUMENT, "etcdserver: user name is empty", DatastoreUnauthorized, Retry.NEW_TOKEN),
        (Code.INVALID_ARGUMENT, "etcdserver: revision of auth store is old", DatastoreUnauthorized, Retry.NEW_TOKEN),
        (
            Code.INVALID_ARGUMENT,
            "etcdserver: authentication failed, invalid user ID or password",
            DatastoreUnauthorized,
            Retry.NO,
        ),
        (Code.PERMISSION_DENIED, "etcdserver: permission denied", DatastoreUnauthorized, Retry.NO),
        (Code.UNIMPLEMENTED, "unknown service etcdserverpb.KV", DatastoreError, Retry.NO),
    ],
)
def test_what_etcd_says(code: grpc.StatusCode, details: str, kind: type[CalicoError], retry: Retry) -> None:
    """etcd's own texts lead to the right error and to the right kind of next try."""
    assert type(error_of(code, details, ENDPOINTS, "x")) is kind
    assert retry_of(code, details) is retry


def test_full_etcd_says_what_to_do() -> None:
    """A full database is not cured by waiting: the text names the remedy."""
    error = error_of(Code.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded", ENDPOINTS, "x")
    assert "defragment" in str(error) and "alarm disarm" in str(error)


def test_hint_for_the_default_endpoint() -> None:
    """A user who set no endpoint is told how, and about sudo; one who did is not."""
    refused = (
        "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:2379: "
        "Failed to connect to remote host: Connection refused"
    )
    default = str(unavailable(refused, ENDPOINTS[:1], "the default"))
    assert "ETCD_ENDPOINTS" in default and "sudo -E" in default and "(from the default)" in default
    given = str(unavailable(refused, ENDPOINTS[:1], "ETCD_ENDPOINTS in the environment"))
    assert "sudo" not in given
    assert given.endswith("http://a:2379 (from ETCD_ENDPOINTS in the environment): Connection refused")


def test_doubt_is_said() -> None:
    """A write in doubt says so in text and attribute; a refused connection leaves none."""
    error = unavailable("x", ENDPOINTS, "y", maybe_applied=True)
    assert error.maybe_applied and "not known" in str(error)
    assert not unavailable("x", ENDPOINTS, "y").maybe_applied
    assert surely_not_done("failed to connect to all addresses; last error: …")
    assert not surely_not_done("Stream removed (Socket closed)")
