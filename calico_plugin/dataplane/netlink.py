"""Sockets to the kernel's rtnetlink: the only module that imports pyroute2, and the only one that sees the kernel's
error numbers.

Two doors:

* `Netlink`: one raw socket with batches of prepared messages, for the paths that Docker waits for; `Events` hears what
  changes. A link is made in 0.2 ms of our own time, where a message through a general library costs that much for its
  encoding alone.
* `iproute()`: pyroute2's IPRoute for everything else, and `mapped()`, which turns its errors into DataplaneError.

A socket belongs to one network namespace for its life, the one in which it was opened; no process ever changes its
own namespace. A dump that raced with changes is asked again, a bounded number of times: under load that is normal
(NLM_F_DUMP_INTR).
"""

from __future__ import annotations

import ctypes
import errno as errnos
import os
import queue
import socket
import struct
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Callable, Iterator, Sequence, TypeVar

from calico_plugin.errors import DataplaneError

T = TypeVar("T")

# linux/netlink.h, linux/rtnetlink.h
NLM_F_REQUEST, NLM_F_ACK, NLM_F_ECHO, NLM_F_DUMP_INTR = 0x1, 0x4, 0x8, 0x10
NLM_F_EXCL, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_DUMP, NLM_F_ACK_TLVS = 0x200, 0x400, 0x100, 0x300, 0x200
NLMSG_ERROR, NLMSG_DONE = 0x2, 0x3
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_GETROUTE, RTM_SETNEIGHTBL = 26, 67
_SOL_NETLINK, _NETLINK_CAP_ACK, _NETLINK_EXT_ACK, _NETLINK_GET_STRICT_CHK = 270, 10, 11, 12
NETLINK_ROUTE, NETLINK_NETFILTER = 0, 12
_CLONE_NEWNET = 0x40000000
_SO_RCVBUFFORCE = 33
_EVENT_BUFFER = 8 << 20
_NLMSGERR_ATTR_MSG = 1
_NLA_NESTED = 0x8000

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_ERRNO = struct.Struct("=i")
_RECEIVE_BYTES = 1 << 16
_DUMP_ATTEMPTS = 12
_SOCKETS = 4


def attribute(kind: int, payload: bytes) -> bytes:
    """One netlink attribute, padded to four bytes."""
    length = 4 + len(payload)
    return _ATTRIBUTE.pack(length, kind) + payload + b"\0" * (-length % 4)


def nested(kind: int, *parts: bytes) -> bytes:
    """An attribute that holds attributes, marked as such (newer message types insist on the mark)."""
    return attribute(kind | _NLA_NESTED, b"".join(parts))


def text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def u32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


