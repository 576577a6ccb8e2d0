"""Docker's requests and answers as values: what comes in is parsed and refused here, once; nothing behind this module
sees JSON.

Shapes are those of docker-plugin section 2. Docker leaves members out or sends null where there is nothing, so every
member has a default; what a call cannot do without is checked by name. A POST without a body is what Docker sends
when it repeats a call whose first try broke off: it is refused, never taken as defaults.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_interface, ip_network
from typing import Any, Mapping, Type, TypeVar

import msgspec

from calico_plugin.driver.options import (
    IPAM_OPTION_INSIDE,
    IPAM_OPTION_POOL,
    OPTION_MTU,
    NetworkOptions,
    network_options,
    plain_ipam_options,
    plain_network_options,
    truth,
)
from calico_plugin.errors import InvalidInput
from calico_plugin.model.forms import MAX_PORT
from calico_plugin.model.published import PROTOCOLS

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network
T = TypeVar("T", bound=msgspec.Struct)

GENERIC_OPTIONS = "com.docker.network.generic"
ENABLE_IPV6 = "com.docker.network.enable_ipv6"
INTERNAL = "com.docker.network.internal"
ADDRESS_TYPE = "RequestAddressType"
GATEWAY_TYPE = "com.docker.network.gateway"
GATEWAY_DATA = "com.docker.network.gateway"

_IPV6_MTU_MIN = 1280

# Address spaces of Docker's own IPAM drivers: networks whose addresses they give cannot be routed by us.
_FOREIGN_SPACES = ("LocalDefault", "GlobalDefault", "null")

EMPTY = b"{}"
_IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,126}[A-Za-z0-9]|[A-Za-z0-9]")


# What Docker sends.


class _Request(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """Base of the raw shapes: Docker's capitalised names, everything optional."""


class _PoolData(_Request, frozen=True, kw_only=True):
    address_space: str | None = ""
    pool: str | None = ""
    gateway: str | None = ""
    aux_addresses: dict[str, str] | None = None


class _CreateNetwork(_Request, frozen=True, kw_only=True):
    network_id: str | None = msgspec.field(name="NetworkID", default="")
    options: dict[str, Any] | None = None
    ipv4_data: tuple[_PoolData, ...] | None = msgspec.field(name="IPv4Data", default=())
    ipv6_data: tuple[_PoolData, ...] | None = msgspec.field(name="IPv6Data", default=())


class _Interface(_Request, frozen=True, kw_only=True):
    address: str | None = ""
    address_ipv6: str | None = msgspec.field(name="AddressIPv6", default="")
    mac_address: str | None = ""


class _Endpoint(_Request, frozen=True, kw_only=True):
    """Its `Options` (port lists, driver options) are not read: ports are published by a call of their own."""

    network_id: str | None = msgspec.field(name="NetworkID", default="")
    endpoint_id: str | None = msgspec.field(name="EndpointID", default="")
    interface: _Interface | None = None
    sandbox_key: str | None = ""


class _Port(_Request, frozen=True, kw_only=True):
    """`IP` is always empty: the endpoint's address is meant."""

    proto: int = 0
    port: int = 0
    host_ip: str | None = msgspec.field(name="HostIP", default="")
    host_port: int = 0
    host_port_end: int = 0


class _PortOptions(msgspec.Struct, frozen=True, kw_only=True):
    portmap: tuple[_Port, ...] | None = msgspec.field(name="com.docker.network.portmap", default=())


class _Connectivity(_Request, frozen=True, kw_only=True):
    network_id: str | None = msgspec.field(name="NetworkID", default="")
    endpoint_id: str | None = msgspec.field(name="EndpointID", default="")
    options: _PortOptions | None = None


class _Pool(_Request, frozen=True, kw_only=True):
    pool_id: str | None = msgspec.field(name="PoolID", default="")
    address_space: str | None = ""
    pool: str | None = ""
    sub_pool: str | None = ""
    address: str | None = ""
    options: dict[str, Any] | None = None
    v6: bool = msgspec.field(name="V6", default=False)


_DECODERS: dict[type, msgspec.json.Decoder[Any]] = {
    shape: msgspec.json.Decoder(shape) for shape in (_CreateNetwork, _Endpoint, _Connectivity, _Pool)
}


# What the rest of the driver works with.


