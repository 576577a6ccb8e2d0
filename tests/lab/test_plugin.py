"""The managed plugin: install from a registry, the two commands of a user, and what may happen to it afterwards."""

from __future__ import annotations

import json
import time

import pytest

from tests.lab import lab as labs
from tests.lab import leaks, plugins, rootfs, state
from tests.lab.conftest import wait_established
from tests.lab.connectivity import Container, Stream, start_container
from tests.lab.diagnostics import bug_lines
from tests.lab.plugins import ALIAS
from tests.lab.spec import LabSpec
from tests.lab.wait import wait_for

# Builds a root file system first: minutes, apart from the normal run (`make image-test`).
pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
CREATE = ("docker", "network", "create", "--driver", "calico", "--ipam-driver", "calico-ipam")
NETWORK = "cal_net1"
# Time for which Docker waits until the plugin's socket is open, with room for the download before.
INSTALL_SECONDS = 40


@pytest.fixture(scope="module")
def hosts():
    """Two hosts of today's kind (no cluster store), a registry on the first; the plugin installed on both from it."""
    rootfs.built()
    own = state.claim_free("pytest-plugin")
    lab = labs.up(LabSpec(own.name, cluster_store=False, docker_options=(plugins.INSECURE,)))
    try:
        plugins.start_registry(lab["host1"])
        name = plugin_name(lab)
        plugins.publish(lab["host1"], name)
        assert plugins.install(lab, "host2", name) < INSTALL_SECONDS
        assert plugins.install(lab, "host1", name) < INSTALL_SECONDS
        # Without a pause: what a script would do.
        lab["host1"].run(*CREATE, NETWORK)
        wait_for("the network on host2", lambda: networks(lab, "host2") == [NETWORK], 15)
        yield lab
        assert not bug_lines(lab)
    finally:
        state.clear(own.name, keep_logs=False)


@pytest.fixture(scope="module")
def pair(hosts) -> tuple[Container, Container]:
    """One container on each host, restarted by Docker."""
    return tuple(
        start_container(hosts, host, f"plugin-{host}", NETWORK, "--init", "--restart=always") for host in hosts.hosts
    )


def networks(lab, host: str) -> list[str]:
    """Names of the networks of our driver."""
    return lab[host].run("docker", "network", "ls", "-f", "driver=calico", "--format", "{{.Name}}").stdout.split()


def plugin_name(lab) -> str:
    return f"{lab.spec.address('host1').ip}:{plugins.PORT}/calico"


def test_the_commands_of_a_user(hosts, pair):
    """`--driver calico --ipam-driver calico-ipam`, as written; containers talk across hosts; BGP and status work."""
    one, other = pair
    wait_established(hosts)
    wait_for("a ping across", lambda: one.pings(other.address()), 20)
    wait_for("names across", lambda: one.pings(other.name) and other.pings(one.name), 10)
    listed = hosts["host1"].run("docker", "network", "inspect", "-f", "{{.Driver}} {{.IPAM.Driver}}", NETWORK).stdout
    assert listed.strip() == "calico calico-ipam"
    assert hosts["host1"].run("docker", "plugin", "ls", "--format", "{{.Name}}").stdout.split() == [f"{ALIAS}:latest"]


def test_the_tagged_name(hosts):
    """`calico:latest` for both roles, as swarm wants it, is served by the plugin's own socket."""
    host = hosts["host1"]
    host.run("docker", "network", "create", "--driver", "calico:latest", "--ipam-driver", "calico:latest", "cal_tagged")
    tagged = start_container(hosts, "host1", "tagged", "cal_tagged", "--init")
    assert tagged.address().startswith("192.168.")
    host.run("docker", "rm", "-f", "tagged")
    host.run("docker", "network", "rm", "cal_tagged")


def test_forwarding(hosts):
    """The plugin keeps forwarding on, although /proc/sys is read-only inside."""
    host = hosts["host1"]
    host.shell("echo 0 > /proc/sys/net/ipv4/ip_forward")
    wait_for("forwarding", lambda: host.shell("cat /proc/sys/net/ipv4/ip_forward").strip() == "1", 60, 0.5)
    assert "Read-only file system" not in plugins.log(host)


def doctor(hosts) -> list[dict[str, str]]:
    """What the doctor finds on host1, without what is well."""
    said = hosts.node("host1").ctl("doctor", "-o", "json", check=False)
    return [one for one in json.loads(said[said.index("["):]) if one["level"] != "ok"]


def test_doctor(hosts, pair):
    """It sees the plugin's parts from the host, whose paths are others; of one that is off it says what to type."""
    wait_for("no problem", lambda: doctor(hosts) == [], 30, 1)
    hosts["host1"].run("docker", "plugin", "disable", "-f", ALIAS)
    (found,) = (one for one in doctor(hosts) if one["check"] == "calico-node")
    assert found["level"] == "fail" and found["command"].endswith("docker plugin enable calico")
    hosts["host1"].run("docker", "plugin", "enable", ALIAS, seconds=60)
    wait_for("no problem", lambda: doctor(hosts) == [], 60, 1)


