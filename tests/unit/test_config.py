"""Settings from the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from calico_plugin.config import BadSettings, Settings, node_name_and_source
from calico_plugin.errors import InvalidInput
from calico_plugin.model import autodetect


def test_nothing_set_is_all_right(tmp_path: Path) -> None:
    """With an empty environment every setting has its documented default."""
    settings = Settings.checked({"CALICO_LIB_DIR": str(tmp_path)})
    assert settings.datastore.endpoints == ("http://127.0.0.1:2379",) and settings.datastore.is_default
    assert (settings.scope, settings.node.backend, settings.metrics_port, settings.health_port) == (
        "auto", "bird", 9091, 9099,
    )  # fmt: skip
    assert settings.node.pools[0].nat_outgoing and not settings.node.pools[1].nat_outgoing


def test_all_problems_come_together() -> None:
    """One error names every bad variable, its value and what would be right."""
    with pytest.raises(BadSettings) as caught:
        Settings.checked(
            {
                "NODENAME": "Host_1",
                "IP": "fd00::1",
                "AS": "70000.1",
                "CALICO_LIBNETWORK_VETH_MTU": "big",
                "ETCD_ENDPOINTS": "10.0.0.1:2379",
                "ETCD_USERNAME": "root",
                "CALICO_IPV4POOL_CIDR": "fd80::/48",
                "CALICO_IPV4POOL_IPIP": "sometimes",
                "IP_AUTODETECTION_METHOD": "interface=(",
                "CALICO_NETWORKING_BACKEND": "gobgp",
            }
        )
    text = str(caught.value)
    variables = {problem.variable for problem in caught.value.problems}
    assert variables == {
        "NODENAME", "IP", "AS", "CALICO_LIBNETWORK_VETH_MTU", "ETCD_ENDPOINTS", "ETCD_PASSWORD", "CALICO_IPV4POOL_CIDR",
        "CALICO_IPV4POOL_IPIP", "IP_AUTODETECTION_METHOD", "CALICO_NETWORKING_BACKEND",
    }  # fmt: skip
    assert "AS = '70000.1': an AS number is" in text and len(text.splitlines()) == 10


def test_prefixed_and_empty_variables() -> None:
    """CALICO_ETCD_… wins over ETCD_…, and an empty value counts as unset."""
    environ = {"NODENAME": "a", "ETCD_ENDPOINTS": "http://x:1", "ETCD_KEY_FILE": ""}
    settings = Settings.checked({**environ, "CALICO_ETCD_ENDPOINTS": "http://y:2, http://z:3"})
    assert settings.datastore.endpoints == ("http://y:2", "http://z:3") and not settings.datastore.is_default


def test_no_password_is_shown(tmp_path: Path) -> None:
    """A printed Settings holds no password."""
    settings = Settings.from_env({"NODENAME": "a", "ETCD_USERNAME": "root", "ETCD_PASSWORD": "s3cret"})
    assert "s3cret" not in repr(settings) and settings.datastore.password == "s3cret"


def test_sources_of_the_name(tmp_path: Path) -> None:
    """NODENAME, the file (trimmed), HOSTNAME in lower case, in this order; an unreadable file is an error."""
    assert node_name_and_source({"NODENAME": " a "}, tmp_path)[0] == "a"
    assert node_name_and_source({"HOSTNAME": "Host"}, tmp_path)[0] == "host"
    (tmp_path / "nodename").write_text("kept\n")
    assert node_name_and_source({"HOSTNAME": "Host"}, tmp_path)[0] == "kept"
    (tmp_path / "nodename").unlink()
    (tmp_path / "nodename").mkdir()
    with pytest.raises(InvalidInput, match="cannot be read"):
        node_name_and_source({}, tmp_path)


@pytest.mark.parametrize(
    ("text", "method"),
    [
        ("", autodetect.Method()),
        ("first-found", autodetect.Method()),
        ("interface=eth.*, en.*", autodetect.Method("interface", ("eth.*", "en.*"))),
        ("can-reach=8.8.8.8", autodetect.Method("can-reach", ("8.8.8.8",))),
        ("cidr=10.0.0.0/8", autodetect.Method("cidr", ("10.0.0.0/8",))),
    ],
)
def test_detection_methods(text: str, method: autodetect.Method) -> None:
    """Each documented form is understood."""
    assert autodetect.parse(text) == method


@pytest.mark.parametrize("text", ["interface=", "skip-interface=(", "cidr=10", "fastest", "first-found=x"])
def test_bad_detection_methods(text: str) -> None:
    """What is not understood is refused."""
    with pytest.raises(ValueError):
        autodetect.parse(text)


def test_settings_of_the_agent() -> None:
    """Names of the network driver and what is reported: defaults, given, and wrong."""
    plain = Settings.from_env({"NODENAME": "a"})
    assert plain.docker_drivers == ("calico", "calico:latest")
    assert (plain.reporting_interval, plain.endpoint_reporting) == (None, None)
    given = Settings.from_env(
        {
            "NODENAME": "a",
            "CALICO_LIBNETWORK_DRIVER_NAMES": "routed, routed:v2",
            "FELIX_REPORTINGINTERVALSECS": "0",
            "FELIX_ENDPOINTREPORTINGENABLED": "true",
        }
    )
    assert given.docker_drivers == ("routed", "routed:v2")
    assert (given.reporting_interval, given.endpoint_reporting) == (0.0, True)
    wrong = Settings.from_env({"NODENAME": "a", "FELIX_REPORTINGINTERVALSECS": "soon"})
    assert [problem.variable for problem in wrong.problems()] == ["FELIX_REPORTINGINTERVALSECS"]
