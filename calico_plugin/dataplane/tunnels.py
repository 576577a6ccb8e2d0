"""Tunnel devices, the static entries that stand for the other ends, and the routes of encapsulated pools.

Ownership: the devices by their names, everything on them, and routes of our protocol that lead through them, behind a
gateway, or nowhere (blackholes). Routes to this host's own containers are `routes.RouteTable`'s, BIRD's are BIRD's.
Nothing is learned and nothing floods: every other end has one neighbour entry (address inside the pool -> MAC) and one
forwarding entry (MAC -> its node's address).

A device that is not as it should be is made anew; the kernel drops its entries and routes with it, so what the kernel
has is read again after that. Whether a kind of tunnel exists in this kernel is found out by making one.
"""

from __future__ import annotations

import errno
import socket
import struct
from dataclasses import dataclass
from typing import Iterator, Sequence, TypeVar

from calico_plugin.dataplane.delta import Delta
from calico_plugin.dataplane.netlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_GETROUTE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_SETLINK,
    Message,
    Netlink,
    Reply,
    attribute,
    attributes,
    nested,
    refusal,
    text,
    u32,
)
from calico_plugin.dataplane.routes import RTM_DELROUTE, RTM_NEWROUTE
from calico_plugin.errors import DataplaneError
from calico_plugin.model.names import IPIP_DEVICE, ROUTE_PROTOCOL, VXLAN_DEVICES
from calico_plugin.model.tunnels import IPIP, VXLAN, Device, TunnelRoute, Tunnels

DEVICES = (*VXLAN_DEVICES.values(), IPIP_DEVICE)

RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
_IFINFO = struct.Struct("=BBHiII")
_IFADDR = struct.Struct("=BBBBI")
_RTMSG = struct.Struct("=BBBBBBBBI")
_NDMSG = struct.Struct("=BxxxiHBB")
_AF_BRIDGE = 7
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_WHOLE = {socket.AF_INET: 32, socket.AF_INET6: 128}
_IFF_UP = 0x1
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINKINFO, _IFLA_EXT_MASK = 1, 3, 4, 18, 29
_SKIP_STATISTICS = 1 << 3
_INFO_KIND, _INFO_DATA = 1, 2
_VXLAN_ID, _VXLAN_LOCAL, _VXLAN_LEARNING, _VXLAN_PORT, _VXLAN_LOCAL6 = 1, 4, 7, 15, 17
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RTA_DST, _RTA_OIF, _RTA_GATEWAY = 1, 4, 5
_NDA_DST, _NDA_LLADDR = 1, 2
_NUD_PERMANENT, _NTF_SELF = 0x80, 0x02
_TABLE_MAIN, _UNICAST, _BLACKHOLE = 254, 1, 6
_RTNH_ONLINK = 4
_LINK_LOCAL = b"\xfe\x80"
_BATCH = 64
# What is to be removed is gone already.
_GONE = (errno.ENODEV, errno.ENOENT, errno.ESRCH, errno.ENXIO, errno.EADDRNOTAVAIL)
_NO_SUCH_KIND = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT)

# (device name, address inside the pool) -> MAC; (device name, MAC) -> the other node's address
Entry = tuple[str, str]
K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class _Link:
    """What the kernel says of one of our devices."""

    index: int
    name: str
    up: bool
    kind: str
    mac: str
    mtu: int
    local: str
    vni: int
    port: int
    learning: bool

    def fits(self, wanted: Device) -> bool:
        """Whether it need not be made anew."""
        if self.kind != wanted.kind:
            return False
        if wanted.kind == IPIP:
            return True
        return not self.learning and (self.vni, self.port, self.local) == (wanted.vni, wanted.port, wanted.local)


