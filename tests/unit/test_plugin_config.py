"""plugin/config.json is what Docker takes, and its environment is that of config.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from calico_plugin.config import Settings, variables
from calico_plugin.driver import introduction, scope
from calico_plugin.node import plain_names

HERE = Path(__file__).parents[2]
CONFIG: dict[str, Any] = json.loads((HERE / "plugin" / "config.json").read_text())
ENV = {one["name"]: one for one in CONFIG["env"]}

# Read by calico-node, and of no use to the user of a plugin: other spellings, what Docker itself sets, what the
# plugin's fixed places make superfluous.
NOT_OFFERED = {
    "CALICO_DATASTORE_TYPE", "CALICO_DEBUG", "CALICO_DISABLE_FELIX", "CALICO_ETCD_CA_CERT_FILE",
    "CALICO_ETCD_CERT_FILE", "CALICO_ETCD_ENDPOINTS", "CALICO_ETCD_KEY_FILE", "CALICO_ETCD_PASSWORD",
    "CALICO_ETCD_USERNAME", "CALICO_FORWARD_LOGS", "CALICO_LIBNETWORK_ENABLED", "CALICO_NETWORKING",
    "CALICO_NODENAME_FILE", "CALICO_PLUGIN_DIR", "CALICO_START_TIMEOUT", "CALICO_STARTUP_LOGLEVEL", "DATASTORE_TYPE",
    "ETCD_AUTHORITY", "FELIX_HEALTHENABLED", "FELIX_HEALTHHOST", "FELIX_LOGSEVERITYSCREEN", "HOSTNAME",
    "WAIT_FOR_DATASTORE",
}  # fmt: skip
# Of programs that calico-node starts.
OF_OTHERS = {"XTABLES_LOCKFILE"}


def test_every_setting_is_offered() -> None:
    """A setting that is added to config.py is added to the plugin, or to the list of those that make no sense there."""
    assert set(variables()) - NOT_OFFERED == set(ENV) - OF_OTHERS
    assert not NOT_OFFERED & set(ENV)


def test_every_setting_says_what_it_does() -> None:
    """`docker plugin inspect` shows the descriptions."""
    assert [name for name, one in ENV.items() if not one["description"]] == []


def test_defaults_are_good() -> None:
    """The environment as it is without any `docker plugin set` has no problem, and means calico-node's own defaults."""
    given = {name: one["value"] for name, one in ENV.items() if "value" in one}
    settings = Settings.from_env(given)
    assert settings.problems() == ()
    assert settings.node.managed and settings.datastore.is_default
    plain = Settings.from_env({})
    for name in ("pools", "ip", "ip6", "backend", "as_number", "default_pools", "ip_method", "check_conflicts"):
        assert getattr(settings.node, name) == getattr(plain.node, name), name


@pytest.mark.parametrize("name", ["ETCD_ENDPOINTS", "NODENAME", "IP", "IP6", "AS", "CALICO_IPV4POOL_CIDR"])
def test_settings_of_a_user_are_settable(name: str) -> None:
    """What one gives to `docker plugin install`."""
    assert ENV[name]["settable"] == ["value"]


def test_fixed_places_are_below_the_mounts() -> None:
    """What must outlive the plugin, or be seen by the host, is on a mount."""
    mounts = {one["destination"] for one in CONFIG["mounts"]}
    for name in ("CALICO_HOST_PLUGIN_DIR", "CALICO_RUN_DIR", "CALICO_LIB_DIR", "CALICO_SECRETS_DIR"):
        assert any(ENV[name]["value"].startswith(mount + "/") for mount in mounts), name
        assert "settable" not in ENV[name]


def test_interface() -> None:
    """One socket, both roles, the host's network, and not more rights than docs/plugin.md explains."""
    assert CONFIG["interface"] == {
        "socket": "calico.sock",
        "types": ["docker.networkdriver/1.0", "docker.ipamdriver/1.0"],
    }
    assert CONFIG["network"] == {"type": "host"}
    page = (HERE / "docs" / "plugin.md").read_text()
    assert set(CONFIG["linux"]) == {"capabilities"}
    for right in [*CONFIG["linux"]["capabilities"], *(one["source"] for one in CONFIG["mounts"])]:
        assert f"`{right}`" in page, right
    assert not {"pidhost", "ipchost", "propagatedMount"} & set(CONFIG)


def test_packages_are_those_of_make_setup() -> None:
    """Host, image and plugin run with the same Debian packages: one list."""
    assert "plugin/packages.txt" in (HERE / "Makefile").read_text()
    assert "plugin/install.sh" in (HERE / "Dockerfile").read_text()


def test_the_files_that_tell_the_driver() -> None:
    """calico-node writes them, the driver reads them; neither may import the other."""
    assert plain_names.KNOWN_NAME == introduction.KNOWN_FILE
    assert plain_names.SCOPE_NAME == scope.HINT_FILE
