"""Which pool a network gets, and what its id says."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from calico_plugin.driver import pools, wire
from calico_plugin.driver.pools import Pool
from calico_plugin.errors import InvalidInput, NotFound
from calico_plugin.model.resources import IPPool, Metadata
from calico_plugin.model.resources.ipam import IPPoolSpec


def pool(name: str, cidr: str, **spec: Any) -> IPPool:
    return IPPool(metadata=Metadata(name=name), spec=IPPoolSpec(cidr=cidr, **spec))


POOLS = (pool("big", "10.9.0.0/16"), pool("off", "10.10.0.0/16", disabled=True), pool("six", "fd00:9::/64"))


def ask(**members: Any) -> wire.RequestPool:
    return wire.request_pool(json.dumps({"Pool": "", **members}).encode())


@pytest.mark.parametrize(
    "one",
    [
        Pool(4),
        Pool(6),
        Pool(4, ip_network("10.9.0.0/16")),
        Pool(4, ip_network("10.9.0.0/16"), ip_network("10.9.5.0/24")),
        Pool(6, ip_network("fd00:9::/64"), ip_network("fd00:9::/80")),
    ],
)
def test_an_id_says_all_by_itself(one: Pool) -> None:
    """It comes back on another host, after a restart, without any pool known."""
    assert pools.parse(one.id, ()) == one


def test_the_original_plugins_ids_are_understood() -> None:
    assert pools.parse("CalicoPoolIPv6", ()) == Pool(6)
    assert pools.parse("big", POOLS) == Pool(4, ip_network("10.9.0.0/16"))


def test_an_id_of_a_pool_that_is_gone() -> None:
    with pytest.raises(NotFound, match="small.*create it again"):
        pools.parse("small", POOLS)


def test_without_subnet_docker_gets_what_it_never_checks() -> None:
    """0.0.0.0/0: a real CIDR would make Docker ask without end on a host whose routes overlap it."""
    assert pools.grant(ask(), POOLS) == pools.Granted("CalicoPoolIPv4", "0.0.0.0/0", "0.0.0.0/0")


def test_ipv6_without_subnet_gets_the_real_pool() -> None:
    """::/0 overlaps any IPv6 name server of the host."""
    assert pools.grant(ask(V6=True), POOLS) == pools.Granted("CalicoPoolIPv6", "fd00:9::/64", "::/0")


def test_ipv6_without_any_pool_is_refused() -> None:
    with pytest.raises(InvalidInput, match="--ipv6.*IPPool"):
        pools.grant(ask(V6=True), POOLS[:2])


def test_a_subnet_is_a_pools() -> None:
    granted = pools.grant(ask(Pool="10.9.0.0/16"), POOLS)
    assert (granted.id, granted.pool, granted.gateway) == ("calico:10.9.0.0/16", "10.9.0.0/16", "0.0.0.0/0")


def test_a_range_limits_the_addresses() -> None:
    granted = pools.grant(ask(Pool="10.9.0.0/16", SubPool="10.9.5.0/24"), POOLS)
    limited = pools.parse(granted.id, ())
    assert limited.within == ip_network("10.9.5.0/24")
    # What the user names may lie beside it.
    assert limited.holds(ip_address("10.9.6.7")) and not limited.holds(ip_address("10.8.5.7"))


def test_a_part_of_a_pool_needs_the_option() -> None:
    """Without it the refusal names the CIDR, the pool around it and the option."""
    with pytest.raises(InvalidInput, match="10.9.8.0/24.*big.*inside-pool=true"):
        pools.grant(ask(Pool="10.9.8.0/24"), POOLS)
    granted = pools.grant(ask(Pool="10.9.8.0/24", Options={"inside-pool": "true"}), POOLS)
    assert pools.parse(granted.id, ()) == Pool(4, ip_network("10.9.0.0/16"), ip_network("10.9.8.0/24"))


def test_a_subnet_of_no_pool_is_refused_with_those_there_are() -> None:
    with pytest.raises(InvalidInput, match=r"172.30.0.0/16.*10.9.0.0/16 \(big\)"):
        pools.grant(ask(Pool="172.30.0.0/16"), POOLS)
    with pytest.raises(InvalidInput, match="172.30.0.0/16.*create one first"):
        pools.grant(ask(Pool="172.30.0.0/16"), ())


def test_a_disabled_pool_is_refused() -> None:
    with pytest.raises(InvalidInput, match="10.10.0.0/16.*disabled"):
        pools.grant(ask(Pool="10.10.0.0/16"), POOLS)


def test_a_pool_by_name() -> None:
    """The id limits the addresses to it, while Docker still sees 0.0.0.0/0."""
    granted = pools.grant(ask(Options={"pool": "big"}), POOLS)
    assert (granted.id, granted.pool) == ("calico:10.9.0.0/16", "0.0.0.0/0")
    with pytest.raises(InvalidInput, match="small.*big"):
        pools.grant(ask(Options={"pool": "small"}), POOLS)
    both = {"pool": "big,six"}
    assert pools.grant(ask(Options=both), POOLS).id == "calico:10.9.0.0/16"
    assert pools.grant(ask(Options=both, V6=True), POOLS).id == "calico:fd00:9::/64"
    assert pools.grant(ask(Options={"pool": "big"}, V6=True), POOLS).id == "CalicoPoolIPv6"
    with pytest.raises(InvalidInput, match="off"):
        pools.grant(ask(Pool="10.9.0.0/16", Options={"pool": "off"}), POOLS)
