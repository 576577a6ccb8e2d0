"""What rules tell of packets: the real agent's rules, the kernel's nflog, `calicoctl policy log`, and counters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any, Iterator

import pytest

from calico_plugin.dataplane.nflog import Listener
from calico_plugin.datastore.etcd import EtcdKV
from calico_plugin.model.names import NFLOG_GROUP
from calico_plugin.model.resources import FelixConfiguration, GlobalNetworkPolicy, Metadata, Rule
from calico_plugin.model.resources.policy import PolicySpec
from calico_plugin.observe.log import BUG_MARKER
from tests.kernel.agent_host import NODE, AgentHost, wait_until
from tests.kernel.packets import in_namespace
from tests.kernel.test_agent import container, pings

pytestmark = pytest.mark.root

A, B = "a" * 64, "b" * 64
CTL = (sys.executable, "-m", "calico_plugin.cli.main")


@pytest.fixture
def host(tmp_path: Path, etcd: str, kv: EtcdKV) -> Iterator[AgentHost]:
    """Two containers, A and B, that may ping each other."""
    with AgentHost(tmp_path, etcd, kv) as one:
        one.open_profile()
        one.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        one.started()
        made = []
        for endpoint, address in ((A, "10.65.0.1"), (B, "10.65.0.2")):
            one.up(endpoint, address)
            made.append(container(one, endpoint, address))
        yield one
        for name in made:
            subprocess.run(["ip", "netns", "del", name], check=True)
        assert BUG_MARKER not in one.text(), one.text()


def environ() -> dict[str, str]:
    return {**os.environ, "ETCD_ENDPOINTS": "http://127.0.0.1:2379", "NODENAME": NODE,
            "DOCKER_HOST": "unix:///nonexistent/docker.sock"}


def doors(host: AgentHost) -> int:
    """How many follow: the first makes the door and everyone else comes in by it."""
    return host.run("cat", "/proc/net/unix").count("@calico-policy-log-")


class Follower:
    """`calicoctl policy log --follow -o json` on the host."""

    def __init__(self, host: AgentHost) -> None:
        before = doors(host)
        self._file = host.base / f"packets-{before}.json"
        words = host.command(*CTL, "policy", "log", "--follow", "-o", "json")
        with self._file.open("wb") as file:
            self._process = subprocess.Popen(words, stdout=file, env={**environ(), "PYTHONUNBUFFERED": "1"})
        wait_until("the follower", lambda: doors(host) > before, 20)

    def packets(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._file.read_text().splitlines() if line.endswith("}")]

    def __enter__(self) -> Follower:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(10)


def test_log_rule_is_told_with_its_name(host: AgentHost) -> None:
    """A packet that meets a Log rule shows with tier, policy and number; others do not."""
    rules = (Rule(action="Log", protocol="ICMP"), Rule(action="Allow"))
    spec = PolicySpec(selector="all()", types=("Ingress",), ingress=rules)
    host.put(GlobalNetworkPolicy(metadata=Metadata(name="watched"), spec=spec))
    wait_until("the policy", lambda: "pi-gnp/watched" in host.table(), 5)
    assert "limit rate 50/second burst 20 packets log prefix" in host.table()
    with Follower(host) as follower:
        assert pings(f"{host.netns}a", "10.65.0.2")
        found = wait_until("the packet", follower.packets, 10)
    assert [(one["what"], one["direction"], one["tier"], one["kind"], one["name"], one["rule"]) for one in found] == [
        ("log", "ingress", "default", "GlobalNetworkPolicy", "watched", 0)]
    assert (found[0]["source"], found[0]["destination"], found[0]["protocol"]) == (
        "10.65.0.1", "10.65.0.2", "icmp type 8")
    done = subprocess.run(host.command(*CTL, "policy", "list", "--for", A[:8], "--counters", "-o", "json"),
                          capture_output=True, env=environ())
    assert done.returncode == 0, done.stderr
    counted = [(one["name"], one["packets"]) for one in json.loads(done.stdout)["ingress"] if one["name"] == "watched"]
    assert counted == [("watched", 1), ("watched", 1)]


def test_flow_log_names_who_denied(host: AgentHost) -> None:
    """FelixConfiguration turns it on for every rule, while the agent runs; the end of a tier has a name, too."""
    host.put(FelixConfiguration(metadata=Metadata(name="default"), spec={"flowLogsLocalReporter": "Enabled"}))
    spec = PolicySpec(selector="all()", types=("Ingress",))
    host.put(GlobalNetworkPolicy(metadata=Metadata(name="closed"), spec=spec))
    wait_until("the flow log", lambda: "ingress deny default|GlobalNetworkPolicy|closed|end of tier" in host.table(), 5)
    with Follower(host) as follower:
        assert not pings(f"{host.netns}a", "10.65.0.2")
        found = wait_until("both ends", lambda: len(follower.packets()) > 1 and follower.packets(), 10)
    assert isinstance(found, list)
    assert [(one["direction"], one["what"]) for one in found[:2]] == [("egress", "allow"), ("ingress", "deny")]
    assert found[0]["kind"] == "Profile" and "end of tier" in found[1]["reason"]


def test_several_follow_at_once(host: AgentHost) -> None:
    """Each is told all; when the one ends that has the kernel's ear, another takes its place."""
    spec = PolicySpec(selector="all()", types=("Ingress",), ingress=(Rule(action="Log"), Rule(action="Allow")))
    host.put(GlobalNetworkPolicy(metadata=Metadata(name="watched"), spec=spec))
    wait_until("the policy", lambda: "pi-gnp/watched" in host.table(), 5)
    first = Follower(host)
    with Follower(host) as second, Follower(host) as third:
        assert pings(f"{host.netns}a", "10.65.0.2")
        for one in (first, second, third):
            wait_until("the packet", one.packets, 10)
        first.__exit__()
        # One has the kernel's ear, and the other has come in by its door: who comes later is not told of before.
        wait_until("a new ear", lambda: host.run("cat", "/proc/net/netfilter/nfnetlink_log").strip(), 10)
        wait_until("the other", lambda: doors(host) == 2, 10)
        assert pings(f"{host.netns}a", "10.65.0.2")
        for one in (second, third):
            wait_until("the second packet", lambda: len(one.packets()) == 2, 10)


