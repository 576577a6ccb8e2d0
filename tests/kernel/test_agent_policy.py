"""Policy by the running agent: host endpoints by address, what it cannot understand, endpoints in the dark."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Iterator

import pytest
from msgspec.structs import replace

from calico_plugin.datastore.etcd import EtcdKV
from calico_plugin.deadline import Deadline
from calico_plugin.model import keys, names
from calico_plugin.model.resources import FelixConfiguration, HostEndpoint, Metadata, Profile
from calico_plugin.model.resources.endpoint import HostEndpointSpec
from calico_plugin.model.resources.policy import ProfileSpec
from calico_plugin.observe.log import BUG_MARKER
from calico_plugin.observe.problems import POLICY, Problems
from tests.kernel.agent_host import NODE, AgentHost, wait_until
from tests.kernel.packets import in_namespace
from tests.kernel.test_agent_cutting import ADDRESS_A, ADDRESS_B, A, B, Pair

pytestmark = pytest.mark.root


@pytest.fixture
def host(tmp_path: Path, etcd: str, kv: EtcdKV) -> Iterator[AgentHost]:
    with AgentHost(tmp_path, etcd, kv) as one:
        one.endpoint_of_etcd = etcd  # type: ignore[attr-defined]
        one.open_profile()
        one.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        yield one
        assert BUG_MARKER not in one.text(), one.text()


@pytest.fixture
def pair(host: AgentHost) -> Iterator[Pair]:
    made = Pair(host.started())
    yield made
    made.close()


def governed(host: AgentHost) -> set[str]:
    """Interfaces whose incoming packets a host endpoint judges."""
    listing = json.loads(host.run("nft", "-j", "list", "table", "inet", "calico"))["nftables"]
    maps = [entry["map"] for entry in listing if "map" in entry and entry["map"]["name"] == "host-in"]
    return {element[0] for one in maps for element in one.get("elem", ())}


def status(host: AgentHost, name: str) -> str:
    item = host.kv.get(keys.host_endpoint_status(NODE, name), Deadline(5))
    return json.loads(item.value)["status"] if item else ""


REPORTING = FelixConfiguration(metadata=Metadata(name="default"), spec={
    "endpointReportingEnabled": True, "reportingInterval": "0s"})


def link(host: AgentHost, name: str) -> None:
    host.ip("link", "add", name, "type", "veth", "peer", f"{name}-far")
    for one in (name, f"{name}-far"):
        host.ip("link", "set", one, "up")


def test_host_endpoint_of_an_interface_that_is_not_there(host: AgentHost) -> None:
    """It is in error and named, and governs the interface from the moment when it comes; `down` while it is down."""
    host.put(REPORTING)
    host.put(HostEndpoint(metadata=Metadata(name="uplink"), spec=HostEndpointSpec(node=NODE, interface_name="wan")))
    host.started()
    wait_until("the status", lambda: status(host, "uplink") == "error")
    assert "spec.interfaceName = 'wan': this host has no such interface" in Problems(host.run_dir).read()[POLICY][0]
    assert governed(host) == {"wan"}
    link(host, "wan")
    wait_until("the status", lambda: status(host, "uplink") == "up")
    assert Problems(host.run_dir).read() == {}
    host.ip("link", "set", "wan", "down")
    wait_until("the status", lambda: status(host, "uplink") == "down")
    host.ip("link", "del", "wan")
    wait_until("the status", lambda: status(host, "uplink") == "error")
    assert governed(host) == {"wan"}


def test_host_endpoint_governs_the_interface_that_has_its_address(host: AgentHost) -> None:
    """From the first pass after a start; it follows the address, and is in error while nobody has it."""
    for name in ("one", "two"):
        link(host, name)
    host.put(REPORTING)
    host.put(HostEndpoint(metadata=Metadata(name="uplink"), spec=HostEndpointSpec(
        node=NODE, expected_ips=("192.0.2.1", "2001:db8::1"))))
    host.ip("addr", "add", "192.0.2.1/24", "dev", "one")
    host.started()
    assert governed(host) == {"one"}
    wait_until("the status", lambda: status(host, "uplink") == "up")
    host.ip("addr", "del", "192.0.2.1/24", "dev", "one")
    wait_until("the error", lambda: governed(host) == set())
    wait_until("the status", lambda: status(host, "uplink") == "error")
    assert "governs no interface" in Problems(host.run_dir).read()[POLICY][0]
    host.ip("addr", "add", "2001:db8::1/64", "dev", "two", "nodad")
    wait_until("the other interface", lambda: governed(host) == {"two"})
    wait_until("the status", lambda: status(host, "uplink") == "up")
    assert Problems(host.run_dir).read() == {}


def reaches(pair: Pair, port: int) -> bool:
    """Whether a TCP connection from A to B is made."""
    listener = in_namespace(pair.netns[B], socket.socket)
    with listener, in_namespace(pair.netns[A], socket.socket) as near:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((ADDRESS_B, port))
        listener.listen()
        near.settimeout(0.4)
        return near.connect_ex((ADDRESS_B, port)) == 0


def policy_problems(host: AgentHost) -> tuple[int, str]:
    words = [sys.executable, "-m", "calico_plugin", "policy", "problems"]
    environ = {**os.environ, "ETCD_ENDPOINTS": host.endpoint_of_etcd}  # type: ignore[attr-defined]
    done = subprocess.run(words, env=environ, capture_output=True, text=True)
    return done.returncode, done.stdout


BROKEN: dict[str, dict[str, Any]] = {
    "globalnetworkpolicies": {"selector": "all() &&", "ingress": [{"action": "Allow"}]},
    "profiles": {"ingress": [{"action": "Allow", "source": {"selector": "has("}}], "egress": [{"action": "Allow"}]},
    "tiers": {"order": "soon"},
}
KINDS = {"globalnetworkpolicies": "GlobalNetworkPolicy", "profiles": "Profile", "tiers": "Tier"}


@pytest.mark.parametrize(("plural", "name"), [
    ("globalnetworkpolicies", "bad"), pytest.param("profiles", "net", marks=pytest.mark.long),
    pytest.param("tiers", "sec", marks=pytest.mark.long)])
def test_what_is_not_understood_closes_and_is_named(pair: Pair, plural: str, name: str) -> None:
    """In the log, in a metric, in a file and by calicoctl; also when the agent was away. All opens when it is right."""
    host = pair.host
    good = {"apiVersion": "projectcalico.org/v3", "kind": "GlobalNetworkPolicy", "metadata": {"name": "in-sec"},
            "spec": {"tier": "sec", "selector": "all()", "types": ["Ingress"], "ingress": [{"action": "Pass"}]}}
    if plural == "tiers":
        host.kv.put(keys.resource("GlobalNetworkPolicy", "in-sec"), json.dumps(good).encode(), Deadline(5))
        # Its tier has no object yet: it ends in Deny, and a Pass leads on.
    assert wait_until("the open network", lambda: reaches(pair, 7000))
    key = keys.resource(KINDS[plural], name)
    document = {"apiVersion": "projectcalico.org/v3", "kind": KINDS[plural], "metadata": {"name": name},
                "spec": BROKEN[plural]}
    host.kv.put(key, json.dumps(document).encode(), Deadline(5))
    wait_until("the closed network", lambda: not reaches(pair, 7001))
    resource = f"{KINDS[plural]}({name})"
    told = Problems(host.run_dir).read()[POLICY]
    assert any(resource in sentence and "fails closed" in sentence for sentence in told), told
    assert resource in host.text()
    metrics = host.run("curl", "-s", "http://127.0.0.1:9091/metrics")
    assert f'calico_policy_problem{{resource="{resource}"}} 1.0' in metrics
    code, text = policy_problems(host)
    assert code == 1 and resource in text
    host.kill()
    assert not reaches(pair, 7002)
    host.started()
    assert not reaches(pair, 7003)
    host.kv.delete(key, Deadline(5))
    if plural == "profiles":
        host.open_profile()
    wait_until("the open network", lambda: reaches(pair, 7004))
    assert policy_problems(host)[0] == 0 and POLICY not in Problems(host.run_dir).read()


@pytest.mark.long
def test_agent_that_is_away_opens_nothing(pair: Pair) -> None:
    """Known containers stay under their last policy, new ones have no packet; changes apply when it is back."""
    host = pair.host
    assert reaches(pair, 7000)
    host.kill()
    assert reaches(pair, 7001)
    host.put(Profile(metadata=Metadata(name="net"), spec=ProfileSpec()))
    late = "c" * 64
    host.put(host.endpoint(late, "10.65.0.3", profiles=()))
    host.add_link(late)
    assert names.host_interface(late) not in host.run("nft", "list", "map", "inet", "calico", "from-workload")
    host.started()
    assert not reaches(pair, 7002)


def test_endpoint_that_waits_for_its_labels_is_dark(pair: Pair) -> None:
    """Marked by the driver, it has neither policy nor status file, here and on other hosts; without the mark it has."""
    host = pair.host
    marked = host.endpoint(B, ADDRESS_B)
    metadata = replace(marked.metadata, annotations={names.LABELS_AWAITED: "true"})
    # The agent has no Docker to ask, and would only take the mark away where labels are not wanted.
    host.kill()
    host.settings["CALICO_LIBNETWORK_LABEL_ENDPOINTS"] = "true"
    host.put(replace(marked, metadata=metadata))
    host.started()
    assert not host.status_path(B).exists() and host.status_path(A).exists()
    assert not reaches(pair, 7000)
    assert ADDRESS_B not in host.run("nft", "list", "set", "inet", "calico", "own-address4")
    wait_until("the sentence", lambda: "labels" in Problems(host.run_dir).read(), 10)
    host.put(marked)
    wait_until("the endpoint", lambda: host.status_path(B).exists())
    assert reaches(pair, 7001) and ADDRESS_A != ADDRESS_B
    wait_until("no sentence", lambda: "labels" not in Problems(host.run_dir).read(), 10)