def attributes(data: bytes, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """(kind without flag bits, payload) of each attribute in `data` from `offset` on."""
    end = len(data)
    while offset + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4:
            return
        yield kind & 0x3FFF, data[offset + 4:offset + length]
        offset += (length + 3) & ~3


@dataclass(frozen=True, slots=True)
class Message:
    """One request: RTM_ type, extra flags, body, and what it does in words for an error text."""

    kind: int
    flags: int
    body: bytes
    what: str


@dataclass(frozen=True, slots=True)
class Reply:
    """What the kernel said to one request: 0 or an error number, its own explanation, and the objects it sent."""

    errno: int
    explanation: str
    objects: tuple[bytes, ...]


class Netlink:
    """One rtnetlink socket.

    Calls are serialised by a lock, so threads may share it; `NetlinkPool` gives each caller its own.
    """

    def __init__(self, netns: str | None = None, timeout: float = 10.0, protocol: int = NETLINK_ROUTE) -> None:
        """Opens the socket in the namespace called `netns` (as `ip netns` names it), else in the process's own."""
        self._socket = _open(netns, protocol)
        self._socket.bind((0, 0))
        # The kernel's own time limit. Python's would poll before each call, which costs a hand-over to other threads.
        limit = struct.pack("ll", int(timeout), int(timeout % 1 * 1e6))
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            self._socket.setsockopt(socket.SOL_SOCKET, option, limit)
        for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK):
            self._socket.setsockopt(_SOL_NETLINK, option, 1)
        with suppress(OSError):  # dumps that the kernel filters: Linux >= 4.20; older ones send all
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)
        self._lock = threading.Lock()
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def execute(self, *messages: Message) -> list[Reply]:
        """Send all in one system call, in order; raises DataplaneError for the first that the kernel refuses."""
        replies = self.send(messages)
        for message, reply in zip(messages, replies):
            if reply.errno:
                raise refusal(message.what, reply.errno, reply.explanation)
        return replies

    def send(self, messages: Sequence[Message]) -> list[Reply]:
        """Send all in one system call, in order.

        The kernel goes on after a refused one; each reply tells its own fate.
        """
        with self._lock:
            first = self._sequence + 1
            self._sequence += len(messages)
            try:
                self._socket.send(b"".join(_encode(message, first + n) for n, message in enumerate(messages)))
                return self._collect(first, len(messages))
            except OSError as error:
                raise refusal(messages[0].what, error.errno or 0, "") from error

    def dump(self, message: Message) -> list[bytes]:
        """All objects of a kind, from one consistent pass.

        Raises DataplaneError when no pass came through undisturbed.
        """
        for _ in range(_DUMP_ATTEMPTS):
            objects = self._dump_once(message)
            if objects is not None:
                return objects
        raise DataplaneError(f"{message.what}: the kernel's list kept changing while it was read", errnos.EINTR)

    def _dump_once(self, message: Message) -> list[bytes] | None:
        with self._lock:
            self._sequence += 1
            objects: list[bytes] = []
            try:
                self._socket.send(_encode(message, self._sequence, NLM_F_REQUEST | NLM_F_DUMP))
                while True:
                    for kind, flags, sequence, payload in _split(self._socket.recv(_RECEIVE_BYTES * 4)):
                        if sequence != self._sequence:
                            continue
                        if kind in (NLMSG_ERROR, NLMSG_DONE):
                            failed = -_ERRNO.unpack_from(payload)[0] if len(payload) >= 4 else 0
                            if failed:
                                raise refusal(message.what, failed, "")
                            return None if flags & NLM_F_DUMP_INTR else objects
                        if flags & NLM_F_DUMP_INTR:
                            objects = []
                            self._drain()
                            return None
                        objects.append(payload)
            except OSError as error:
                raise refusal(message.what, error.errno or 0, "") from error

    def _drain(self) -> None:
        """Read the rest of an interrupted dump, so that the next request does not meet it."""
        while True:
            for kind, _, sequence, _ in _split(self._socket.recv(_RECEIVE_BYTES * 4)):
                if kind in (NLMSG_ERROR, NLMSG_DONE) and sequence == self._sequence:
                    return

    def _collect(self, first: int, count: int) -> list[Reply]:
        replies: list[Reply | None] = [None] * count
        objects: list[list[bytes]] = [[] for _ in range(count)]
        missing = count
        while missing:
            for kind, flags, sequence, payload in _split(self._socket.recv(_RECEIVE_BYTES)):
                index = sequence - first
                # An older sequence is the late answer to a call that was given up.
                if not 0 <= index < count or replies[index] is not None:
                    continue
                if kind == NLMSG_ERROR:
                    failed, explanation = _error(flags, payload)
                    replies[index] = Reply(failed, explanation, tuple(objects[index]))
                    missing -= 1
                else:
                    objects[index].append(payload)
        return [reply for reply in replies if reply is not None]


class NetlinkPool:
    """A few sockets that threads borrow: one blocked in the kernel does not hold up the others."""

    def __init__(self, netns: str | None = None, size: int = _SOCKETS) -> None:
        self._free: queue.LifoQueue[Netlink] = queue.LifoQueue()
        self._all = [Netlink(netns) for _ in range(size)]
        for one in self._all:
            self._free.put(one)

    @contextmanager
    def borrow(self) -> Iterator[Netlink]:
        one = self._free.get()
        try:
            yield one
        finally:
            self._free.put(one)

    def execute(self, *messages: Message) -> list[Reply]:
        with self.borrow() as one:
            return one.execute(*messages)

    def send(self, messages: Sequence[Message]) -> list[Reply]:
        with self.borrow() as one:
            return one.send(messages)

    def dump(self, message: Message) -> list[bytes]:
        with self.borrow() as one:
            return one.dump(message)

    def close(self) -> None:
        for one in self._all:
            one.close()


class Overrun(DataplaneError):
    """The kernel dropped events because they were read too slowly: list everything anew."""


class Events:
    """A socket that hears multicast groups; it never blocks, and has a `fileno` for a selector."""

    def __init__(self, groups: Sequence[int], protocol: int = NETLINK_ROUTE) -> None:
        self._socket = _open(None, protocol)
        self._socket.setblocking(False)
        with suppress(OSError):  # without CAP_NET_ADMIN the buffer stays small, and overruns come sooner
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _EVENT_BUFFER)
        self._socket.bind((0, sum(1 << (group - 1) for group in groups)))

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def read(self) -> list[tuple[int, bytes]]:
        """(type, body) of all events that are waiting. Raises Overrun when some were lost."""
        events: list[tuple[int, bytes]] = []
        while True:
            try:
                data = self._socket.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                return events
            except OSError as error:
                if error.errno == errnos.ENOBUFS:
                    raise Overrun("netlink events were lost", errnos.ENOBUFS) from error
                raise refusal("netlink events", error.errno or 0, "") from error
            events.extend((kind, payload) for kind, _, _, payload in _split(data))