@dataclass(frozen=True, slots=True)
class CreateNetwork:
    """`raw_options`: `--opt` as given, by plain names. `reserved`: addresses that Docker asked for as gateway or
    `--aux-address`, with what each is called.
    """

    network: str
    options: NetworkOptions
    raw_options: Mapping[str, str]
    internal: bool
    enable_ipv6: bool
    pools4: tuple[str, ...]
    pools6: tuple[str, ...]
    reserved: Mapping[IPAddress, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EndpointCall:
    """Any call about one endpoint; `sandbox` only with Join."""

    network: str
    endpoint: str
    sandbox: str = ""


@dataclass(frozen=True, slots=True)
class CreateEndpoint:
    network: str
    endpoint: str
    addresses: tuple[IPAddress, ...]
    mac: str


@dataclass(frozen=True, slots=True)
class PortRequest:
    """`-p`: `port` of the container on one of the host's ports `first` to `last` (0: any free one). `host_ip` None: all
    addresses of the host; an unspecified one: all of its IP version.
    """

    protocol: int
    port: int
    host_ip: IPAddress | None
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Connectivity:
    """The endpoint has the container's default route, and these are all ports of the container to be published."""

    network: str
    endpoint: str
    ports: tuple[PortRequest, ...]


@dataclass(frozen=True, slots=True)
class RequestPool:
    """`pool` and `range` None when the user named none; `pool_names` are of either family."""

    space: str
    pool: IPNetwork | None
    range: IPNetwork | None
    version: int
    pool_names: tuple[str, ...]
    inside: bool


@dataclass(frozen=True, slots=True)
class RequestAddress:
    pool_id: str
    address: IPAddress | None
    gateway: bool


@dataclass(frozen=True, slots=True)
class ReleaseAddress:
    """`address` None: nothing that was ever ours to give (0.0.0.0 and ::, which `network rm` hands back)."""

    pool_id: str
    address: IPAddress | None


def create_network(body: bytes) -> CreateNetwork:
    raw = _decode(_CreateNetwork, body)
    options = raw.options or {}
    generic = plain_network_options(options.get(GENERIC_OPTIONS) or {})
    data4, data6 = raw.ipv4_data or (), raw.ipv6_data or ()
    for data in (*data4, *data6):
        if data.address_space in _FOREIGN_SPACES:
            raise InvalidInput(
                "--ipam-driver",
                hint="network driver calico needs addresses of calico-ipam: add --ipam-driver calico-ipam",
            )
    made = network_options(generic)
    if made.mtu is not None and made.mtu < _IPV6_MTU_MIN and data6:
        raise InvalidInput(f"--opt {OPTION_MTU}", str(made.mtu), f"IPv6 needs links of at least {_IPV6_MTU_MIN} bytes")
    return CreateNetwork(
        network=_identifier("NetworkID", raw.network_id),
        options=made,
        raw_options=generic,
        internal=truth(INTERNAL, options.get(INTERNAL, False)),
        enable_ipv6=truth(ENABLE_IPV6, options.get(ENABLE_IPV6, False)),
        pools4=tuple(str(_network("Pool", data.pool)) for data in data4 if data.pool),
        pools6=tuple(str(_network("Pool", data.pool)) for data in data6 if data.pool),
        reserved=_reserved((*data4, *data6)),
    )


def network_id(body: bytes) -> str:
    return _identifier("NetworkID", _decode(_CreateNetwork, body).network_id)


def allocate_network(body: bytes) -> dict[str, str]:
    """The options of a swarm's network, which have to be given back as they came."""
    raw = _decode(_CreateNetwork, body)
    _identifier("NetworkID", raw.network_id)
    given = {str(name): str(value) for name, value in (raw.options or {}).items()}
    network_options(plain_network_options(given))
    return given


def create_endpoint(body: bytes) -> CreateEndpoint:
    raw = _decode(_Endpoint, body)
    interface = raw.interface or _Interface()
    addresses = tuple(
        _interface_address(name, value)
        for name, value in (
            ("Interface.Address", interface.address),
            ("Interface.AddressIPv6", interface.address_ipv6),
        )
        if value
    )
    if not addresses:
        raise InvalidInput(
            "Interface", hint="the endpoint has no address; create the network with --ipam-driver calico-ipam"
        )
    return CreateEndpoint(
        network=_identifier("NetworkID", raw.network_id),
        endpoint=_identifier("EndpointID", raw.endpoint_id),
        addresses=addresses,
        mac=_mac(interface.mac_address) if interface.mac_address else "",
    )


def endpoint_call(body: bytes) -> EndpointCall:
    raw = _decode(_Endpoint, body)
    network, endpoint = _identifier("NetworkID", raw.network_id), _identifier("EndpointID", raw.endpoint_id)
    return EndpointCall(network, endpoint, raw.sandbox_key or "")


def connectivity(body: bytes) -> Connectivity:
    raw = _decode(_Connectivity, body)
    network, endpoint = _identifier("NetworkID", raw.network_id), _identifier("EndpointID", raw.endpoint_id)
    options = raw.options or _PortOptions()
    return Connectivity(network, endpoint, tuple(map(_port_request, options.portmap or ())))


def _port_request(raw: _Port) -> PortRequest:
    if raw.proto not in PROTOCOLS:
        raise InvalidInput("-p: protocol", raw.proto, "ports of tcp, udp and sctp can be published")
    if not 1 <= raw.port <= MAX_PORT:
        raise InvalidInput("-p: container port", raw.port, f"must be 1 to {MAX_PORT}")
    last = raw.host_port_end or raw.host_port
    if not 0 <= raw.host_port <= last <= MAX_PORT or (last and not raw.host_port):
        raise InvalidInput("-p: host port", f"{raw.host_port}-{last}", f"must be a port or a range of 1 to {MAX_PORT}")
    host_ip = _address("-p: host address", raw.host_ip) if raw.host_ip else None
    return PortRequest(raw.proto, raw.port, host_ip, raw.host_port, last)


def request_pool(body: bytes) -> RequestPool:
    raw = _decode(_Pool, body)
    options = plain_ipam_options(raw.options or {})
    pool = _network("--subnet", raw.pool) if raw.pool else None
    inside = _network("--ip-range", raw.sub_pool) if raw.sub_pool else None
    if inside is not None and (pool is None or not _within(inside, pool)):
        raise InvalidInput(
            "--ip-range", str(inside), "it lies in no --subnet of this network; name the --subnet that holds it"
        )
    return RequestPool(
        space=raw.address_space or "",
        pool=pool,
        range=inside,
        version=pool.version if pool is not None else 6 if raw.v6 else 4,
        pool_names=tuple(name for name in str(options.get(IPAM_OPTION_POOL) or "").split(",") if name),
        inside=truth(f"--ipam-opt {IPAM_OPTION_INSIDE}", options.get(IPAM_OPTION_INSIDE, False)),
    )


def request_address(body: bytes) -> RequestAddress:
    raw = _decode(_Pool, body)
    options = raw.options or {}
    return RequestAddress(
        pool_id=_pool_id(raw.pool_id),
        address=_address("Address", raw.address) if raw.address else None,
        gateway=options.get(ADDRESS_TYPE) == GATEWAY_TYPE,
    )


def release_address(body: bytes) -> ReleaseAddress:
    raw = _decode(_Pool, body)
    address = _address("Address", raw.address)
    return ReleaseAddress(raw.pool_id or "", None if address.is_unspecified else address)


def pool_id(body: bytes) -> str:
    return _pool_id(_decode(_Pool, body).pool_id)


def answer(**members: Any) -> bytes:
    return msgspec.json.encode(members)


def error(text: str) -> bytes:
    """Both keys: the network side reads `Err`, the IPAM side of some releases `Error` (docker-plugin 1.5). One line."""
    line = " ".join(text.split())
    return msgspec.json.encode({"Err": line, "Error": line})


def _decode(shape: Type[T], body: bytes) -> T:
    if not body.strip():
        raise InvalidInput(
            "request body",
            hint="it is empty; Docker sends that when it repeats a call that broke off: try the command again",
        )
    try:
        decoded: T = _DECODERS[shape].decode(body)
        return decoded
    except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError) as problem:
        raise InvalidInput("request body", hint=f"not what Docker's plugin protocol says: {problem}") from problem