def test_stranger_that_listens_is_told_of(host: AgentHost) -> None:
    """The kernel has one listener for a group, and another program does not share."""
    stranger = in_namespace(host.netns, lambda: Listener(NFLOG_GROUP))
    with closing(stranger):
        words = host.command(*CTL, "policy", "log", "--follow")
        done = subprocess.run(words, capture_output=True, text=True, env=environ(), timeout=20)
    assert done.returncode == 1 and "another program listens" in done.stderr


def test_what_is_not_understood_is_named(host: AgentHost) -> None:
    """In the log, in a metric, in a file for `node status`, by calicoctl; while it is there only."""
    bad = GlobalNetworkPolicy(metadata=Metadata(name="bad"), spec=PolicySpec(selector="role = 'db'"))
    host.put(bad)
    file = host.run_dir / "problems" / "policy.json"
    wait_until("the problem", file.exists, 5)
    assert "GlobalNetworkPolicy(bad): spec.selector" in json.loads(file.read_text())[0]
    assert "a resource does not hold as written" in host.text()
    assert 'calico_policy_problem{resource="GlobalNetworkPolicy(bad)"} 1.0' in metrics(host)
    done = subprocess.run(host.command(*CTL, "policy", "problems"), capture_output=True, text=True, env=environ())
    assert done.returncode == 1 and "GlobalNetworkPolicy(bad): spec.selector" in done.stdout
    host.remove(bad)
    wait_until("its end", lambda: not file.exists(), 5)
    assert "calico_policy_problem{" not in metrics(host) and "calico_policy_not_understood 0.0" in metrics(host)


def metrics(host: AgentHost) -> str:
    """The agent's page."""
    ask = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9091/metrics', timeout=5).read().decode())"
    return host.run(sys.executable, "-c", ask)
