"""What a Docker network is to us, wherever it was made: our own key families, since Calico has no place for it.

The driver writes a record at CreateNetwork, which does not carry the network's name; the agent, which hears Docker's
events, adds `name` and `profile`. A record without a name is not usable yet.

Where no cluster store carries networks from host to host, each host has one of its own with an id of its own; that
they are one is told by a `SharedNetwork` for the name and a `SharedMember` for each host (docs/networks.md).

What a container is called on its networks is told by one `EndpointNames` an endpoint (docs/names.md).
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


class AddressRange(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """A `--subnet`, and its `--ip-range`, `--gateway` and `--aux-address` (name -> address); empty where not given."""

    subnet: str = ""
    ip_range: str = ""
    gateway: str = ""
    auxiliary: dict[str, str] = {}


class NetworkSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """What the user said to `docker network create`: all that is needed to make the same network again.

    Docker keeps an empty map and none apart, and shows them so; they mean the same.
    """

    driver: str = "calico"
    ipam_driver: str = "calico-ipam"
    ipam_options: dict[str, str] | None = None
    ranges: tuple[AddressRange, ...] = ()
    options: dict[str, str] | None = None
    labels: dict[str, str] | None = None
    internal: bool = False
    attachable: bool = False
    enable_ipv4: bool = True
    enable_ipv6: bool = False


class SharedNetwork(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """Value of `/calico/docker/v1/shared-network/<name>`: a network that every host's Docker shall have.

    `uid` is its identity: a network that is made anew under the name has another one. `created` is when (RFC 3339) and
    `created_on` where it was made. With `deleted` hosts shall remove it; the record goes with the last of them.
    """

    name: str = ""
    uid: str = ""
    spec: NetworkSpec = NetworkSpec()
    created: str = ""
    created_on: str = ""
    deleted: bool = False
    deleted_on: str = ""


# States of a member.
CREATING, READY, IN_USE, CONFLICT, FAILED = "creating", "ready", "in use", "conflict", "failed"


class SharedMember(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """Value of `/calico/docker/v1/shared-member/<node>/<name>`: what became of a shared network on one host.

    `uid` is the shared network's, `network_id` Docker's id of it there (empty when it has none). States: creating;
    ready; in use (it is deleted, but has containers, named by `detail`); conflict, failed (`detail` says why).
    """

    name: str = ""
    node: str = ""
    uid: str = ""
    network_id: str = ""
    state: str = READY
    detail: str = ""


class EndpointNames(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """Value of `/calico/docker/v1/endpoint-names/<node>/<endpoint id>`: what a container is called on a network.

    `names`: the container's name first, then aliases, short id, host name. `network`: Docker's name of the network.
    Void without the WorkloadEndpoint of the same node and endpoint id.
    """

    container: str = ""
    network: str = ""
    names: tuple[str, ...] = ()
