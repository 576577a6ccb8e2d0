"""Which requests are read the short way, and that all others are left to gunicorn."""

from __future__ import annotations

import socket
import threading

import pytest

from calico_plugin.driver import request

HEAD = (
    b"POST /NetworkDriver.Join HTTP/1.1\r\nHost: \r\nUser-Agent: Go-http-client/1.1\r\nContent-Length: %d\r\n"
    b"Accept: application/vnd.docker.plugins.v1.2+json\r\n\r\n"
)


def test_dockers_form() -> None:
    """Path, begin and length of the body; also without a body, and with the body still on its way."""
    whole = HEAD % 3 + b"{}\n"
    assert request.parse(whole) == ("/NetworkDriver.Join", len(whole) - 3, 3)
    assert request.parse(HEAD % 0) == ("/NetworkDriver.Join", len(HEAD % 0), 0)
    assert request.parse(HEAD % 5000 + b"{") == ("/NetworkDriver.Join", len(HEAD % 5000), 5000)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GET /x HTTP/1.1\r\n\r\n",
        b"POST /Plugin.Activate HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /Plugin.Activate HTTP/1.0\r\nContent-Length: 0\r\n\r\n",
        b"POST /a?b=c HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
        b"POST /a%20 HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
        b"POST /a HTTP/1.1\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\n",
        b"POST /a HTTP/1.1\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /a HTTP/1.1\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n",
        b"POST /a HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /a HTTP/1.1\r\nContent-Length: 9999999\r\n\r\n",
        b"POST /a HTTP/1.1\r\nContent-Length: 1\r\n\r\n{}",
        b"POST /a HTTP/1.1\r\nContent-Length: 0\r\n folded\r\n\r\n",
        b"POST /a HTTP/1.1\r\nContent-Length : 0\r\n\r\n",
        b"POST /a HTTP/1.1\nContent-Length: 0\n\n",
        b"POST /a HTTP/1.1\r\nX: a\x00b\r\nContent-Length: 0\r\n\r\n",
        b"POST /a HTTP/1.1\r\nConte",
    ],
)
def test_anything_else_is_left_to_gunicorn(data: bytes) -> None:
    assert request.parse(data) is None


def test_a_body_in_pieces() -> None:
    """The rest is read by its length; a caller that leaves half-way has sent no request."""
    ours, theirs = socket.socketpair()
    data = HEAD % 6 + b"ab"
    parsed = request.parse(data)
    assert parsed is not None
    threading.Timer(0.05, lambda: (theirs.sendall(b"cd"), theirs.sendall(b"ef"))).start()
    assert request.body(data, *parsed[1:], ours) == b"abcdef"
    theirs.close()
    assert request.body(data, *parsed[1:], ours) is None
