"""What Docker shows of a network, read back into the words that make it."""

from __future__ import annotations

from typing import Any

import pytest

from calico_plugin.agent.docker_api import _network, _ranges
from calico_plugin.model.docker import AddressRange


def shown(config: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {"Id": "1", "Name": "net", "Driver": "calico", "Scope": "local",
            "IPAM": {"Driver": "calico-ipam", "Options": None, "Config": config}, **more}


@pytest.mark.parametrize(
    "config",
    [[], [{"Subnet": "0.0.0.0/0", "Gateway": "0.0.0.0"}], [{"Subnet": "0.0.0.0/0", "Gateway": "0.0.0.0/0"}],
     [{"Subnet": "fd00::/48", "Gateway": "::"}], [{"Subnet": "fd00::/48", "Gateway": "::/0"}]],
)
def test_what_our_ipam_driver_chose_is_not_the_users_word(config: list[dict[str, Any]]) -> None:
    """Docker 20.10 to 28 show the automatic pool like a given one."""
    assert _network(shown(config)).spec.ranges == ()


def test_given_ranges_come_back() -> None:
    """All of it, and Docker's own form again."""
    config = [
        {"Subnet": "10.0.0.0/8", "IPRange": "10.1.0.0/16", "Gateway": "10.1.0.1",
         "AuxiliaryAddresses": {"p": "10.1.0.9"}},
        {"Subnet": "fd00::/48"},
    ]
    spec = _network(shown(config)).spec
    assert spec.ranges[0] == AddressRange(
        subnet="10.0.0.0/8", ip_range="10.1.0.0/16", gateway="10.1.0.1", auxiliary={"p": "10.1.0.9"}
    )
    assert _ranges(spec) == config


@pytest.mark.parametrize(
    "more, plain",
    [({}, True), ({"ConfigFrom": {"Network": ""}}, True), ({"ConfigFrom": {"Network": "base"}}, False),
     ({"ConfigOnly": True}, False), ({"Ingress": True}, False)],
)
def test_plain_networks(more: dict[str, Any], plain: bool) -> None:
    """Those that an ordinary `docker network create` can make again."""
    assert _network(shown([], **more)).plain is plain


def test_releases_without_a_word_about_ipv4() -> None:
    """Before 28 every network has IPv4."""
    assert _network(shown([])).spec.enable_ipv4 and not _network(shown([], EnableIPv4=False)).spec.enable_ipv4