def test_in_use(hosts, pair):
    """`disable` without -f is refused while networks of either name are in use."""
    answer = hosts["host1"].run("docker", "plugin", "disable", ALIAS, check=False)
    assert answer.returncode == 1 and "is in use" in answer.stdout


def test_disable_set_enable(hosts, pair):
    """Off, a setting, on: a stream between the hosts does not notice; the setting is in force; new containers work."""
    one, other = pair
    host = hosts["host1"]
    before = plugins.starts(host)
    with Stream(one, other) as stream:
        host.run("docker", "plugin", "disable", "-f", ALIAS)
        host.run("docker", "plugin", "set", ALIAS, "CALICO_LOG_LEVEL=debug")
        host.run("docker", "plugin", "enable", ALIAS, seconds=60)
        plugins.wait_started(host, before + 1)
        wait_established(hosts)
    stream.unbroken(0.5)
    assert host.run("docker", "run", "--rm", "--net", NETWORK, "busybox", "true").returncode == 0


def test_crash(hosts, pair):
    """calico-node in the plugin killed: Docker starts it again; traffic goes on."""
    one, other = pair
    host = hosts["host2"]
    before = plugins.starts(host)
    with Stream(one, other) as stream:
        host.shell("kill -9 $(pgrep -of /opt/calico/bin/calico-node)")
        plugins.wait_started(host, before + 1)
        wait_established(hosts)
    stream.unbroken(0.5)
    assert host.run("docker", "run", "--rm", "--net", NETWORK, "busybox", "true").returncode == 0


def test_etcd_is_away_at_the_start(hosts, pair):
    """Enabled within Docker's nine seconds, and calls say why nothing works; all is well once etcd is back."""
    host = hosts["host2"]
    host.run("docker", "plugin", "disable", "-f", ALIAS)
    hosts.etcd.stop()
    before = plugins.starts(host)
    began = time.monotonic()
    host.run("docker", "plugin", "enable", ALIAS, seconds=60)
    took = time.monotonic() - began
    answer = host.run(*CREATE, "cal_never", check=False, seconds=60)
    hosts.etcd.start()
    assert took < 15, f"it took {took:.1f} s"
    assert answer.returncode == 1 and ("etcd" in answer.stdout or "datastore" in answer.stdout), answer.stdout
    plugins.wait_started(host, before + 1)
    wait_established(hosts, 60)
    assert host.run("docker", "run", "--rm", "--net", NETWORK, "busybox", "true").returncode == 0


def test_restart_of_dockerd(hosts, pair):
    """The containers with a restart policy are back on their network, though Docker knew no `calico` when it began."""
    one, other = pair
    machine, docker = hosts["host1"], hosts.docker("host1")
    before = plugins.starts(machine)
    docker.restart()
    plugins.wait_started(machine, before + 1)
    running = ("docker", "ps", "--filter", f"name={one.name}", "--format", "{{.Status}}")
    wait_for(f"{one.name} to run", lambda: machine.run(*running).stdout.startswith("Up"), 30, 0.5)
    wait_established(hosts, 60)
    wait_for("a ping across", lambda: one.pings(other.address()), 20, 0.5)


@pytest.mark.long
def test_upgrade(hosts, pair):
    """To another version: settings stay, traffic goes on."""
    one, other = pair
    host, newer = hosts["host1"], f"{plugin_name(hosts)}:newer"
    plugins.publish(host, newer)
    before = plugins.starts(host)
    with Stream(one, other) as stream:
        host.run("docker", "plugin", "disable", "-f", ALIAS)
        host.run("docker", "plugin", "upgrade", "--skip-remote-check", "--grant-all-permissions", ALIAS, newer,
                 seconds=120)
        host.run("docker", "plugin", "enable", ALIAS, seconds=60)
        plugins.wait_started(host, before + 1)
        wait_established(hosts)
    stream.unbroken(0.5)
    # Kept on the host, not in the plugin's own files, which are new.
    assert "determined from the file /host/var/lib/calico/nodename" in plugins.log(host)
    environment = json.loads(host.run("docker", "plugin", "inspect", "-f", "{{json .Settings.Env}}", ALIAS).stdout)
    assert f"ETCD_ENDPOINTS={hosts.spec.etcd_url}" in environment


def test_removal(hosts, pair):
    """Networks removed, the plugin goes without -f; `node reset` makes the host bare."""
    for one in pair:
        one.remove()
    wait_for("nothing left", lambda: leaks.none(hosts), 20, 0.5)
    hosts["host1"].run("docker", "network", "rm", NETWORK)
    for host in hosts.hosts:
        wait_for("no network", lambda: networks(hosts, host) == [], 15)
        wait_for("the plugin not to be in use", lambda: hosts[host].run(
            "docker", "plugin", "disable", ALIAS, check=False).returncode == 0, 5)
        hosts[host].run("docker", "plugin", "rm", ALIAS)
        assert hosts[host].shell("ls -A /run/docker/plugins") == ""
    hosts.node("host2").ctl("node", "reset")
    assert hosts["host2"].shell("nft list tables inet; ls -A /var/lib/calico; ip -o link | grep cali || true") == ""
