"""Each right that plugin/config.json asks for is needed: without it, something that a user relies on does not work.

And what else depends on how a plugin is set up.
"""

from __future__ import annotations

import shutil
from typing import Any, Callable

import pytest

from tests.lab import lab as labs
from tests.lab import plugins, rootfs, state
from tests.lab.lab import Lab
from tests.lab.machine import Machine
from tests.lab.spec import LabSpec
from tests.lab.wait import wait_for

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
CREATE = ("docker", "network", "create", "--driver", "calico", "--ipam-driver", "calico-ipam", "cal_rights")
RUN = ("docker", "run", "--rm", "--net", "cal_rights", "busybox", "true")
Change = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module", params=[False, True], ids=["alone", "store"])
def lone(request: pytest.FixtureRequest):
    """One host, without a plugin; and one whose Docker has a cluster store."""
    rootfs.built()
    own = state.claim_free("pytest-rights")
    lab = labs.up(LabSpec(own.name, hosts=1, cluster_store=request.param))
    try:
        yield lab
    finally:
        state.clear(own.name, keep_logs=False)
        own.release()


@pytest.fixture
def install(lone: Lab, request: pytest.FixtureRequest):
    """`install(change)` makes and enables a plugin with a changed config.json, and says whether it could be enabled."""
    if lone.spec.cluster_store and "with_all" not in request.node.name:
        pytest.skip("makes no difference here")
    # Beside the root file system, which is linked.
    folder, host = rootfs.PLUGIN.parent / f"variant-{lone.spec.name}", lone["host1"]

    def make(change: Change, endpoints: str = lone.spec.etcd_url) -> bool:
        shutil.rmtree(folder, ignore_errors=True)
        plugins.create_variant(host, folder, plugins.ALIAS, change)
        host.run("docker", "plugin", "set", plugins.ALIAS, f"ETCD_ENDPOINTS={endpoints}")
        return host.run("docker", "plugin", "enable", plugins.ALIAS, check=False, seconds=90).returncode == 0

    yield make
    host.run("docker", "network", "rm", "cal_rights", check=False)
    host.run("docker", "plugin", "disable", "-f", plugins.ALIAS, check=False)
    host.run("docker", "plugin", "rm", "-f", plugins.ALIAS)
    shutil.rmtree(folder, ignore_errors=True)


def without_mount(name: str) -> Change:
    """A change that drops one mount."""
    def change(config: dict[str, Any]) -> None:
        config["mounts"] = [one for one in config["mounts"] if one["name"] != name]
    return change


def switch_forwarding_off(host: Machine) -> None:
    host.shell("echo 0 > /proc/sys/net/ipv4/ip_forward")


def forwards(host: Machine) -> bool:
    return host.shell("cat /proc/sys/net/ipv4/ip_forward").strip() == "1"


def test_with_all_rights(lone, install):
    """The yardstick: as shipped, all of what the other tests miss works."""
    host = lone["host1"]
    switch_forwarding_off(host)
    assert install(lambda config: None)
    host.run(*CREATE)
    host.run(*RUN)
    wait_for("forwarding", lambda: forwards(host), 60, 0.5)
    scope = host.run("docker", "network", "inspect", "-f", "{{.Scope}}", "cal_rights").stdout.strip()
    assert scope == ("global" if lone.spec.cluster_store else "local")


def test_without_net_admin(lone, install):
    """No link can be made."""
    host = lone["host1"]
    assert install(lambda config: config["linux"].update(capabilities=[]))
    host.run(*CREATE)
    answer = host.run(*RUN, check=False)
    assert answer.returncode != 0 and "not permitted" in answer.stdout.lower(), answer.stdout


def test_without_the_host_s_network(lone, install):
    """etcd and other hosts are not reached, links would be made where nobody sees them."""
    host = lone["host1"]
    if install(lambda config: config.update(network={"type": ""})):
        assert host.run(*CREATE, check=False, seconds=90).returncode != 0


def test_without_run(lone, install):
    """The plain names are unknown."""
    host = lone["host1"]
    assert install(without_mount("run"))
    answer = host.run(*CREATE, check=False, seconds=90)
    assert answer.returncode != 0 and "calico" in answer.stdout


def test_without_sysctls(lone, install):
    """A host that does not forward stays so, and the log says what to do."""
    host = lone["host1"]
    switch_forwarding_off(host)
    assert install(without_mount("sysctl"))
    wait_for("the complaint", lambda: "sysctl -w net.ipv4.ip_forward=1" in plugins.log(host), 60, 0.5)
    assert not forwards(host)


def test_without_var_lib(lone, install):
    """The node's name is forgotten with the plugin; with the mount it is there for the next one."""
    host = lone["host1"]
    assert "determined from the file" in plugins.log(host)  # that of the plugins before
    before = len(plugins.log(host))
    assert install(without_mount("lib"))
    wait_for("its name", lambda: "determined from the host's name" in plugins.log(host)[before:], 30, 0.5)


def test_run_forbids_to_run_programs(lone, install):
    """Debian mounts /run with `noexec`: the scripts of the supervisor are elsewhere then, in both forms."""
    host, node = lone["host1"], lone.node("host1")
    host.shell("mount -o remount,noexec /run")
    try:
        assert "Calico node started successfully" in node.run()
        node.ctl("node", "reset")
        assert install(lambda config: None)
        host.run(*CREATE)
        host.run(*RUN)
    finally:
        host.shell("mount -o remount,exec /run")


def test_no_endpoints(lone, install):
    """Without ETCD_ENDPOINTS the plugin runs an etcd of its own, and all works."""
    host = lone["host1"]
    assert install(lambda config: None, endpoints="")
    host.run(*CREATE)
    host.run(*RUN)
    assert "127.0.0.1:2379" in host.shell("ss -ltn")
