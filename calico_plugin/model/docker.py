"""What a Docker network is to us, wherever it was made: our own key family, since Calico has no place for it.

The driver writes a record at CreateNetwork, which does not carry the network's name; the agent, which hears Docker's
events, adds `name` and `profile`. A record without a name is not usable yet.
"""

from __future__ import annotations

import msgspec


class NetworkRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """Value of `/calico/docker/v1/network/<network id>`.

    `pools4`/`pools6` are the pool CIDRs (or 0.0.0.0/0, ::/0) that Docker was told; `internal` networks get no default
    route; `options` are the `--opt` values; `created_on` is the node whose Docker made it; `reserved` maps each
    address of `--gateway` and `--aux-address` to its name (`gateway` for the former).
    """

    network_id: str = ""
    name: str = ""
    profile: str = ""
    internal: bool = False
    enable_ipv6: bool = False
    pools4: tuple[str, ...] = ()
    pools6: tuple[str, ...] = ()
    options: dict[str, str] = {}
    created_on: str = ""
    reserved: dict[str, str] = {}
