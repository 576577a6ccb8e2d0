"""Packets that wait in the kernel for our word (linux/netfilter/nfnetlink_queue.h).

The rules that send them here say `bypass`: with nobody bound to the queue they go on as if there were no rule. The
queue is told to `fail open`: so do packets that find it full.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from calico_plugin.dataplane.netlink import attribute, attributes
from calico_plugin.dataplane.nfgroup import BIND, COPY_PACKET, NFGENMSG, NFQUEUE, PacketSocket

_VERDICT = 1
_CFG_CMD, _CFG_PARAMS, _CFG_MAXLEN, _CFG_MASK, _CFG_FLAGS = 1, 2, 3, 4, 5
_FAIL_OPEN = 1
_HEADER, _VERDICT_HEADER, _IN_DEVICE, _HARDWARE_ADDRESS, _PAYLOAD = 1, 2, 5, 9, 10
_PACKET_HEADER = struct.Struct("!IHB")
_DROP, _ACCEPT = 0, 1
# More than any query that we answer; of a longer packet we get the beginning.
_COPY_BYTES = 1024
_LONGEST = 256
_BUFFER = 1 << 20


@dataclass(frozen=True, slots=True)
class Queued:
    """A packet from its IP header on. `device` is the index of the link by which it came, 0 for one that this host
    sends; `hardware` the sender's link-layer address there.
    """

    id: int
    device: int
    hardware: bytes
    packet: bytes


class Queue:
    """Bound to a queue of the network namespace in which it is made. Raises DataplaneError."""

    def __init__(self, number: int) -> None:
        self._socket = PacketSocket(NFQUEUE, number, _BUFFER)
        self._socket.configure(attribute(_CFG_CMD, struct.pack("!BBH", BIND, 0, 0)))
        self._socket.configure(
            attribute(_CFG_PARAMS, struct.pack("!IB", _COPY_BYTES, COPY_PACKET)),
            attribute(_CFG_MAXLEN, struct.pack("!I", _LONGEST)),
            attribute(_CFG_FLAGS, struct.pack("!I", _FAIL_OPEN)),
            attribute(_CFG_MASK, struct.pack("!I", _FAIL_OPEN)),
        )

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def read(self, seconds: float | None) -> list[Queued]:
        """What has come, after a wait of so long at most (None: until something comes). Each needs a verdict."""
        return [packet(body) for body in self._socket.packets(seconds) or ()]

    def decide(self, one: Queued, accept: bool) -> None:
        """Let it go on as it is, or drop it."""
        verdict = struct.pack("!II", _ACCEPT if accept else _DROP, one.id)
        self._socket.tell(_VERDICT, attribute(_VERDICT_HEADER, verdict))


def packet(body: bytes) -> Queued:
    """A message's content."""
    parts = dict(attributes(body, NFGENMSG.size))
    number, _, _ = _PACKET_HEADER.unpack_from(parts[_HEADER])
    length, = struct.unpack_from("!H", parts.get(_HARDWARE_ADDRESS, b"\0\0"))
    return Queued(
        id=number,
        device=int.from_bytes(parts.get(_IN_DEVICE, b""), "big"),
        hardware=parts.get(_HARDWARE_ADDRESS, b"")[4:4 + length],
        packet=parts.get(_PAYLOAD, b""),
    )
