"""Options of a network: plain and prefixed names, refusals that help."""

from __future__ import annotations

import pytest

from calico_plugin.driver import options
from calico_plugin.driver.options import NetworkOptions
from calico_plugin.errors import InvalidInput, Unsupported


def test_calicos_prefix_makes_no_difference() -> None:
    """What is stored has the plain name, so that nothing else need know of the prefix."""
    plain = options.plain_network_options({"org.projectcalico.pool-routes": "true", "default-route": "false"})
    assert plain == {"pool-routes": "true", "default-route": "false"}
    assert options.network_options(plain) == NetworkOptions(pool_routes=True, default_route=False)
    assert options.plain_ipam_options({"org.projectcalico.pool": "web"}) == {"pool": "web"}


def test_both_forms_must_say_the_same() -> None:
    same = {"pool-routes": "true", "org.projectcalico.pool-routes": "true"}
    assert options.plain_network_options(same) == {"pool-routes": "true"}
    with pytest.raises(InvalidInput, match="pool-routes is given twice, with 'true' as well"):
        options.plain_network_options({**same, "org.projectcalico.pool-routes": "false"})


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("mtu", "com.docker.network.driver.mtu"),
        ("org.projectcalico.pool_routes", "pool-routes"),
        ("com.docker.network.mtu", "com.docker.network.driver.mtu"),
        ("defaultroute", "default-route"),
    ],
)
def test_what_was_probably_meant_is_said(written: str, meant: str) -> None:
    with pytest.raises(Unsupported, match=f"--opt {written}: not known to driver calico; did you mean {meant}[?]"):
        options.plain_network_options({written: "1"})


def test_an_unknown_option_is_refused_by_name() -> None:
    """The text names the option and all that are known."""
    with pytest.raises(Unsupported) as refused:
        options.plain_network_options({"colour": "blue"})
    text = str(refused.value)
    assert "colour" in text and all(known in text for known in options.NETWORK_OPTIONS)
    assert "did you mean" not in text
    with pytest.raises(Unsupported, match="colour.*inside-pool"):
        options.plain_ipam_options({"colour": "blue"})


def test_what_docker_does_by_itself_passes() -> None:
    """Docker 28 shows every driver how it will announce addresses."""
    assert options.plain_network_options({"com.docker.network.advertise_addr_nmsgs": "0", "pool-routes": "1"}) == {
        "pool-routes": "1"
    }


@pytest.mark.parametrize("value", ["", "1", "65536", "large", "1500.5", "-9"])
def test_an_mtu_that_no_link_takes_is_refused(value: str) -> None:
    with pytest.raises(InvalidInput, match="driver.mtu"):
        options.network_options({options.OPTION_MTU: value})


@pytest.mark.parametrize("name", [options.OPTION_POOL_ROUTES, options.OPTION_DEFAULT_ROUTE])
def test_a_switch_is_true_or_false(name: str) -> None:
    with pytest.raises(InvalidInput, match="true or false"):
        options.network_options({name: "maybe"})
