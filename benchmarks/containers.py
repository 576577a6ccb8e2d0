"""Stand-ins for containers: real veth pairs whose far ends are in network namespaces of their own, and packets sent and
taken there as frames, so that a packet of any source, protocol and port can be tried at any moment.

The links are made as the driver makes them; the host's ends are in this process's network namespace. The namespaces
have no name and go with this process.
"""

from __future__ import annotations

import ctypes
import os
import select
import socket
import struct
import subprocess
import time
from dataclasses import dataclass
from typing import Iterator, Sequence

from calico_plugin.dataplane import veth
from calico_plugin.dataplane.netlink import RTM_SETLINK, Message, Netlink, text, u32
from calico_plugin.dataplane.veth import Veth
from calico_plugin.model.names import HOST_MAC
from tests.kernel.packets import Packet, frame, in_thread

MAC = "02:00:00:00:00:02"
UDP, DISCARD = 17, 9
_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000
_LINK = struct.Struct("=BxHiII")
_IFF_UP = 0x1
_IFLA_IFNAME, _IFLA_NET_NS_FD = 3, 28
_ETH_P_IP = 0x800
_PORTS = range(1024, 65536)
# A packet that passes is there when `send` returns, unless the kernel is busy; then it comes a little later.
_SOON, _LATE = 0.0003, 0.003


@dataclass(frozen=True)
class Container:
    """`socket` is a packet socket at the container's end of its link."""

    interface: str
    address: str
    namespace: int
    socket: socket.socket

    def close(self) -> None:
        self.socket.close()
        os.close(self.namespace)


def create(links: Netlink, interface: str, address: str) -> Container:
    """With both ends of its link up, and known to this host's kernel as a neighbour, so that nothing is asked first."""
    inside = f"temp{interface[4:]}"
    veth.create(links, Veth(interface, inside, MAC))
    namespace, inner = in_thread(_new_namespace)
    links.execute(_set_link(inside, 0, u32(_IFLA_NET_NS_FD, namespace)))
    inner.execute(_set_link(inside, _IFF_UP, b""))
    inner.close()
    return Container(interface, address, namespace, in_thread(lambda: _packets(namespace, inside)))


def await_running(links: Netlink, containers: Sequence[Container], seconds: float = 20.0) -> None:
    """Until the kernel says that their links carry packets, which can take it a second; then they become neighbours."""
    over = time.monotonic() + seconds
    for one in containers:
        while not ((found := veth.find(links, one.interface)) and found.running):
            if time.monotonic() > over:
                raise TimeoutError(f"link {one.interface} does not come up")
            time.sleep(0.01)
    known = (f"neigh replace {one.address} lladdr {MAC} dev {one.interface} nud permanent\n" for one in containers)
    subprocess.run(["ip", "-batch", "-"], input="".join(known), text=True, check=True)


class Way:
    """Packets from one container to another (UDP, port 9), each the first of a connection, so that it meets policy."""

    def __init__(self, source: Container, target: Container) -> None:
        self._source, self._target = source, target
        self._flows = _flows()

    def passes(self, wait: float = _SOON) -> bool:
        """Send a packet; whether it comes out within `wait` seconds."""
        mark = os.urandom(8)
        packet = Packet(self._source.address, self._target.address, UDP, next(self._flows), DISCARD)
        self._source.socket.send(bytes.fromhex(HOST_MAC.replace(":", "")) + frame(packet, mark)[6:])
        over = time.perf_counter() + wait
        while select.select([self._target.socket], [], [], max(0.0, over - time.perf_counter()))[0]:
            if mark in self._target.socket.recv(2048):
                return True
        return False

    def opened(self, seconds: float = 30.0) -> float:
        """When the first packet that passes is sent."""
        over = time.perf_counter() + seconds
        while (sent := time.perf_counter()) < over:
            if self.passes():
                return sent
        raise TimeoutError(f"no packet passes from {self._source.interface} to {self._target.interface}")

    def closed(self, seconds: float = 30.0) -> float:
        """When the first packet that does not pass any more is sent."""
        over = time.perf_counter() + seconds
        while (sent := time.perf_counter()) < over:
            if not self.passes(_LATE) and not any(self.passes(_LATE) for _ in range(3)):
                return sent
            time.sleep(0.0002)
        raise TimeoutError(f"packets still pass from {self._source.interface} to {self._target.interface}")


def _flows() -> Iterator[int]:
    while True:
        yield from _PORTS


def _set_link(name: str, up: int, more: bytes) -> Message:
    return Message(RTM_SETLINK, 0, _LINK.pack(0, 0, 0, up, up) + text(_IFLA_IFNAME, name) + more, f"link {name}")


def _new_namespace() -> tuple[int, Netlink]:
    if _LIBC.unshare(_CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "a network namespace cannot be made")
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY), Netlink()


def _packets(namespace: int, interface: str) -> socket.socket:
    if _LIBC.setns(namespace, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
    # Of one protocol only: then it does not see what it sends itself.
    handle = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_IP))
    handle.bind((interface, _ETH_P_IP))
    return handle
