"""A router in a network namespace with workload interfaces, and hand-made packets through it: rules on the wire.

All far ends of the router's links are in a second namespace without any configuration; packets are put on a link and
taken from a link as frames, so that every protocol, address and port can be tried without a process for each.
"""

from __future__ import annotations

import ctypes
import os
import select
import socket
import struct
import subprocess
import threading
import time
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Callable, Iterable, Mapping, TypeVar

T = TypeVar("T")
_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000
_ETH_P_ALL = 3
_ROUTER_MAC, _FAR_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"
UPLINK = "uplink"
BARRIER = "barrier"
HOST = {4: "172.31.0.1", 6: "fd31::1"}


_MARK = b"calico"
_QUIET = 0.3
"""Seconds without a frame after which none is expected: only waited for when a test's rules stop the barrier, too."""


def in_thread(work: Callable[[], T]) -> T:
    """Run `work` in a thread that ends, so that this one stays in its namespace."""
    outcome: list[T] = []
    failure: list[BaseException] = []

    def body() -> None:
        try:
            outcome.append(work())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


def in_namespace(name: str, work: Callable[[], T]) -> T:
    """Run `work` in a short-lived thread inside a namespace; sockets made there stay there."""
    def inside() -> T:
        handle = os.open(f"/run/netns/{name}", os.O_RDONLY)
        try:
            if _LIBC.setns(handle, _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        finally:
            os.close(handle)
        return work()

    return in_thread(inside)


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet; `dport`/`sport` are ICMP type/code for protocols 1 and 58. `flags` are TCP's."""

    source: str
    destination: str
    protocol: int = 6
    sport: int = 40000
    dport: int = 80
    flags: int = 0x02

    @property
    def family(self) -> int:
        return ip_address(self.source).version

    def reply(self, flags: int = 0x12) -> Packet:
        return Packet(self.destination, self.source, self.protocol, self.dport, self.sport, flags)


def ping(source: str, destination: str, kind: int | None = None, code: int = 0) -> Packet:
    """An ICMP packet of the right version; echo request by default."""
    four = ip_address(source).version == 4
    return Packet(source, destination, 1 if four else 58, code, kind if kind is not None else 8 if four else 128)


def _checksum(data: bytes) -> int:
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def _with_checksum(packet: Packet, segment: bytes, at: int, pseudo: bool = True) -> bytes:
    source, destination = ip_address(packet.source).packed, ip_address(packet.destination).packed
    header = source + destination + struct.pack("!IHBB", len(segment), 0, 0, packet.protocol) if pseudo else b""
    value = _checksum(header + segment) or 0xFFFF
    return segment[:at] + struct.pack("!H", value) + segment[at + 2:]


def _transport(packet: Packet, mark: bytes) -> bytes:
    ports = struct.pack("!HH", packet.sport, packet.dport)
    if packet.protocol == 6:
        sequence = struct.pack("!IIBBHHH", 1000, 1 if packet.flags & 0x10 else 0, 5 << 4, packet.flags, 8192, 0, 0)
        return _with_checksum(packet, ports + sequence + mark, 16)
    if packet.protocol == 17:
        return _with_checksum(packet, ports + struct.pack("!HH", 8 + len(mark), 0) + mark, 6)
    if packet.protocol == 136:
        return _with_checksum(packet, ports + struct.pack("!HH", 8 + len(mark), 0) + mark, 6)
    if packet.protocol == 132:
        chunk = struct.pack("!BBHIIHHI", 1, 0, 20, 77, 65535, 1, 1, 1)
        chunk += struct.pack("!HH", 0x8001, 4 + len(mark)) + mark
        chunk = chunk[:2] + struct.pack("!H", len(chunk)) + chunk[4:]
        body = ports + struct.pack("!I", 0) + b"\0\0\0\0" + chunk
        return body[:8] + struct.pack("<I", _crc32c(body)) + body[12:]
    if packet.protocol in (1, 58):
        body = struct.pack("!BBHHH", packet.dport, packet.sport, 0, 1, 1) + mark
        return _with_checksum(packet, body, 2, pseudo=packet.protocol == 58)
    return mark


def frame(packet: Packet, mark: bytes) -> bytes:
    """Ethernet frame that carries the packet, with `mark` near its end."""
    body = _transport(packet, mark)
    source, destination = ip_address(packet.source).packed, ip_address(packet.destination).packed
    mac = bytes.fromhex((_ROUTER_MAC + _FAR_MAC).replace(":", ""))
    if packet.family == 6:
        header = struct.pack("!IHBB", 0x60000000, len(body), packet.protocol, 255) + source + destination
        return mac + b"\x86\xdd" + header + body
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 1, 0, 64, packet.protocol, 0) + source + destination
    header = header[:10] + struct.pack("!H", _checksum(header)) + header[12:]
    return mac + b"\x08\x00" + header + body


