"""Routes to this host's containers: one /32 or /128 per address, scope link, protocol 80, in the main table.

Ownership: protocol 80 on a link of ours; BIRD's (12) and everyone else's routes are never changed or removed. The
difference between what should be and what is lives in a Delta; the kernel tells of others' changes by events. It
tells nothing when it drops the IPv4 routes of a link that goes down or away, so `forget_link` must be called for
those.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
from dataclasses import dataclass
from typing import Iterator, Sequence

from calico_plugin.dataplane.delta import Delta
from calico_plugin.dataplane.netlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    RTM_GETADDR,
    RTM_GETROUTE,
    Message,
    Netlink,
    Reply,
    attribute,
    attributes,
    refusal,
    u32,
)
from calico_plugin.errors import DataplaneError
from calico_plugin.model.names import GATEWAY_IPV4, ROUTE_PROTOCOL

GROUP_IPV4_ROUTE, GROUP_IPV6_ROUTE = 7, 11
RTM_NEWROUTE, RTM_DELROUTE = 24, 25

_IFADDR = struct.Struct("=BBBBI")
_IFA_LOCAL, _LOOPBACK = 2, 1
_RTMSG = struct.Struct("=BBBBBBBBI")
_TABLE_MAIN, _UNICAST, _LOCAL = 254, 1, 2
_SCOPE_UNIVERSE, _SCOPE_LINK, _SCOPE_NOWHERE = 0, 253, 255
_RTA_DST, _RTA_OIF = 1, 4
_WHOLE = {socket.AF_INET: 32, socket.AF_INET6: 128}

# Messages in one system call: the answers must fit the socket's buffer.
_BATCH = 64

# The link went away or down, or the route is gone: the event that says so is on its way.
_MOOT = (errno.ENODEV, errno.ENETDOWN, errno.ESRCH, errno.ENXIO)


@dataclass(frozen=True, slots=True)
class RouteEvent:
    """A route appeared or vanished.

    `destination` is an address without prefix length, "" for the default route and wider nets.
    """

    destination: str
    index: int
    protocol: int
    added: bool


class RouteTable:
    """Desired and actual routes of this host's containers: address -> index of its link."""

    def __init__(self, netlink: Netlink) -> None:
        self._netlink = netlink
        self._delta: Delta[str, int] = Delta()
        self._by_link: dict[int, set[str]] = {}

    def __len__(self) -> int:
        return len(self._delta.actual)

    @property
    def pending(self) -> bool:
        """Whether the kernel's routes are not as they should be."""
        return bool(self._delta)

    def want(self, address: str, index: int) -> None:
        self._delta.want(address, index)

    def unwant(self, address: str) -> None:
        self._delta.unwant(address)

    def in_place(self, address: str) -> bool:
        return self._delta.in_place(address)

    def wanted(self, address: str) -> int | None:
        """Index of the link that the address should be behind."""
        return self._delta.desired.get(address)

    def read(self, indexes: set[int]) -> None:
        """Read the kernel's routes anew; ours are those of our protocol on the links given."""
        found = (event for event in _listing(self._netlink) if event.destination)
        actual = {event.destination: event.index for event in found if event.index in indexes}
        self._delta.replace_actual(actual)
        self._by_link = {}
        for address, index in actual.items():
            self._by_link.setdefault(index, set()).add(address)

    def on_event(self, event: RouteEvent, ours: bool) -> None:
        """`ours`: the event's link is one of our links."""
        if event.protocol != ROUTE_PROTOCOL or not ours or not event.destination:
            return
        if event.added:
            self._saw(event.destination, event.index)
        elif self._delta.actual.get(event.destination) == event.index:
            self._lost(event.destination)

    def forget_link(self, index: int) -> None:
        """A link went down or away, and its routes with it."""
        for address in self._by_link.pop(index, set()):
            if self._delta.actual.get(address) == index:
                self._delta.lost(address)

    def apply(self, remove: bool) -> dict[str, DataplaneError]:
        """Write the difference, removals only when `remove`; the errors by address. What failed stays different."""
        if not self._delta:
            return {}
        removals = {address: self._delta.actual[address] for address in self._delta.removals()} if remove else {}
        errors = self._remove(removals)
        errors.update(self._add(self._delta.updates()))
        return errors

    def _remove(self, routes: dict[str, int]) -> dict[str, DataplaneError]:
        errors = {}
        messages = [_route(RTM_DELROUTE, address, index) for address, index in routes.items()]
        for (address, message), reply in zip(zip(routes, messages), _send(self._netlink, messages)):
            if reply.errno and reply.errno not in _MOOT:
                errors[address] = refusal(message.what, reply.errno, reply.explanation)
            else:
                self._lost(address)
        return errors

    def _add(self, routes: dict[str, int]) -> dict[str, DataplaneError]:
        errors = {}
        messages = [_route(RTM_NEWROUTE, address, index, self._mode(address)) for address, index in routes.items()]
        for (address, index), reply in zip(routes.items(), _send(self._netlink, messages)):
            if reply.errno == errno.EEXIST:
                # Somebody made it for us (another agent's leftover under another protocol): a local container beats it.
                reply = _send(self._netlink, [_route(RTM_NEWROUTE, address, index, NLM_F_CREATE | NLM_F_REPLACE)])[0]
            if reply.errno:
                errors[address] = refusal(f"route to {address} cannot be set", reply.errno, reply.explanation)
            else:
                self._saw(address, index)
        return errors

    def _mode(self, address: str) -> int:
        return NLM_F_CREATE | (NLM_F_REPLACE if address in self._delta.actual else NLM_F_EXCL)

    def _saw(self, address: str, index: int) -> None:
        self._lost(address)
        self._delta.saw(address, index)
        self._by_link.setdefault(index, set()).add(address)

    def _lost(self, address: str) -> None:
        index = self._delta.actual.get(address)
        if index is not None:
            self._by_link.get(index, set()).discard(address)
            self._delta.lost(address)