class TunnelTable:
    """Owned by one thread. `want` says what should be, `apply` makes it so; `on_...` hear what others do."""

    def __init__(self, netlink: Netlink) -> None:
        self._netlink = netlink
        self._wanted = Tunnels()
        self._names: dict[int, str] = {}
        self._neighbours: Delta[Entry, str] = Delta()
        self._forwarding: Delta[Entry, str] = Delta()
        self._routes: Delta[str, TunnelRoute] = Delta()
        self._read_needed = self._devices_needed = True
        self._told: dict[str, str] = {}

    @property
    def pending(self) -> bool:
        """Whether there is, or may be, anything to do."""
        return (
            self._read_needed
            or self._devices_needed
            or bool(self._neighbours)
            or bool(self._forwarding)
            or bool(self._routes)
        )

    @property
    def problems(self) -> tuple[str, ...]:
        """What this kernel cannot do, as of the last `apply`."""
        return tuple(self._told.values())

    def want(self, wanted: Tunnels) -> None:
        if wanted == self._wanted:
            return
        if wanted.devices != self._wanted.devices:
            self._devices_needed = True
        self._wanted = wanted
        self._want_the_possible()

    def look(self) -> None:
        """Read everything again at the next `apply`."""
        self._read_needed = self._devices_needed = True

    def on_link(self, body: bytes) -> None:
        """An event about any link."""
        if self._wanted.devices and _name_of(body) in DEVICES:
            self.look()

    def on_route(self, kind: int, body: bytes) -> None:
        """An event about any route: one of ours was taken away, or another stands in its place."""
        if not self._routes.desired:
            return
        found = _destination(body)
        if found is None or found not in self._routes.desired:
            return
        route = self._route_of(body)
        if kind == RTM_NEWROUTE and route is not None:
            self._routes.saw(found, route)
        elif self._routes.in_place(found) and (kind == RTM_NEWROUTE) == (route is None):
            self._routes.lost(found)

    def apply(self) -> list[str]:
        """Bring the kernel in step; what failed and will be tried again, as sentences."""
        errors: list[str] = []
        try:
            if self._devices_needed:
                self._ensure_devices(errors)
            self._want_the_possible()
            if self._read_needed:
                self._read()
        except DataplaneError as error:
            return [*errors, str(error)]
        self._apply_entries(errors)
        self._apply_routes(errors)
        return errors

    # Devices

    def _ensure_devices(self, errors: list[str]) -> None:
        present = {link.name: link for link in _links(self._netlink)}
        wanted = {device.name: device for device in self._wanted.devices}
        self._devices_needed = False
        self._read_needed = True
        self._told = {name: why for name, why in self._told.items() if name in wanted}
        for name, link in tuple(present.items()):
            if name == IPIP_DEVICE and name not in wanted:
                # The kernel makes it by itself with anyone's IPIP tunnel. What we did not use is not ours to touch.
                if link.index in self._names:
                    self._clear(link)
            elif name not in wanted or not link.fits(wanted[name]):
                self._delete(link, errors)
                del present[name]
        self._names = {}
        for device in wanted.values():
            self._ensure(device, present.get(device.name), errors)

    def _ensure(self, device: Device, link: _Link | None, errors: list[str]) -> None:
        try:
            uplink_mtu = _mtu_of_address(self._netlink, device)
            mtu = device.mtu or (uplink_mtu - device.overhead if uplink_mtu else 0)
            if link is None:
                self._netlink.execute(_creation(device, mtu))
                link = next((one for one in _links(self._netlink) if one.name == device.name), None)
                if link is None:
                    raise DataplaneError(f"device {device.name} vanished again", errno.ENODEV)
            if correction := _correction(device, link, mtu):
                self._netlink.execute(correction)
            self._ensure_address(device, link)
        except DataplaneError as error:
            self._fail(device, error, errors)
            return
        self._told.pop(device.name, None)
        self._names[link.index] = device.name

    def _fail(self, device: Device, error: DataplaneError, errors: list[str]) -> None:
        if error.errno in _NO_SUCH_KIND:
            kind = device.kind.upper()
            self._told[device.name] = (
                f"this host's kernel has no {kind}: containers of {kind} pools cannot reach other hosts from here; "
                f"use vxlanMode or a pool without encapsulation ({error})"
            )
        else:
            errors.append(str(error))
            self._devices_needed = True

    def _ensure_address(self, device: Device, link: _Link) -> None:
        family = _FAMILIES[device.version]
        found = _addresses(self._netlink, link.index, family)
        wanted = socket.inet_pton(family, device.address)
        stale = [one for one in found if one != (wanted, _WHOLE[family]) and not one[0].startswith(_LINK_LOCAL)]
        for address, length in stale:
            self._netlink.send([_address(RTM_DELADDR, family, link.index, address, length)])
        if (wanted, _WHOLE[family]) not in found:
            self._netlink.execute(_address(RTM_NEWADDR, family, link.index, wanted, _WHOLE[family]))

    def _delete(self, link: _Link, errors: list[str]) -> None:
        message = Message(RTM_DELLINK, 0, _IFINFO.pack(0, 0, 0, link.index, 0, 0), f"device {link.name} cannot go")
        (reply,) = self._netlink.send([message])
        if reply.errno and reply.errno not in _GONE:
            errors.append(str(refusal(message.what, reply.errno, reply.explanation)))
            self._devices_needed = True

    def _clear(self, link: _Link) -> None:
        for address, length in _addresses(self._netlink, link.index, socket.AF_INET):
            self._netlink.send([_address(RTM_DELADDR, socket.AF_INET, link.index, address, length)])

    # Entries and routes

    def _want_the_possible(self) -> None:
        """Of what is wanted, what the devices that are there allow; the rest is told by `problems` or tried again."""
        there = {"", *self._names.values()}
        wanted = self._wanted
        _want_all(self._neighbours, {(one.device, one.address): one.mac for one in wanted.peers if one.device in there})
        _want_all(self._forwarding, {(one.device, one.mac): one.host for one in wanted.peers if one.device in there})
        _want_all(self._routes, {cidr: route for cidr, route in wanted.routes.items() if route.device in there})

    def _read(self) -> None:
        neighbours: dict[Entry, str] = {}
        forwarding: dict[Entry, str] = {}
        for index, name in self._names.items():
            if name not in VXLAN_DEVICES.values():
                continue
            family = socket.AF_INET if name == VXLAN_DEVICES[4] else socket.AF_INET6
            neighbours.update(((name, address), mac) for address, mac in _entries(self._netlink, family, index))
            forwarding.update(((name, mac), host) for host, mac in _entries(self._netlink, _AF_BRIDGE, index))
        self._neighbours.replace_actual(neighbours)
        self._forwarding.replace_actual(forwarding)
        self._routes.replace_actual(dict(self._listing()))
        self._read_needed = False

    def _apply_entries(self, errors: list[str]) -> None:
        indexes = {name: index for index, name in self._names.items()}
        for delta, build in ((self._neighbours, _neighbour), (self._forwarding, _forward)):
            removals = [(key, delta.actual[key]) for key in delta.removals()]
            gone = [build(RTM_DELNEIGH, indexes.get(key[0], 0), key, value) for key, value in removals]
            for key, _ in self._done(removals, gone, errors):
                delta.lost(key)
            updates = list(delta.updates().items())
            new = [build(RTM_NEWNEIGH, indexes[key[0]], key, value) for key, value in updates]
            for key, value in self._done(updates, new, errors):
                delta.saw(key, value)

    def _apply_routes(self, errors: list[str]) -> None:
        indexes = {name: index for index, name in self._names.items()}
        removals = [(cidr, self._routes.actual[cidr]) for cidr in self._routes.removals()]
        gone = [_route(RTM_DELROUTE, cidr, route, indexes) for cidr, route in removals]
        for cidr, _ in self._done(removals, gone, errors):
            self._routes.lost(cidr)
        updates = list(self._routes.updates().items())
        new = [_route(RTM_NEWROUTE, cidr, route, indexes) for cidr, route in updates]
        for cidr, route in self._done(updates, new, errors):
            self._routes.saw(cidr, route)

    def _done(
        self, items: Sequence[tuple[K, V]], messages: Sequence[Message], errors: list[str]
    ) -> Iterator[tuple[K, V]]:
        """Send; those that are as they should be now."""
        for item, message, reply in zip(items, messages, _send(self._netlink, messages)):
            removing = message.kind in (RTM_DELNEIGH, RTM_DELROUTE)
            if not reply.errno or (removing and reply.errno in _GONE):
                yield item
            else:
                errors.append(str(refusal(message.what, reply.errno, reply.explanation)))

    def _listing(self) -> Iterator[tuple[str, TunnelRoute]]:
        for family in _WHOLE:
            request = _RTMSG.pack(family, 0, 0, 0, _TABLE_MAIN, ROUTE_PROTOCOL, 0, 0, 0)
            for answer in self._netlink.dump(Message(RTM_GETROUTE, 0, request, "routes cannot be listed")):
                cidr, route = _destination(answer), self._route_of(answer)
                if cidr is not None and route is not None:
                    yield cidr, route

    def _route_of(self, body: bytes) -> TunnelRoute | None:
        """A route of ours and of this table's kind."""
        family, _, _, _, table, protocol, _, kind, _ = _RTMSG.unpack_from(body)
        if table != _TABLE_MAIN or protocol != ROUTE_PROTOCOL or kind not in (_UNICAST, _BLACKHOLE):
            return None
        if kind == _BLACKHOLE:
            return TunnelRoute()
        found = dict(attributes(body, _RTMSG.size))
        if _RTA_GATEWAY not in found:
            return None
        index = struct.unpack("=I", found[_RTA_OIF])[0] if _RTA_OIF in found else 0
        return TunnelRoute(socket.inet_ntop(family, found[_RTA_GATEWAY]), self._names.get(index, ""))


