"""The kernel's count of nftables transactions in this network namespace.

It tells for the price of one small message whether anybody changed any table since one looked last, so that a look at
the whole is made only then.
"""

from __future__ import annotations

import struct

from calico_plugin.dataplane.netlink import Message, Netlink, attributes, refusal

# linux/netfilter/nf_tables.h
_GET_GENERATION = (10 << 8) | 16
_NFGENMSG = struct.Struct("=BBH")
_GENERATION_ID = 1


def generation(netlink: Netlink) -> int:
    """Grows with each transaction of anybody. `netlink` speaks NETLINK_NETFILTER. Raises DataplaneError."""
    message = Message(_GET_GENERATION, 0, _NFGENMSG.pack(0, 0, 0), "nftables' generation cannot be read")
    (reply,) = netlink.send([message])
    if reply.errno or not reply.objects:
        raise refusal(message.what, reply.errno, reply.explanation)
    found = dict(attributes(reply.objects[0], _NFGENMSG.size))
    return int.from_bytes(found.get(_GENERATION_ID, b""), "big")