def moot(error: DataplaneError) -> bool:
    """Whether an error only says that the link has gone or is down meanwhile."""
    return error.errno in _MOOT


def decode(kind: int, body: bytes) -> RouteEvent | None:
    """A unicast route of the main table from an event or answer; None for all others."""
    family, length, _, _, table, protocol, _, route_type, _ = _RTMSG.unpack_from(body)
    if route_type != _UNICAST or table != _TABLE_MAIN or family not in _WHOLE:
        return None
    found = dict(attributes(body, _RTMSG.size))
    index = _number(found.get(_RTA_OIF))
    whole = length == _WHOLE[family] and _RTA_DST in found
    address = socket.inet_ntop(family, found[_RTA_DST]) if whole else ""
    return RouteEvent(address, index, protocol, kind == RTM_NEWROUTE)


def gateway_covered(netlink: Netlink, own: set[int]) -> bool:
    """Whether the kernel answers proxy ARP for the containers' gateway: it does when its route leads through another
    link.

    `own` are the indexes of our links. A local address counts too: the kernel then answers by itself.
    """
    request = _RTMSG.pack(socket.AF_INET, 32, 0, 0, 0, 0, 0, 0, 0) + attribute(_RTA_DST, socket.inet_aton(GATEWAY_IPV4))
    (reply,) = netlink.send([Message(RTM_GETROUTE, 0, request, "the gateway's route cannot be looked up")])
    if reply.errno or not reply.objects:
        return False
    kind = _RTMSG.unpack_from(reply.objects[0])[7]
    index = _number(dict(attributes(reply.objects[0], _RTMSG.size)).get(_RTA_OIF))
    return kind == _LOCAL or (kind == _UNICAST and index not in own)


def uplink(netlink: Netlink, node_address: str, own: set[int]) -> int:
    """Index of the link that holds the node's address, else of any other link with an IPv4 address, else of loopback.

    Not loopback first: what a container sends to the gateway's address itself would go round there until its TTL ends.
    """
    found: dict[str, int] = {}
    request = Message(RTM_GETADDR, 0, _IFADDR.pack(socket.AF_INET, 0, 0, 0, 0), "addresses cannot be listed")
    for answer in netlink.dump(request):
        index = _IFADDR.unpack_from(answer)[4]
        local = dict(attributes(answer, _IFADDR.size)).get(_IFA_LOCAL)
        if local is not None and index not in own and index != _LOOPBACK:
            found[socket.inet_ntop(socket.AF_INET, local)] = index
    return found.get(node_address) or min(found.values(), default=_LOOPBACK)


def cover_gateway(netlink: Netlink, index: int) -> None:
    """Add our route for the gateway through link `index`: needed on a host without a default route.

    Raises DataplaneError.
    """
    message = _route(RTM_NEWROUTE, GATEWAY_IPV4, index, NLM_F_CREATE | NLM_F_EXCL)
    (reply,) = netlink.send([message])
    if reply.errno not in (0, errno.EEXIST):
        raise refusal(message.what, reply.errno, reply.explanation)


def remove_all(netlink: Netlink, indexes: set[int]) -> int:
    """Remove every route of ours (`calicoctl node reset`): those on our links and the gateway's; how many."""
    messages = [
        _route(RTM_DELROUTE, event.destination, event.index)
        for event in _listing(netlink)
        if event.destination and (event.index in indexes or event.destination == GATEWAY_IPV4)
    ]
    return sum(reply.errno == 0 for reply in _send(netlink, messages))


def _listing(netlink: Netlink) -> Iterator[RouteEvent]:
    """All routes of our protocol."""
    for family in _WHOLE:
        request = _RTMSG.pack(family, 0, 0, 0, _TABLE_MAIN, ROUTE_PROTOCOL, 0, _UNICAST, 0)
        for answer in netlink.dump(Message(RTM_GETROUTE, 0, request, "routes cannot be listed")):
            event = decode(RTM_NEWROUTE, answer)
            if event is not None and event.protocol == ROUTE_PROTOCOL:
                yield event


def _send(netlink: Netlink, messages: Sequence[Message]) -> list[Reply]:
    """In portions whose answers fit the socket's buffer."""
    replies: list[Reply] = []
    for start in range(0, len(messages), _BATCH):
        replies += netlink.send(messages[start:start + _BATCH])
    return replies


def _number(attribute_: bytes | None) -> int:
    return int.from_bytes(attribute_ or b"", sys.byteorder)


def _route(kind: int, address: str, index: int, flags: int = 0) -> Message:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    if family == socket.AF_INET6:
        scope = _SCOPE_UNIVERSE
    else:
        scope = _SCOPE_LINK if kind == RTM_NEWROUTE else _SCOPE_NOWHERE
    header = _RTMSG.pack(family, _WHOLE[family], 0, 0, _TABLE_MAIN, ROUTE_PROTOCOL, scope, _UNICAST, 0)
    body = header + attribute(_RTA_DST, socket.inet_pton(family, address)) + u32(_RTA_OIF, index)
    return Message(kind, flags, body, f"route to {address} cannot be {'set' if kind == RTM_NEWROUTE else 'removed'}")
