"""Settings as the user gave them: taken when right, named when wrong; and no I/O before the first call."""

from __future__ import annotations

import time

import pytest

from calico_plugin.datastore.encoding import end_of_prefix, range_of_prefix
from calico_plugin.datastore.etcd import connect
from calico_plugin.datastore.transport import parse_endpoint
from calico_plugin.deadline import Deadline
from calico_plugin.errors import DatastoreUnavailable, InvalidInput
from tests.etcd_server import free_port


@pytest.mark.parametrize(
    ("url", "target", "secure"),
    [
        ("http://127.0.0.1:2379", "127.0.0.1:2379", False),
        ("https://etcd.example:2379/", "etcd.example:2379", True),
        ("http://[fd00::1]:2379", "[fd00::1]:2379", False),
    ],
)
def test_endpoints(url: str, target: str, secure: bool) -> None:
    """Both schemes, names and both kinds of addresses."""
    endpoint = parse_endpoint(url)
    assert (endpoint.target, endpoint.secure) == (target, secure)


@pytest.mark.parametrize(
    "url",
    ["", "127.0.0.1:2379", "etcd:2379", "ftp://a:2379", "http://a", "http://a:x", "http://:2379", "http://a:1/v2"],
)
def test_endpoints_that_are_wrong(url: str) -> None:
    """The error names the setting and shows what would be right."""
    with pytest.raises(InvalidInput, match="http://HOST:PORT") as caught:
        parse_endpoint(url)
    assert caught.value.field == "ETCD_ENDPOINTS"


def test_no_endpoint() -> None:
    """An empty list names the setting."""
    with pytest.raises(InvalidInput, match="ETCD_ENDPOINTS"):
        connect(["", " "])


def test_nobody_there() -> None:
    """Where nothing listens a call fails by its deadline, and says where it looked and why it looked there."""
    url = f"http://127.0.0.1:{free_port()}"
    client = connect([url], source="the default")
    started = time.monotonic()
    with pytest.raises(DatastoreUnavailable) as caught:
        client.get("/x", Deadline(0.5))
    assert time.monotonic() - started < 3
    assert all(word in str(caught.value) for word in ("etcd", url, "the default", "Connection refused", "sudo -E"))
    assert "refused" in client.status(Deadline(1))[url]
    client.close()


def test_prefixes_as_ranges() -> None:
    """A prefix ends where its successor begins; the empty one and one of highest bytes have no end."""
    assert range_of_prefix("/a/") == (b"/a/", b"/a0")
    assert range_of_prefix("") == (b"\0", b"\0")
    assert end_of_prefix(b"a\xff\xff") == b"b"
    assert end_of_prefix(b"\xff") == b"\0"
