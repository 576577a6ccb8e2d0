"""An endpoint's pair of links: make, find, remove.

The host end is ready for routed traffic when `create` returns: up, proxy ARP on (without the kernel's random delay of
up to 0.8 s), reverse path filter off, no automatic IPv6 address. All settings go through netlink, since /proc/sys is
read-only inside a managed plugin. No route and no rule is made here: an interface that the agent has not programmed
carries nothing.

Removing a link waits in the kernel for 10 to 20 ms, however many go at once. `remove_many` marks links with a group
of our own and removes the group in one message; a link that cannot be marked is gone already.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Iterable, Protocol, Sequence

from calico_plugin.dataplane import netlink
from calico_plugin.dataplane.netlink import Message, Reply, attribute, attributes, nested, text, u32
from calico_plugin.errors import DataplaneError
from calico_plugin.model.names import HOST_MAC, INTERFACE_PREFIX, VXLAN_DEVICES

# Links to be removed carry this group; nobody else uses it ("cali" in ASCII, without the sign bit).
REMOVAL_GROUP = 0x63616C69

_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBi")
_NEIGHBOUR_TABLE = struct.Struct("=B3x")
_ROUTE = struct.Struct("=BBBBBBBBI")
_IFF_UP, _IFF_RUNNING = 0x1, 0x40
# linux/if_link.h
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINKINFO = 1, 3, 4, 18
_IFLA_AF_SPEC, _IFLA_GROUP, _IFLA_EXT_MASK = 26, 27, 29
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _VETH_INFO_PEER = 1, 2, 1
_IFLA_INET_CONF, _IFLA_INET6_ADDR_GEN_MODE, _ADDR_GEN_NONE = 1, 8, 1
_DEVCONF_FORWARDING, _DEVCONF_PROXY_ARP, _DEVCONF_RP_FILTER = 1, 3, 8
_NDTA_NAME, _NDTA_PARMS, _NDTPA_IFINDEX, _NDTPA_PROXY_DELAY = 1, 6, 1, 13
_RTEXT_FILTER_SKIP_STATS = 1 << 3
_AF_INET, _AF_INET6 = 2, 10
_IFA_ADDRESS, _IFA_LOCAL, _IFA_F_NODAD, _SCOPE_LINK = 1, 2, 0x02, 253
_RTA_OIF, _RTA_DST = 4, 1

# Two messages a link; the kernel handles a datagram of this many well within the socket's buffer.
_MARKS_AT_ONCE = 64


class Sockets(Protocol):
    """What is needed of `Netlink` or `NetlinkPool`."""

    def execute(self, *messages: Message) -> list[Reply]: ...

    def send(self, messages: Sequence[Message]) -> list[Reply]: ...

    def dump(self, message: Message) -> list[bytes]: ...


@dataclass(frozen=True, slots=True)
class Veth:
    """The pair to make: names of at most 15 characters, `mac` of the container end, `mtu` of both (None: the kernel's
    default).
    """

    host: str
    container: str
    mac: str
    mtu: int | None = None


@dataclass(frozen=True, slots=True)
class Link:
    """A host end as the kernel has it. `running`: both ends are up."""

    name: str
    index: int
    running: bool


def create(sockets: Sockets, veth: Veth) -> int:
    """Make the pair and set up the host end; the index of the host end.

    Raises DataplaneError: errno EEXIST when a link of that name exists already. A pair that cannot be set up is
    removed again.
    """
    what = f"link {veth.host} cannot be made"
    flags = netlink.NLM_F_CREATE | netlink.NLM_F_EXCL | netlink.NLM_F_ECHO
    (made,) = sockets.execute(Message(netlink.RTM_NEWLINK, flags, _pair(veth), what))
    # Linux 6.2 and later tell what they made; older ones have to be asked.
    index = _index(made.objects) or _index(sockets.execute(_by_name(veth.host, what))[0].objects)
    try:
        _set_up(sockets, veth.host, index)
    except DataplaneError:
        remove_one(sockets, veth.host)
        raise
    return index


def ensure(sockets: Sockets, veth: Veth) -> int:
    """As `create`, and success when the pair exists: then the host end is set up again."""
    try:
        return create(sockets, veth)
    except DataplaneError as error:
        if error.errno != errno.EEXIST:
            raise
    found = find(sockets, veth.host)
    if found is None:
        raise DataplaneError(
            f"link {veth.host} cannot be made: {veth.container} belongs to another link", errno.EEXIST
        )
    _set_up(sockets, veth.host, found.index)
    return found.index


def find(sockets: Sockets, name: str) -> Link | None:
    """The link of that name, or None."""
    ask = _by_name(name, f"link {name}")
    (reply,) = sockets.send([ask])
    if reply.errno == errno.ENODEV:
        return None
    if reply.errno:
        raise netlink.refusal(ask.what, reply.errno, reply.explanation)
    return _link(reply.objects[0])


def _by_name(name: str, what: str) -> Message:
    return Message(netlink.RTM_GETLINK, 0, _LINK.pack(0, 0, 0, 0, 0) + text(_IFLA_IFNAME, name) + _NO_STATISTICS, what)


def _index(objects: Sequence[bytes]) -> int:
    return int(_LINK.unpack_from(objects[0])[2]) if objects else 0


def ours(sockets: Sockets, prefix: str = INTERFACE_PREFIX) -> list[Link]:
    """All host ends, by their name's prefix."""
    ask = Message(netlink.RTM_GETLINK, 0, _LINK.pack(0, 0, 0, 0, 0) + _NO_STATISTICS, "links cannot be listed")
    return [link for link in map(_link, sockets.dump(ask)) if link.name.startswith(prefix)]


