"""Host sides of the containers' links: which there are, what the kernel says of them, and the settings that they need.

Promises: settings that are right are not written; a link that goes away meanwhile is no error. The driver makes the
links and sets most of this in the creating message; the agent only re-asserts. IPv4 settings go by netlink, which
also works where /proc/sys is read-only (managed plugin).
"""

from __future__ import annotations

import errno
import struct
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Iterable

from calico_plugin.dataplane import sysctl
from calico_plugin.dataplane.netlink import (
    NLM_F_CREATE,
    RTM_DELLINK,
    RTM_GETLINK,
    RTM_NEWADDR,
    RTM_SETLINK,
    RTM_SETNEIGHTBL,
    Message,
    Netlink,
    attribute,
    attributes,
    refusal,
    u32,
)
from calico_plugin.errors import DataplaneError

GROUP_LINK = 1

_IFINFO = struct.Struct("=BBHiII")
_ATTRIBUTE = struct.Struct("=HH")
_IFF_UP, _IFF_LOWER_UP = 0x1, 0x10000
_IFLA_IFNAME, _IFLA_AF_SPEC, _IFLA_EXT_MASK, _IFLA_LINK_NETNSID = 3, 26, 29, 37
_SKIP_STATISTICS = 1 << 3
_AF_UNSPEC, _AF_INET = 0, 2
_IFLA_INET_CONF = 1
_IFA_ADDRESS, _IFA_LOCAL, _SCOPE_HOST = 1, 2, 254
_NDTA_NAME, _NDTA_PARMS, _NDTPA_IFINDEX, _NDTPA_PROXY_DELAY = 1, 6, 1, 13

# Ids of linux/ip.h (IPV4_DEVCONF_*), with the names that the files below /proc/sys/net/ipv4/conf have.
# rp_filter is none of those wanted: the policy table checks the way back of every packet that a container sends.
# route_localnet is that of links whose container publishes ports (`route_loopback`).
_IPV4_IDS = {"forwarding": 1, "proxy_arp": 3, "rp_filter": 8, "route_localnet": 26}
_OFF, _LOOSE = 0, 2
# None of the containers' gateways (169.254.1.1 to .254).
_MUTE_ADDRESS = IPv4Address("169.254.1.255")
_WANTED = {"forwarding": 1, "proxy_arp": 1}

_GONE = (errno.ENODEV, errno.ENOENT, errno.ENXIO)


@dataclass(frozen=True, slots=True)
class Link:
    """A link of ours. `ipv4` are its IPv4 settings as (name, value); empty when the kernel did not tell them.

    `namespace` is the kernel's number of the network namespace where the other end is, None when that is this one.
    """

    index: int
    name: str
    up: bool
    carrier: bool
    ipv4: tuple[tuple[str, int], ...] = ()
    namespace: int | None = None

    @property
    def settled(self) -> bool:
        """Whether it is up and has the settings that the kernel tells with it."""
        return self.up and _WANTED.items() <= dict(self.ipv4).items()


def decode(body: bytes, prefix: str) -> Link | None:
    """The link of an event or answer; None when its name does not begin with `prefix`."""
    # The kernel writes the name first: most links of a busy host are told apart by these few bytes.
    if body[18:20] == b"\x03\x00" and not body.startswith(prefix.encode(), 20):
        return None
    found = _pick(body)
    name = found.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode()
    if not name.startswith(prefix):
        return None
    _, _, _, index, flags, _ = _IFINFO.unpack_from(body)
    return Link(
        index,
        name,
        bool(flags & _IFF_UP),
        bool(flags & _IFF_LOWER_UP),
        _ipv4(found.get(_IFLA_AF_SPEC, b"")),
        _namespace(found.get(_IFLA_LINK_NETNSID, b"")),
    )


def _pick(body: bytes) -> dict[int, bytes]:
    """The three attributes that matter of some forty: this runs for each event of each link."""
    found: dict[int, bytes] = {}
    offset, end = _IFINFO.size, len(body)
    while offset + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(body, offset)
        if length < 4:
            break
        if kind & 0x3FFF in (_IFLA_IFNAME, _IFLA_AF_SPEC, _IFLA_LINK_NETNSID):
            found[kind & 0x3FFF] = body[offset + 4:offset + length]
        offset += (length + 3) & ~3
    return found


def listing(netlink: Netlink, prefix: str) -> dict[str, Link]:
    """All links whose name begins with `prefix`, by name."""
    body = _IFINFO.pack(_AF_UNSPEC, 0, 0, 0, 0, 0) + u32(_IFLA_EXT_MASK, _SKIP_STATISTICS)
    links = (decode(answer, prefix) for answer in netlink.dump(Message(RTM_GETLINK, 0, body, "links cannot be listed")))
    return {link.name: link for link in links if link is not None}


def assert_settings(netlink: Netlink, links: Iterable[Link]) -> dict[str, DataplaneError]:
    """Bring links up and give them their settings where they differ.

    The errors by link name (a vanished link has none).
    """
    asked: list[tuple[Link, Message]] = []
    errors: dict[str, DataplaneError] = {}
    for link in links:
        asked += ((link, message) for message in _corrections(link))
        # Where /proc/sys is read-only it stays: our table drops router advertisements of containers all the same.
        with suppress(DataplaneError):
            sysctl.ensure(f"net/ipv6/conf/{link.name}/accept_ra", "0")
    if not asked:
        return errors
    for (link, message), reply in zip(asked, netlink.send([message for _, message in asked])):
        if reply.errno and reply.errno not in _GONE:
            errors[link.name] = refusal(message.what, reply.errno, reply.explanation)
    return errors