_BARRIER_PACKET = Packet("192.0.2.1", "192.0.2.254", 17, 9, 9)


def _source_for(address: str) -> str:
    return "192.0.2.1" if ip_address(address).version == 4 else "2001:db8:ffff::1"


class Router:
    """Namespaces, links, routes and neighbours; frames in and out. Use as a context manager."""

    def __init__(self, name: str, workloads: Mapping[str, Iterable[str]]) -> None:
        # Several runs on one machine must not take each other's namespaces.
        self.name, self.far = f"{name}-{os.getpid()}-r", f"{name}-{os.getpid()}-f"
        self.workloads = {interface: tuple(addresses) for interface, addresses in workloads.items()}
        links = (UPLINK, BARRIER, *self.workloads)
        self._far_names = {interface: f"f{number}" for number, interface in enumerate(links)}
        self._sockets: dict[str, socket.socket] = {}
        self._sent = 0

    def __enter__(self) -> Router:
        self.close()
        try:
            for namespace in (self.name, self.far):
                subprocess.run(["ip", "netns", "add", namespace], check=True)
            self._sysctls()
            self._links()
            self._sockets = in_namespace(self.far, self._open)
            self._warm_up()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for handle in self._sockets.values():
            handle.close()
        self._sockets = {}
        for namespace in (self.name, self.far):
            subprocess.run(["ip", "netns", "del", namespace], capture_output=True)

    def run(self, *command: str, check: bool = True) -> str:
        """A command inside the router's namespace."""
        done = subprocess.run(
            ["nsenter", f"--net=/run/netns/{self.name}", *command], check=check, capture_output=True, text=True)
        return done.stdout

    def forget_connections(self) -> None:
        self.run("conntrack", "-F", check=False)

    def _sysctls(self) -> None:
        # Connection tracking judges checksums of UDP-Lite in its own way; they are not what is tested here.
        self.run(
            "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1",
            "net.ipv6.conf.default.accept_dad=0", "net.ipv4.conf.all.rp_filter=0",
            "net.ipv4.conf.default.rp_filter=0", "net.netfilter.nf_conntrack_checksum=0",
        )
        far = ["nsenter", f"--net=/run/netns/{self.far}", "sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1"]
        subprocess.run(far, check=True)

    def _links(self) -> None:
        lines = ["link set lo up"]
        for interface, far in self._far_names.items():
            lines += [
                f"link add {interface} address {_ROUTER_MAC} type veth peer name {far} netns {self.far}",
                f"link set {interface} up",
            ]
        lines += [f"addr add {HOST[4]}/24 dev {UPLINK}", f"addr add {HOST[6]}/64 dev {UPLINK} nodad"]
        for via, family in (("172.31.0.254", "-4"), ("fd31::fe", "-6")):
            lines.append(f"neigh add {via} lladdr {_FAR_MAC} dev {UPLINK} nud permanent")
            lines.append(f"route add default via {via} dev {UPLINK}")
        for interface, addresses in ((BARRIER, ("192.0.2.254",)), *self.workloads.items()):
            for address in addresses:
                lines.append(f"route add {address} dev {interface}")
                lines.append(f"neigh add {address} lladdr {_FAR_MAC} dev {interface} nud permanent")
        subprocess.run(["ip", "-n", self.name, "-batch", "-"], input="\n".join(lines), text=True, check=True)
        up = "\n".join(f"link set {far} up" for far in self._far_names.values())
        subprocess.run(["ip", "-n", self.far, "-batch", "-"], input=up, text=True, check=True)

    def _open(self) -> dict[str, socket.socket]:
        found = {}
        for interface, far in self._far_names.items():
            handle = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
            handle.bind((far, 0))
            handle.setblocking(False)
            found[interface] = handle
        return found

    def _warm_up(self) -> None:
        """A link carries nothing until the kernel's work queue has seen that it is up: send until each does."""
        waiting = {name: addresses[0] for name, addresses in self.workloads.items() if addresses}
        waiting[UPLINK] = "203.0.113.250"
        end = time.monotonic() + 10
        while waiting:
            for name, address in waiting.items():
                self._sockets[BARRIER].send(frame(Packet(_source_for(address), address, 17, 9, 9), b"warm-up"))
            for interface, data in self.collect():
                if b"warm-up" in data:
                    waiting.pop(interface, None)
            if time.monotonic() > end:
                raise TimeoutError(f"links that do not come up: {', '.join(waiting)}")
        self.forget_connections()

    def interface_of(self, address: str) -> str:
        """The link behind which an address lives."""
        for interface, addresses in self.workloads.items():
            if address in addresses:
                return interface
        return UPLINK

    def send(self, packets: Iterable[Packet], via: str | None = None) -> list[bool]:
        """Put packets on the links of their sources (or all on `via`), and say which came out where they should."""
        sent = [(self._put(packet, via), self.interface_of(packet.destination)) for packet in packets]
        seen = self.marks()
        return [(mark, interface) in seen for mark, interface in sent]

    def where(self, packet: Packet) -> set[str]:
        """Links out of which the packet came, whatever its destination became."""
        mark = self._put(packet)
        return {interface for seen, interface in self.marks() if seen == mark}

    def answered(self, packet: Packet) -> bool:
        """Whether the router itself answers a TCP packet: nobody listens there, so with a reset."""
        link = self.interface_of(packet.source)
        self._put(packet)
        ports = struct.pack("!HH", packet.dport, packet.sport)
        start = 14 + (40 if packet.family == 6 else 20)
        return any(
            interface == link and data[start:start + 4] == ports and data[start + 13] & 4
            for interface, data in self.collect() if len(data) > start + 13
        )

    def sources_seen(self, packet: Packet) -> set[str]:
        """Send one packet and tell the source addresses (IPv4) with which it came out of the uplink."""
        mark = self._put(packet)
        seen = (data for interface, data in self.collect() if interface == UPLINK)
        return {str(ip_address(data[26:30])) for data in seen if mark in data}

    def marks(self) -> set[tuple[bytes, str]]:
        """Marked frames that came out so far, with their links."""
        found = ((data[data.find(_MARK):][:14], interface) for interface, data in self.collect() if _MARK in data)
        return set(found)

    def socket_of(self, interface: str) -> socket.socket:
        """The far end's packet socket: frames sent there enter the router by that link."""
        return self._sockets[interface]

    def _put(self, packet: Packet, via: str | None = None) -> bytes:
        self._sent += 1
        mark = _MARK + struct.pack("!Q", self._sent)
        self._sockets[via or self.interface_of(packet.source)].send(frame(packet, mark))
        return mark

    def collect(self) -> list[tuple[str, bytes]]:
        """(link, frame) of all that came out, until a last packet that nothing stops has come, or none for a while."""
        self._sent += 1
        last = b"barrier" + struct.pack("!Q", self._sent)
        self._sockets[BARRIER].send(frame(_BARRIER_PACKET, last))
        found: list[tuple[str, bytes]] = []
        names = {handle: interface for interface, handle in self._sockets.items()}
        quiet = _QUIET
        while ready := select.select(list(names), [], [], quiet)[0]:
            for handle in ready:
                data, address = handle.recvfrom(2048)
                if address[2] != socket.PACKET_OUTGOING:
                    found.append((names[handle], data))
                    quiet = 0.002 if last in data else quiet
        return found