def remove_devices(netlink: Netlink) -> int:
    """Remove our devices (`calicoctl node reset`), and with them their routes; how many."""
    found = [link for link in _links(netlink) if link.name != IPIP_DEVICE]
    for link in found:
        netlink.send([Message(RTM_DELLINK, 0, _IFINFO.pack(0, 0, 0, link.index, 0, 0), f"device {link.name}")])
    return len(found)


def _want_all(delta: Delta[K, V], wanted: dict[K, V]) -> None:
    for key in [key for key in delta.desired if key not in wanted]:
        delta.unwant(key)
    for key, value in wanted.items():
        if delta.desired.get(key) != value:
            delta.want(key, value)


# Links


def _links(netlink: Netlink) -> list[_Link]:
    """Our devices, as far as they are there."""
    asked = [
        Message(RTM_GETLINK, 0, _IFINFO.pack(0, 0, 0, 0, 0, 0) + text(_IFLA_IFNAME, name), f"device {name}")
        for name in DEVICES
    ]
    return [_link(reply.objects[0]) for reply in netlink.send(asked) if not reply.errno and reply.objects]


def _link(body: bytes) -> _Link:
    _, _, _, index, flags, _ = _IFINFO.unpack_from(body)
    found = dict(attributes(body, _IFINFO.size))
    info = dict(attributes(found.get(_IFLA_LINKINFO, b"")))
    data = dict(attributes(info.get(_INFO_DATA, b"")))
    local = data.get(_VXLAN_LOCAL) or data.get(_VXLAN_LOCAL6) or b""
    return _Link(
        index=index,
        name=found.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode(),
        up=bool(flags & _IFF_UP),
        kind=info.get(_INFO_KIND, b"").rstrip(b"\0").decode(),
        mac=found.get(_IFLA_ADDRESS, b"").hex(":"),
        mtu=struct.unpack("=I", found[_IFLA_MTU])[0] if _IFLA_MTU in found else 0,
        local=socket.inet_ntop(socket.AF_INET if len(local) == 4 else socket.AF_INET6, local) if local else "",
        vni=struct.unpack("=I", data[_VXLAN_ID])[0] if len(data.get(_VXLAN_ID, b"")) == 4 else 0,
        port=struct.unpack(">H", data[_VXLAN_PORT])[0] if _VXLAN_PORT in data else 0,
        learning=data.get(_VXLAN_LEARNING, b"\0") != b"\0",
    )


