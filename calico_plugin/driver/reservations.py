"""Ports of the host that containers publish, each held by a socket that is bound to it and does nothing.

The packets never come to that socket: the agent's rules send them on to the container. It keeps others off: a process
of the host, and Docker for a container on its own bridge, find the port in use, as we do when they have it. What a
killed driver held is free until it runs again and binds what etcd says; meanwhile the ports go on working.

A port of SCTP is held by this process's own list alone where the kernel has no SCTP sockets: nobody else can use one
there.
"""

from __future__ import annotations

import ctypes
import errno
import random
import resource
import socket
import struct
import threading
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Iterable, Iterator, Mapping, Sequence

import structlog

from calico_plugin.driver.wire import PortRequest
from calico_plugin.errors import CalicoError, InvalidInput, PortTaken
from calico_plugin.model.published import PROTOCOLS, Published, door
from calico_plugin.model.resources.endpoint import WorkloadEndpointPort

log = structlog.get_logger(part="ports")

_TCP, _UDP, _SCTP = 6, 17, 132
_KINDS = {_TCP: socket.SOCK_STREAM, _UDP: socket.SOCK_DGRAM, _SCTP: socket.SOCK_STREAM}
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_NOT_OFFERED = (errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT)
# Tries to find a port that is free in both IP versions.
_EPHEMERAL_TRIES = 64
_RANGE_FILE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_SO_ATTACH_FILTER = 26
_FILES = 65536
_RETURN_NOTHING = struct.pack("=HBBI", 0x06, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Door:
    """What is held. `host_ip` is empty for all addresses of the IP version; `port` 0: any free one."""

    version: int
    host_ip: str
    protocol: int
    port: int

    def __str__(self) -> str:
        return door(self.version, self.host_ip, self.port, self.protocol)

    def overlaps(self, other: Door) -> bool:
        same = (self.version, self.protocol, self.port) == (other.version, other.protocol, other.port)
        return same and (not self.host_ip or not other.host_ip or self.host_ip == other.host_ip)


@dataclass(slots=True)
class _Held:
    """What one endpoint has; None for a port without a socket: none is needed, or there was none to be had."""

    shown: str
    doors: dict[Door, socket.socket | None] = field(default_factory=dict)

    def close(self) -> None:
        for one in self.doors.values():
            _close(one)


def _close(one: socket.socket | None) -> None:
    if one is not None:
        one.close()


class Reservations:
    """Shared by all threads of the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[str, _Held] = {}
        _allow_many_files()

    def take(
        self, endpoint: str, addresses: Mapping[int, str], requests: Sequence[PortRequest]
    ) -> tuple[WorkloadEndpointPort, ...]:
        """Bind a port of the host for each request; all or none, in place of what the endpoint had. `addresses`: IP
        version -> the endpoint's address.

        Raises PortTaken, InvalidInput, or CalicoError for what the kernel refuses.
        """
        self.release(endpoint)
        held = _Held(_shown(endpoint, addresses))
        with self._lock, ExitStack() as undo:
            undo.callback(held.close)
            entries = tuple(self._place(held, addresses, request) for request in requests)
            self._held[endpoint] = held
            undo.pop_all()
        return entries

    def align(self, endpoint: str, wanted: Callable[[str], Iterable[Published] | None]) -> list[str]:
        """Hold what an endpoint publishes, and nothing else; what could not be bound, in words. `wanted` (None: leave
        it alone) is asked when nobody else can take or release: who takes a port away says so before releasing it.
        """
        problems: list[str] = []
        with self._lock:
            listed = wanted(endpoint)
            if listed is None:
                return problems
            ports = {Door(one.version, one.host_ip, one.protocol, one.host_port): one for one in listed}
            shown = _shown(endpoint, {one.version: one.address for one in ports.values()})
            held = self._held.setdefault(endpoint, _Held(shown))
            for gone in held.doors.keys() - ports.keys():
                _close(held.doors.pop(gone))
            for wanted_door in ports:
                try:
                    held.doors[wanted_door] = held.doors.get(wanted_door) or _bound(wanted_door)
                except OSError as error:
                    # The endpoint's all the same; tried again next time.
                    held.doors[wanted_door] = None
                    problems.append(f"{wanted_door}: {error.strerror}")
            if not held.doors:
                del self._held[endpoint]
        return problems

    def release(self, endpoint: str) -> None:
        with self._lock:
            held = self._held.pop(endpoint, None)
        if held is not None:
            held.close()

    def has(self, endpoint: str) -> bool:
        return endpoint in self._held

    def endpoints(self) -> tuple[str, ...]:
        with self._lock:
            return tuple(self._held)

    def close(self) -> None:
        for endpoint in self.endpoints():
            self.release(endpoint)

    # Under the lock.

    def _place(self, held: _Held, addresses: Mapping[int, str], request: PortRequest) -> WorkloadEndpointPort:
        host_ips = _host_ips(addresses, request)
        taken: PortTaken | None = None
        for port in _candidates(request):
            doors = [Door(version, host_ip, request.protocol, port) for version, host_ip in host_ips]
            try:
                made = self._bind_all(doors)
            except PortTaken as error:
                taken = error
                continue
            held.doors.update(made)
            host_ip = "" if request.host_ip is None else str(request.host_ip)
            host_port, protocol = next(iter(made)).port, PROTOCOLS[request.protocol]
            return WorkloadEndpointPort(protocol=protocol, port=request.port, host_port=host_port, host_ip=host_ip)
        assert taken is not None
        if request.first == request.last and request.first:
            raise taken
        asked = f"{request.first}-{request.last}" if request.first else "any"
        version, host_ip = host_ips[0]
        raise PortTaken(door(version, host_ip, asked, request.protocol), "none of them is free")

    def _bind_all(self, doors: Sequence[Door]) -> dict[Door, socket.socket | None]:
        """The same port behind each of them. Raises PortTaken."""
        made: dict[Door, socket.socket | None] = {}
        port = doors[0].port
        with ExitStack() as undo:
            for asked in doors:
                wanted = Door(asked.version, asked.host_ip, asked.protocol, port)
                self._refuse_ours(wanted)
                bound = self._bind(wanted)
                if bound is not None:
                    undo.callback(bound.close)
                    port = bound.getsockname()[1]
                made[Door(asked.version, asked.host_ip, asked.protocol, port)] = bound
            undo.pop_all()
        return made

    def _refuse_ours(self, wanted: Door) -> None:
        for other in self._held.values():
            if any(map(wanted.overlaps, other.doors)):
                raise PortTaken(str(wanted), f"{other.shown} publishes it")

    def _bind(self, wanted: Door) -> socket.socket | None:
        try:
            return _bound(wanted)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise PortTaken(
                    str(wanted),
                    "a process of the host has it, or a container that Docker publishes itself; "
                    f"see `ss -ap 'sport = :{wanted.port}'` and `docker ps`",
                ) from error
            if error.errno == errno.EADDRNOTAVAIL:
                raise InvalidInput("-p: host address", wanted.host_ip, "is no address of this host") from error
            raise CalicoError(f"port {wanted} of this host cannot be reserved: {error.strerror}") from error


def _shown(endpoint: str, addresses: Mapping[int, str]) -> str:
    return f"container endpoint {endpoint[:12]} ({', '.join(addresses.values())})"


def _host_ips(addresses: Mapping[int, str], request: PortRequest) -> list[tuple[int, str]]:
    """(IP version, host address or nothing for all of them), where the container can be reached."""
    asked = request.host_ip
    if asked is None:
        return [(version, "") for version in sorted(addresses)]
    if asked.version not in addresses:
        raise InvalidInput("-p: host address", str(asked), f"the container has no IPv{asked.version} address")
    if asked.version == 6 and asked.is_loopback:
        raise InvalidInput("-p: host address", str(asked), "the kernel leads nothing from ::1 elsewhere; use 127.0.0.1")
    return [(asked.version, "" if asked.is_unspecified else str(asked))]


def _candidates(request: PortRequest) -> Iterator[int]:
    """Ports to be tried; 0 leaves the choice to the kernel (ip_local_port_range)."""
    if request.first:
        yield from range(request.first, request.last + 1)
    elif request.protocol == _SCTP and not _is_offered(_SCTP):
        low, high = map(int, _RANGE_FILE.read_text().split())
        yield from random.sample(range(low, high + 1), min(_EPHEMERAL_TRIES, high + 1 - low))
    else:
        yield from (0 for _ in range(_EPHEMERAL_TRIES))


def _is_offered(protocol: int) -> bool:
    try:
        socket.socket(socket.AF_INET, _KINDS[protocol], protocol).close()
    except OSError as error:
        return error.errno not in _NOT_OFFERED
    return True


def _bound(wanted: Door) -> socket.socket | None:
    """None for a protocol that the kernel has no sockets for. Raises OSError."""
    try:
        return _open(wanted, listen=False)
    except OSError as error:
        if error.errno in _NOT_OFFERED:
            return None
        if error.errno != errno.EADDRINUSE or wanted.protocol != _TCP:
            raise
        # Perhaps only connections that ended a moment ago are in the way (TIME_WAIT): those yield to one that listens.
        return _open(wanted, listen=True)


def _open(wanted: Door, listen: bool) -> socket.socket:
    made = socket.socket(_FAMILIES[wanted.version], _KINDS[wanted.protocol], wanted.protocol)
    with ExitStack() as undo:
        undo.callback(made.close)
        if wanted.version == 6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        _receive_nothing(made)
        if listen:
            # Without it, what is merely bound is never shared with anybody.
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((wanted.host_ip, wanted.port))
        if listen:
            made.listen(1)
        undo.pop_all()
    return made


def _receive_nothing(made: socket.socket) -> None:
    """A filter that lets no packet in: what comes before the agent's rules stand, or where they do not apply."""
    program = ctypes.create_string_buffer(_RETURN_NOTHING)
    made.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HL", 1, ctypes.addressof(program)))


def _allow_many_files() -> None:
    """One or two for each port: the usual soft limit of 1024 would be too few for a wide range."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
