"""Docker's requests: what is taken, what is refused, and with which words."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from calico_plugin.driver import wire
from calico_plugin.driver.options import OPTION_MTU, NetworkOptions
from calico_plugin.errors import InvalidInput

NETWORK, ENDPOINT = "a" * 64, "e" * 64


def body(**members: Any) -> bytes:
    return json.dumps(members).encode() + b"\n"


def network(**members: Any) -> bytes:
    return body(NetworkID=NETWORK, **members)


@pytest.mark.parametrize(
    "parse",
    [
        wire.create_network, wire.network_id, wire.create_endpoint, wire.endpoint_call, wire.request_pool,
        wire.request_address, wire.release_address, wire.pool_id, wire.allocate_network,
    ],
)  # fmt: skip
@pytest.mark.parametrize("data", [b"", b"\n", b"not json", b"[]", b'{"NetworkID": 5, "PoolID": 5}', b"\xff"])
def test_a_body_that_is_none_is_refused(parse: Any, data: bytes) -> None:
    """An empty body is a broken-off call sent again: never taken as defaults; nor is anything that is no request."""
    with pytest.raises(InvalidInput) as refused:
        parse(data)
    assert "\n" not in str(refused.value)


def test_create_network_takes_what_docker_sends() -> None:
    """Pools, flags and reserved addresses come out typed; the dummy gateway is no address."""
    call = wire.create_network(
        network(
            Options={
                "com.docker.network.generic": {"com.docker.network.driver.mtu": "1400"},
                "com.docker.network.enable_ipv6": True,
                "com.docker.network.internal": True,
            },
            IPv4Data=[
                {
                    "AddressSpace": "CalicoLocalAddressSpace",
                    "Pool": "10.9.0.0/16",
                    "Gateway": "10.9.0.1/16",
                    "AuxAddresses": {"router": "10.9.5.77/32"},
                }
            ],
            IPv6Data=[{"AddressSpace": "CalicoLocalAddressSpace", "Pool": "fd00::/64", "Gateway": "::/0"}],
        )
    )
    assert (call.network, call.internal, call.enable_ipv6) == (NETWORK, True, True)
    assert (call.pools4, call.pools6) == (("10.9.0.0/16",), ("fd00::/64",))
    assert call.options == NetworkOptions(mtu=1400)
    assert call.reserved == {ip_address("10.9.0.1"): "gateway", ip_address("10.9.5.77"): "router"}


def test_create_network_without_anything_optional() -> None:
    """Docker leaves members out, or sends null, where there is nothing."""
    call = wire.create_network(network(Options=None, IPv4Data=None, IPv6Data=None))
    assert (call.pools4, call.pools6, call.reserved, call.internal) == ((), (), {}, False)


def test_an_mtu_too_small_for_ipv6_is_refused() -> None:
    """The kernel would take IPv6 away from the link without a word."""
    options = {"com.docker.network.generic": {OPTION_MTU: "1200"}}
    assert wire.create_network(network(Options=options)).options.mtu == 1200
    with pytest.raises(InvalidInput, match="1280"):
        wire.create_network(network(Options=options, IPv6Data=[{"AddressSpace": "L", "Pool": "fd00::/64"}]))


@pytest.mark.parametrize("space", ["LocalDefault", "GlobalDefault", "null"])
def test_a_network_with_foreign_addresses_is_refused(space: str) -> None:
    """Addresses of Docker's own IPAM cannot be routed between hosts: the text says what to add."""
    with pytest.raises(InvalidInput, match="--ipam-driver calico-ipam"):
        wire.create_network(network(IPv4Data=[{"AddressSpace": space, "Pool": "172.18.0.0/16"}]))


@pytest.mark.parametrize("identifier", ["", "a/b", "../x", "a b", "-x", "x" * 200, "ä"])
def test_an_identifier_that_cannot_be_part_of_a_key_is_refused(identifier: str) -> None:
    with pytest.raises(InvalidInput, match="EndpointID"):
        wire.endpoint_call(network(EndpointID=identifier))


def test_a_swarm_id_is_an_identifier() -> None:
    """25 characters, not hex."""
    assert wire.network_id(body(NetworkID="q1w2e3r4t5z6u7i8o9p0a1s2d")) == "q1w2e3r4t5z6u7i8o9p0a1s2d"


def test_create_endpoint_takes_both_families_and_a_mac() -> None:
    interface = {"Address": "10.77.0.2/32", "AddressIPv6": "fd00::2/128", "MacAddress": "02-42-AC-1F-00-07"}
    call = wire.create_endpoint(network(EndpointID=ENDPOINT, Interface=interface, Options={"k": {"deep": 1}}))
    assert call.addresses == (ip_address("10.77.0.2"), ip_address("fd00::2"))
    assert call.mac == "02:42:ac:1f:00:07"


@pytest.mark.parametrize("mac", ["02:42", "zz:zz:zz:zz:zz:zz", "01:00:5e:00:00:01", "00:00:00:00:00:00"])
def test_a_mac_that_is_no_stations_is_refused(mac: str) -> None:
    with pytest.raises(InvalidInput, match="MacAddress"):
        wire.create_endpoint(network(EndpointID=ENDPOINT, Interface={"Address": "10.0.0.1/32", "MacAddress": mac}))