def _name_of(body: bytes) -> str:
    """The kernel writes the name first."""
    length, kind = struct.unpack_from("=HH", body, _IFINFO.size)
    return body[_IFINFO.size + 4:_IFINFO.size + length].rstrip(b"\0").decode() if kind == _IFLA_IFNAME else ""


def _creation(device: Device, mtu: int) -> Message:
    """The packets of a VXLAN device are routed as any others of the host: it is not bound to a link."""
    family = _FAMILIES[device.version]
    if device.kind == VXLAN:
        data = nested(
            _INFO_DATA,
            u32(_VXLAN_ID, device.vni),
            attribute(_VXLAN_LOCAL if device.version == 4 else _VXLAN_LOCAL6, socket.inet_pton(family, device.local)),
            attribute(_VXLAN_LEARNING, b"\0"),
            attribute(_VXLAN_PORT, struct.pack(">H", device.port)),
        )
    else:
        data = b""
    body = _IFINFO.pack(0, 0, 0, 0, _IFF_UP, _IFF_UP) + text(_IFLA_IFNAME, device.name)
    body += _mac(device.mac) if device.mac else b""
    body += u32(_IFLA_MTU, mtu) if mtu else b""
    body += nested(_IFLA_LINKINFO, text(_INFO_KIND, device.kind), data)
    return Message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body, f"device {device.name} cannot be made")