def refusal(what: str, errno: int, explanation: str) -> DataplaneError:
    """The kernel's refusal in one line: what was tried, and why it did not work."""
    late = errno in (0, errnos.EAGAIN)
    reason = explanation or ("no answer from the kernel in time" if late else os.strerror(errno))
    hint = "; the CAP_NET_ADMIN capability is needed" if errno == errnos.EPERM else ""
    return DataplaneError(f"{what}: {reason}{hint}", errno)


def _open(netns: str | None, protocol: int = NETLINK_ROUTE) -> socket.socket:
    return socket_in(netns, socket.AF_NETLINK, socket.SOCK_RAW, protocol)


def socket_in(netns: str | None, family: int, kind: int, protocol: int = 0) -> socket.socket:
    """A socket in the namespace called `netns` (None: the process's own). Raises DataplaneError, OSError.

    A thread that lives only for this enters the namespace; namespaces belong to threads, so the process stays in its
    own. (A forked child, the library's way, sometimes crashes where gRPC's threads run.)
    """
    if netns is None:
        return socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)
    outcome: list[socket.socket | OSError] = []

    def enter_and_open() -> None:
        try:
            _enter(netns)
            outcome.append(socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol))
        except OSError as error:
            outcome.append(error)

    thread = threading.Thread(target=enter_and_open, name="netns", daemon=True)
    thread.start()
    thread.join()
    (opened,) = outcome
    if isinstance(opened, OSError):
        raise DataplaneError(f"network namespace {netns} cannot be entered: {opened.strerror}", opened.errno or 0)
    return opened


def _enter(netns: str) -> None:
    """Move the calling thread."""
    descriptor = os.open(netns if "/" in netns else f"/run/netns/{netns}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(descriptor, _CLONE_NEWNET):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        os.close(descriptor)


def _encode(message: Message, sequence: int, flags: int = NLM_F_REQUEST | NLM_F_ACK) -> bytes:
    length = _HEADER.size + len(message.body)
    return _HEADER.pack(length, message.kind, flags | message.flags, sequence, 0) + message.body + b"\0" * (-length % 4)


def _split(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """(type, flags, sequence, payload) of each message in a datagram."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            return
        yield kind, flags, sequence, data[offset + _HEADER.size:offset + length]
        offset += (length + 3) & ~3


def _error(flags: int, payload: bytes) -> tuple[int, str]:
    errno = -_ERRNO.unpack_from(payload)[0]
    if not errno or not flags & NLM_F_ACK_TLVS:
        return errno, ""
    # With NETLINK_CAP_ACK the error is followed by the header of the request only, then by attributes.
    found = dict(attributes(payload, 4 + _HEADER.size))
    return errno, found.get(_NLMSGERR_ATTR_MSG, b"").rstrip(b"\0").decode(errors="replace")


# pyroute2: for the agent's routes, rules and link events, where 0.3 ms more or less do not matter.


def iproute(netns: str | None = None) -> Any:
    """A pyroute2 IPRoute in a namespace (None: the process's own). The caller closes it. Raises DataplaneError."""
    from pyroute2 import IPRoute

    with mapped("a netlink socket cannot be opened"):
        return IPRoute(netns=netns) if netns else IPRoute()


@contextmanager
def mapped(what: str) -> Iterator[None]:
    """Turn pyroute2's and the socket's errors into DataplaneError with `what` in front."""
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        yield
    except NetlinkError as error:
        raise refusal(what, int(error.code or 0), "") from error
    except OSError as error:
        raise refusal(what, error.errno or 0, "") from error


def dump(what: str, ask: Callable[[], T]) -> T:
    """Run a pyroute2 dump (`lambda: list(ipr.get_links())`) until one pass was not interrupted.

    Raises DataplaneError.
    """
    from pyroute2.netlink.exceptions import NetlinkDumpInterrupted

    for _ in range(_DUMP_ATTEMPTS):
        try:
            with mapped(what):
                return ask()
        except DataplaneError as error:
            if not isinstance(error.__cause__, NetlinkDumpInterrupted):
                raise
    raise DataplaneError(f"{what}: the kernel's list kept changing while it was read", errnos.EINTR)