def loosen(netlink: Netlink, links: Iterable[Link]) -> list[str]:
    """Let the links of a container that has several carry each other's addresses, whatever the kernel's own check of
    the way back (rp_filter) says. The errors.

    The greater of the link's value and that of all counts, so 0 only helps where that of all is 0. Else loose (2) does,
    and only on a link with an address: any will do, and one of host scope is never used for anything.
    """
    everywhere = int(sysctl.read("net/ipv4/conf/all/rp_filter") or 0)
    wanted = _LOOSE if everywhere else _OFF
    asked: list[Message] = []
    for link in links:
        if dict(link.ipv4).get("rp_filter") != wanted:
            asked.append(_set_link(link, {"rp_filter": wanted}))
        if everywhere:
            asked.append(_mute_address(link))
    replies = netlink.send(asked) if asked else ()
    return [
        str(refusal(message.what, reply.errno, reply.explanation))
        for message, reply in zip(asked, replies)
        if reply.errno and reply.errno not in (*_GONE, errno.EEXIST)
    ]


def route_loopback(netlink: Netlink, links: Iterable[Link], allowed: bool) -> list[str]:
    """Let links carry connections that begin or end at a loopback address of the host (route_localnet). The errors."""
    asked = [_set_link(link, {"route_localnet": int(allowed)}) for link in links]
    replies = netlink.send(asked) if asked else ()
    return [
        str(refusal(message.what, reply.errno, reply.explanation))
        for message, reply in zip(asked, replies)
        if reply.errno and reply.errno not in _GONE
    ]


def delete(netlink: Netlink, links: Iterable[Link]) -> list[DataplaneError]:
    """Delete links; those that are gone already count as deleted."""
    messages = [
        Message(RTM_DELLINK, 0, _IFINFO.pack(_AF_UNSPEC, 0, 0, link.index, 0, 0), f"link {link.name} cannot be deleted")
        for link in links
    ]
    if not messages:
        return []
    return [
        refusal(message.what, reply.errno, reply.explanation)
        for message, reply in zip(messages, netlink.send(messages))
        if reply.errno and reply.errno not in _GONE
    ]


def _corrections(link: Link) -> list[Message]:
    messages = []
    wrong = dict(_WANTED.items() - dict(link.ipv4).items())
    if wrong or not link.up:
        messages.append(_set_link(link, wrong))
    if sysctl.read(f"net/ipv4/neigh/{link.name}/proxy_delay") not in ("0", None):
        messages.append(_no_proxy_delay(link))
    return messages


def _set_link(link: Link, ipv4: dict[str, int]) -> Message:
    body = _IFINFO.pack(_AF_UNSPEC, 0, 0, link.index, _IFF_UP, _IFF_UP)
    if ipv4:
        values = b"".join(u32(_IPV4_IDS[name], value) for name, value in sorted(ipv4.items()))
        body += attribute(_IFLA_AF_SPEC, attribute(_AF_INET, attribute(_IFLA_INET_CONF, values)))
    return Message(RTM_SETLINK, 0, body, f"link {link.name} cannot be set up")


def _mute_address(link: Link) -> Message:
    body = struct.pack("=BBBBI", _AF_INET, 32, 0, _SCOPE_HOST, link.index)
    body += attribute(_IFA_ADDRESS, _MUTE_ADDRESS.packed) + attribute(_IFA_LOCAL, _MUTE_ADDRESS.packed)
    return Message(RTM_NEWADDR, NLM_F_CREATE, body, f"link {link.name} cannot be given {_MUTE_ADDRESS}")


def _no_proxy_delay(link: Link) -> Message:
    """The default holds proxy-ARP answers back by up to 0.8 s."""
    parameters = u32(_NDTPA_IFINDEX, link.index) + attribute(_NDTPA_PROXY_DELAY, struct.pack("=Q", 0))
    body = struct.pack("=BBH", _AF_INET, 0, 0) + attribute(_NDTA_NAME, b"arp_cache\0")
    body += attribute(_NDTA_PARMS, parameters)
    return Message(RTM_SETNEIGHTBL, 0, body, f"proxy_delay of {link.name} cannot be set")


def _namespace(value: bytes) -> int | None:
    # Negative: the kernel has no number for it.
    number = struct.unpack("=i", value)[0] if len(value) == 4 else -1
    return number if number >= 0 else None


def _ipv4(af_spec: bytes) -> tuple[tuple[str, int], ...]:
    conf = dict(attributes(dict(attributes(af_spec)).get(_AF_INET, b""))).get(_IFLA_INET_CONF, b"")
    # An array of u32 in the order of the ids, which start at 1.
    return tuple(
        (name, struct.unpack_from("=I", conf, 4 * (number - 1))[0])
        for name, number in _IPV4_IDS.items()
        if len(conf) >= 4 * number
    )