def _correction(device: Device, link: _Link, mtu: int) -> Message | None:
    body = b""
    if device.mac and link.mac != device.mac:
        body += _mac(device.mac)
    if mtu and link.mtu != mtu:
        body += u32(_IFLA_MTU, mtu)
    if not body and link.up:
        return None
    header = _IFINFO.pack(0, 0, 0, link.index, _IFF_UP, _IFF_UP)
    return Message(RTM_SETLINK, 0, header + body, f"device {device.name} cannot be set up")


def _mac(address: str) -> bytes:
    return attribute(_IFLA_ADDRESS, bytes.fromhex(address.replace(":", "")))


def _mtu_of_address(netlink: Netlink, device: Device) -> int:
    """MTU of the link that has the node's address; 0 when no link has it."""
    family = _FAMILIES[device.version]
    wanted = socket.inet_pton(family, device.local)
    request = Message(RTM_GETADDR, 0, _IFADDR.pack(family, 0, 0, 0, 0), "addresses cannot be listed")
    for answer in netlink.dump(request):
        found = dict(attributes(answer, _IFADDR.size))
        if wanted in (found.get(_IFA_LOCAL), found.get(_IFA_ADDRESS)):
            index = _IFADDR.unpack_from(answer)[4]
            body = _IFINFO.pack(0, 0, 0, index, 0, 0) + u32(_IFLA_EXT_MASK, _SKIP_STATISTICS)
            (reply,) = netlink.send([Message(RTM_GETLINK, 0, body, f"link number {index}")])
            return _link(reply.objects[0]).mtu if not reply.errno and reply.objects else 0
    return 0


# Addresses


def _addresses(netlink: Netlink, index: int, family: int) -> list[tuple[bytes, int]]:
    """(address, prefix length) on a link."""
    found = []
    request = Message(RTM_GETADDR, 0, _IFADDR.pack(family, 0, 0, 0, index), "addresses cannot be listed")
    for answer in netlink.dump(request):
        family_, length, _, _, at = _IFADDR.unpack_from(answer)
        values = dict(attributes(answer, _IFADDR.size))
        address = values.get(_IFA_LOCAL) or values.get(_IFA_ADDRESS)
        if at == index and family_ == family and address:
            found.append((address, length))
    return found