def _identifier(name: str, value: str | None) -> str:
    if not value:
        raise InvalidInput(name, hint="missing in the request")
    # It becomes part of etcd keys, of file and of link names.
    if _IDENTIFIER.fullmatch(value) is None:
        raise InvalidInput(name, value, "not an identifier as Docker makes them")
    return value


def _pool_id(value: str | None) -> str:
    if not value:
        raise InvalidInput("PoolID", hint="missing in the request")
    return value


def _mac(value: str) -> str:
    """Lower-case colon form; a group address cannot be a container's."""
    digits = value.replace(":", "").replace("-", "").lower()
    try:
        octets = bytes.fromhex(digits)
    except ValueError:
        octets = b""
    if len(octets) != 6 or octets[0] & 1 or not any(octets):
        raise InvalidInput("MacAddress", value, "must be the address of one station, like 02:42:ac:1f:00:07")
    return octets.hex(":")


def _network(name: str, value: str | None) -> IPNetwork:
    try:
        return ip_network(value or "")
    except ValueError as problem:
        raise InvalidInput(name, value, f"must be a network in CIDR form: {problem}") from problem


def _address(name: str, value: str | None) -> IPAddress:
    try:
        return ip_interface(value or "").ip
    except ValueError as problem:
        raise InvalidInput(name, value, "must be an IP address") from problem


def _interface_address(name: str, value: str | None) -> IPAddress:
    address = _address(name, value)
    if address.is_unspecified or address.is_multicast or address.is_loopback:
        raise InvalidInput(name, value, "cannot be the address of a container")
    return address


def _within(inner: IPNetwork, outer: IPNetwork) -> bool:
    return inner.version == outer.version and inner.subnet_of(outer)  # type: ignore[arg-type]


def _reserved(pools: tuple[_PoolData, ...]) -> dict[IPAddress, str]:
    found: dict[IPAddress, str] = {}
    for data in pools:
        if data.gateway:
            found[_address("Gateway", data.gateway)] = "gateway"
        for name, value in (data.aux_addresses or {}).items():
            found[_address("AuxAddresses", value)] = name
    return {address: what for address, what in found.items() if not address.is_unspecified}
