"""Docker's request, read in the one form that Docker uses: `POST /Method`, Content-Length, everything in a piece or
two.

This is most of what gunicorn's general parser costs a call, done in a few lines. Whatever looks different in any way
is left to that parser: nothing is guessed here. A connection carries one request, so a wrong boundary could hurt
nobody else.
"""

from __future__ import annotations

import io
import re
import socket
import sys
from typing import Any

# More than Docker ever sends before the body; the rest of a long body is read by its length.
PIECE = 1 << 16
_LONGEST = 4 << 20
_LINE = re.compile(rb"POST (/[A-Za-z.]{1,100}) HTTP/1\.1")
_LENGTH = re.compile(rb"content-length:[ \t]*([0-9]{1,7})[ \t]*", re.IGNORECASE)
_PLAIN = re.compile(rb"[A-Za-z-]{1,60}:[^\x00-\x08\x0a-\x1f]*")
_SPECIAL = (b"transfer-encoding", b"expect", b"upgrade", b"connection", b"content-encoding")


def parse(data: bytes) -> tuple[str, int, int] | None:
    """(path, where the body begins, its length), or None for what is not exactly Docker's form."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    first, *lines = data[:end].split(b"\r\n")
    line = _LINE.fullmatch(first)
    if line is None:
        return None
    length = None
    for header in lines:
        found = _LENGTH.fullmatch(header)
        if found is not None and length is None:
            length = int(found[1])
        elif found is not None or _PLAIN.fullmatch(header) is None or header.lower().startswith(_SPECIAL):
            return None
    if length is None or length > _LONGEST or end + 4 + length < len(data):
        return None
    return line[1].decode("ascii"), end + 4, length


def body(data: bytes, start: int, length: int, connection: socket.socket) -> bytes | None:
    """The body, with what of it is still on its way; None when the caller leaves before it has sent all."""
    parts, missing = [data[start:]], length - (len(data) - start)
    while missing > 0:
        part = connection.recv(min(missing, PIECE))
        if not part:
            return None
        parts.append(part)
        missing -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def environ(path: str, content: bytes, connection: socket.socket) -> dict[str, Any]:
    """WSGI's description of the request (PEP 3333); headers are not in it, since nothing of Docker's depends on one."""
    return {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "QUERY_STRING": "",
        "CONTENT_LENGTH": str(len(content)),
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(content),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
        "gunicorn.socket": connection,
    }