def _address(kind: int, family: int, index: int, address: bytes, length: int) -> Message:
    body = _IFADDR.pack(family, length, 0, 0, index) + attribute(_IFA_LOCAL, address) + attribute(_IFA_ADDRESS, address)
    flags = NLM_F_CREATE | NLM_F_REPLACE if kind == RTM_NEWADDR else 0
    shown = socket.inet_ntop(family, address)
    return Message(kind, flags, body, f"tunnel address {shown} cannot be {'set' if flags else 'removed'}")


# Neighbours and forwarding entries


def _entries(netlink: Netlink, family: int, index: int) -> Iterator[tuple[str, str]]:
    """(address, MAC) of the permanent entries on a link."""
    header = _NDMSG.pack(family, index if family == _AF_BRIDGE else 0, 0, 0, 0)
    for answer in netlink.dump(Message(RTM_GETNEIGH, 0, header, "neighbours cannot be listed")):
        _, at, state, _, _ = _NDMSG.unpack_from(answer)
        found = dict(attributes(answer, _NDMSG.size))
        address, mac = found.get(_NDA_DST, b""), found.get(_NDA_LLADDR, b"")
        if at == index and state & _NUD_PERMANENT and len(address) in (4, 16) and any(mac):
            yield socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address), mac.hex(":")


def _neighbour(kind: int, index: int, key: Entry, mac: str) -> Message:
    return _entry(kind, index, key[1], mac, bridge=False)


def _forward(kind: int, index: int, key: Entry, host: str) -> Message:
    return _entry(kind, index, host, key[1], bridge=True)


def _entry(kind: int, index: int, address: str, mac: str, bridge: bool) -> Message:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    header = _NDMSG.pack(_AF_BRIDGE if bridge else family, index, _NUD_PERMANENT, _NTF_SELF if bridge else 0, 0)
    body = header + attribute(_NDA_DST, socket.inet_pton(family, address))
    body += attribute(_NDA_LLADDR, bytes.fromhex(mac.replace(":", "")))
    flags = NLM_F_CREATE | NLM_F_REPLACE if kind == RTM_NEWNEIGH else 0
    done = "set" if kind == RTM_NEWNEIGH else "removed"
    return Message(kind, flags, body, f"tunnel end {address} ({mac}) cannot be {done}")


# Routes


def _destination(body: bytes) -> str | None:
    """CIDR of a route of the main table; None for default routes and other tables."""
    family, length, _, _, table, _, _, _, _ = _RTMSG.unpack_from(body)
    if table != _TABLE_MAIN or family not in _WHOLE:
        return None
    found = dict(attributes(body, _RTMSG.size)).get(_RTA_DST)
    return f"{socket.inet_ntop(family, found)}/{length}" if found is not None else None


def _route(kind: int, cidr: str, route: TunnelRoute, indexes: dict[str, int]) -> Message:
    address, _, length = cidr.partition("/")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    index = indexes.get(route.device, 0)
    onlink = _RTNH_ONLINK if route.device and kind == RTM_NEWROUTE else 0
    type_ = _UNICAST if route.gateway else _BLACKHOLE
    header = _RTMSG.pack(family, int(length), 0, 0, _TABLE_MAIN, ROUTE_PROTOCOL, 0, type_, onlink)
    body = header + attribute(_RTA_DST, socket.inet_pton(family, address))
    if route.gateway:
        body += attribute(_RTA_GATEWAY, socket.inet_pton(family, route.gateway))
    if index:
        body += u32(_RTA_OIF, index)
    flags = NLM_F_CREATE | NLM_F_REPLACE if kind == RTM_NEWROUTE else 0
    return Message(kind, flags, body, f"route to {cidr} cannot be {'set' if flags else 'removed'}")


def _send(netlink: Netlink, messages: Sequence[Message]) -> list[Reply]:
    """In portions whose answers fit the socket's buffer."""
    replies: list[Reply] = []
    for start in range(0, len(messages), _BATCH):
        replies += netlink.send(messages[start:start + _BATCH])
    return replies