def add_link_local(sockets: Sockets, name: str, address: IPv6Address) -> None:
    """Give the host end its link-local address, at once usable (no duplicate address detection). 'Already so' is
    success.
    """
    link = find(sockets, name)
    what = f"link {name} cannot be given the IPv6 address {address}"
    if link is None:
        raise DataplaneError(f"{what}: no such link", errno.ENODEV)
    body = _ADDRESS.pack(_AF_INET6, 64, _IFA_F_NODAD, _SCOPE_LINK, link.index) + attribute(
        _IFA_ADDRESS, address.packed
    )
    (reply,) = sockets.send([Message(netlink.RTM_NEWADDR, netlink.NLM_F_CREATE | netlink.NLM_F_REPLACE, body, what)])
    if reply.errno == errno.EACCES:
        raise DataplaneError(f"{what}: IPv6 is switched off on this host (net.ipv6.conf.*.disable_ipv6)", reply.errno)
    if reply.errno not in (0, errno.EEXIST):
        raise netlink.refusal(what, reply.errno, reply.explanation)


def remove_one(sockets: Sockets, name: str) -> bool:
    """Remove a pair by either end; False when it was not there."""
    body = _LINK.pack(0, 0, 0, 0, 0) + text(_IFLA_IFNAME, name)
    message = Message(netlink.RTM_DELLINK, 0, body, f"link {name} cannot be removed")
    (reply,) = sockets.send([message])
    if reply.errno not in (0, errno.ENODEV):
        raise netlink.refusal(message.what, reply.errno, reply.explanation)
    return not reply.errno


def remove_many(sockets: Sockets, names: Iterable[str]) -> int:
    """Remove many pairs in one kernel transaction; how many were there. What is gone already does not matter."""
    wanted = list(names)
    if len(wanted) == 1:
        return int(remove_one(sockets, wanted[0]))
    marked = []
    for start in range(0, len(wanted), _MARKS_AT_ONCE):
        some = wanted[start : start + _MARKS_AT_ONCE]
        replies = sockets.send([_mark(name) for name in some])
        marked += [name for name, reply in zip(some, replies) if not reply.errno]
    if not marked:
        return 0
    sweep = Message(
        netlink.RTM_DELLINK, 0, _LINK.pack(0, 0, 0, 0, 0) + u32(_IFLA_GROUP, REMOVAL_GROUP), "links cannot be removed"
    )
    (reply,) = sockets.send([sweep])
    # ENODEV: another caller's sweep took ours along. Anything else: one by one, which tells which link is the trouble.
    if reply.errno not in (0, errno.ENODEV):
        return sum(remove_one(sockets, name) for name in marked)
    return len(marked)


def default_mtu(sockets: Sockets) -> int | None:
    """The largest packet that reaches every host; None without a default route and tunnels: the kernel's own default.
    """
    return smaller(uplink_mtu(sockets), tunnel_mtu(sockets))


def smaller(one: int | None, other: int | None) -> int | None:
    """The smaller MTU of those that are known."""
    return min((mtu for mtu in (one, other) if mtu), default=None)


def uplink_mtu(sockets: Sockets) -> int | None:
    """MTU of the link that the default route leaves by (IPv4 first), or None without one: containers should not
    exceed it.
    """
    for family in (_AF_INET, _AF_INET6):
        ask = Message(netlink.RTM_GETROUTE, 0, _ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0), "routes cannot be listed")
        for data in sockets.dump(ask):
            found = dict(attributes(data, _ROUTE.size))
            if data[1] == 0 and data[4] == _TABLE_MAIN and _RTA_OIF in found and _RTA_DST not in found:
                (mtu,) = _mtus(sockets, [_LINK.pack(0, 0, struct.unpack("=I", found[_RTA_OIF])[0], 0, 0)])
                return mtu
    return None