@pytest.mark.parametrize("interface", [None, {}, {"Address": "", "AddressIPv6": ""}])
def test_an_endpoint_without_address_is_refused(interface: Any) -> None:
    with pytest.raises(InvalidInput, match="calico-ipam"):
        wire.create_endpoint(network(EndpointID=ENDPOINT, Interface=interface))


@pytest.mark.parametrize("address", ["10.0.0", "0.0.0.0/0", "127.0.0.1/32", "224.0.0.1/32", "ten"])
def test_an_address_that_no_container_can_have_is_refused(address: str) -> None:
    with pytest.raises(InvalidInput, match="Interface.Address"):
        wire.create_endpoint(network(EndpointID=ENDPOINT, Interface={"Address": address}))


def test_request_pool() -> None:
    """Subnet, range and options; the version follows the subnet."""
    call = wire.request_pool(
        body(AddressSpace="L", Pool="10.9.0.0/16", SubPool="10.9.5.0/24", Options={"inside-pool": "true"}, V6=False)
    )
    assert (call.pool, call.range) == (ip_network("10.9.0.0/16"), ip_network("10.9.5.0/24"))
    assert (call.version, call.inside) == (4, True)
    assert wire.request_pool(body(AddressSpace="L", Pool="", V6=True, Options=None)).version == 6


@pytest.mark.parametrize(
    "pool,inner", [("10.9.0.0/16", "10.8.0.0/24"), ("", "10.9.5.0/24"), ("10.9.0.0/16", "fd00::/64")]
)
def test_a_range_outside_of_its_subnet_is_refused(pool: str, inner: str) -> None:
    with pytest.raises(InvalidInput, match="--ip-range"):
        wire.request_pool(body(Pool=pool, SubPool=inner))


@pytest.mark.parametrize("pool", ["10.9.0.1/16", "10.9.0.0/33", "10.9.0.0/16/2", "pool"])
def test_a_subnet_that_is_no_network_is_refused_with_its_text(pool: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        wire.request_pool(body(Pool=pool))
    assert pool in str(refused.value)


def test_request_address_knows_a_gateway() -> None:
    options = {"RequestAddressType": "com.docker.network.gateway"}
    call = wire.request_address(body(PoolID="CalicoPoolIPv4", Address="10.9.0.1", Options=options))
    assert call == wire.RequestAddress("CalicoPoolIPv4", ip_address("10.9.0.1"), True)


@pytest.mark.parametrize("address", ["0.0.0.0", "::"])
def test_the_dummy_gateway_given_back_is_no_address(address: str) -> None:
    """`network rm` hands 0.0.0.0 and :: back: nothing is to be done."""
    assert wire.release_address(body(PoolID="CalicoPoolIPv4", Address=address)).address is None


def test_an_error_is_one_line_under_both_keys() -> None:
    assert json.loads(wire.error("two\nlines  here")) == {"Err": "two lines here", "Error": "two lines here"}


def ports(*entries: dict[str, Any]) -> bytes:
    return body(NetworkID=NETWORK, EndpointID=ENDPOINT, Options={"com.docker.network.portmap": list(entries)})


def entry(**members: Any) -> dict[str, Any]:
    return {"Proto": 6, "IP": "", "Port": 80, "HostIP": "", "HostPort": 0, "HostPortEnd": 0, **members}


def test_ports_to_be_published() -> None:
    """One, a range, any; with and without an address of the host."""
    call = wire.connectivity(ports(
        entry(HostPort=8080, HostPortEnd=8080),
        entry(Proto=17, HostIP="127.0.0.1", HostPort=9000, HostPortEnd=9010),
        entry(Proto=132, HostIP="::"),
    ))
    assert (call.network, call.endpoint) == (NETWORK, ENDPOINT) and call.ports == (
        wire.PortRequest(6, 80, None, 8080, 8080),
        wire.PortRequest(17, 80, ip_address("127.0.0.1"), 9000, 9010),
        wire.PortRequest(132, 80, ip_address("::"), 0, 0),
    )


@pytest.mark.parametrize("options", [{}, {"Options": None}, {"Options": {}}, {"Options": {
    "com.docker.network.portmap": None, "com.docker.network.endpoint.exposedports": [{"Proto": 6, "Port": 80}]}}])
def test_no_ports_to_be_published(options: dict[str, Any]) -> None:
    """Docker tells each gateway, also when nothing is published; what is only exposed is not."""
    assert wire.connectivity(body(NetworkID=NETWORK, EndpointID=ENDPOINT, **options)).ports == ()


@pytest.mark.parametrize(
    ("members", "named"),
    [
        ({"Proto": 1}, "protocol = 1"),
        ({"Port": 0}, "container port = 0"),
        ({"Port": 65536}, "container port = 65536"),
        ({"HostPort": 90, "HostPortEnd": 80}, "host port = '90-80'"),
        ({"HostPort": 65000, "HostPortEnd": 65536}, "host port"),
        ({"HostPort": 0, "HostPortEnd": 80}, "host port"),
        ({"HostPort": -1}, "host port"),
        ({"HostIP": "eth0"}, "host address = 'eth0'"),
    ],
)
def test_ports_that_make_no_sense_are_refused(members: dict[str, Any], named: str) -> None:
    """By name and value."""
    with pytest.raises(InvalidInput, match=named):
        wire.connectivity(ports(entry(**members)))