def tunnel_mtu(sockets: Sockets) -> int | None:
    """The least that our tunnel devices leave room for, or None without any."""
    found = _mtus(sockets, [_LINK.pack(0, 0, 0, 0, 0) + text(_IFLA_IFNAME, name) for name in VXLAN_DEVICES.values()])
    return min((mtu for mtu in found if mtu), default=None)


_TABLE_MAIN = 254
_NO_STATISTICS = u32(_IFLA_EXT_MASK, _RTEXT_FILTER_SKIP_STATS)


def _mtus(sockets: Sockets, links: Sequence[bytes]) -> list[int | None]:
    """Of links named by the start of a request; None for one that is not there."""
    return [_mtu(reply) for reply in sockets.send([_about(link) for link in links])]


def _about(link: bytes) -> Message:
    return Message(netlink.RTM_GETLINK, 0, link + _NO_STATISTICS, "a link's MTU")


def _mtu(reply: Reply) -> int | None:
    if reply.errno or not reply.objects:
        return None
    found = dict(attributes(reply.objects[0], _LINK.size))
    return struct.unpack("=I", found[_IFLA_MTU])[0] if _IFLA_MTU in found else None


def _pair(veth: Veth) -> bytes:
    """Body of RTM_NEWLINK for both ends. The host end comes up with it; the container end stays down until Docker
    moves it.
    """
    mtu = u32(_IFLA_MTU, veth.mtu) if veth.mtu else b""
    peer = _LINK.pack(0, 0, 0, 0, 0) + text(_IFLA_IFNAME, veth.container) + _mac(veth.mac) + mtu
    return (
        _LINK.pack(0, 0, 0, _IFF_UP, _IFF_UP)
        + text(_IFLA_IFNAME, veth.host)
        + _mac(HOST_MAC)
        + mtu
        + nested(
            _IFLA_LINKINFO, text(_IFLA_INFO_KIND, "veth"), nested(_IFLA_INFO_DATA, attribute(_VETH_INFO_PEER, peer))
        )
    )


def _mac(address: str) -> bytes:
    return attribute(_IFLA_ADDRESS, bytes.fromhex(address.replace(":", "")))


def _set_up(sockets: Sockets, name: str, index: int) -> None:
    what = f"link {name} cannot be set up"
    both, delay = sockets.send((_settings(index, _SETTINGS, what), _no_proxy_delay(index, what)))
    if both.errno == errno.EAFNOSUPPORT:
        # A kernel without IPv6 refuses the whole message.
        (both,) = sockets.send((_settings(index, _SETTINGS_IPV4, what),))
    for reply in (both, delay):
        if reply.errno:
            raise netlink.refusal(what, reply.errno, reply.explanation)


def _settings(index: int, settings: bytes, what: str) -> Message:
    return Message(netlink.RTM_SETLINK, 0, _LINK.pack(0, 0, index, _IFF_UP, _IFF_UP) + settings, what)


def _no_proxy_delay(index: int, what: str) -> Message:
    parameters = nested(_NDTA_PARMS, u32(_NDTPA_IFINDEX, index), attribute(_NDTPA_PROXY_DELAY, struct.pack("=Q", 0)))
    body = _NEIGHBOUR_TABLE.pack(_AF_INET) + text(_NDTA_NAME, "arp_cache") + parameters
    return Message(netlink.RTM_SETNEIGHTBL, netlink.NLM_F_REPLACE, body, what)


_IPV4 = nested(
    _AF_INET,
    nested(_IFLA_INET_CONF, u32(_DEVCONF_FORWARDING, 1), u32(_DEVCONF_PROXY_ARP, 1), u32(_DEVCONF_RP_FILTER, 0)),
)
_IPV6 = nested(_AF_INET6, attribute(_IFLA_INET6_ADDR_GEN_MODE, bytes([_ADDR_GEN_NONE])))
_SETTINGS_IPV4 = nested(_IFLA_AF_SPEC, _IPV4)
_SETTINGS = nested(_IFLA_AF_SPEC, _IPV4, _IPV6)


def _mark(name: str) -> Message:
    body = _LINK.pack(0, 0, 0, 0, 0) + text(_IFLA_IFNAME, name) + u32(_IFLA_GROUP, REMOVAL_GROUP)
    return Message(netlink.RTM_SETLINK, 0, body, f"link {name} cannot be marked for removal")


def _link(data: bytes) -> Link:
    _, _, index, flags, _ = _LINK.unpack_from(data)
    found = dict(attributes(data, _LINK.size))
    return Link(
        name=found.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode(),
        index=index,
        running=bool(flags & _IFF_RUNNING),
    )
