"""A change of policy on open connections: those that it forbids are cut, the others go on; real agent, kernel, TCP."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path
from typing import Callable, Iterator

import pytest

from calico_plugin.datastore.etcd import EtcdKV
from calico_plugin.model.resources import GlobalNetworkPolicy, Metadata, Rule
from calico_plugin.model.resources.policy import EntityRule, PolicySpec
from calico_plugin.observe.log import BUG_MARKER
from tests.kernel.agent_host import AgentHost, wait_until
from tests.kernel.packets import in_namespace
from tests.kernel.test_agent import container

pytestmark = pytest.mark.root

A, B = "a" * 64, "b" * 64
ADDRESS_A, ADDRESS_B = "10.65.0.1", "10.65.0.2"


class Pair:
    """Two containers on one host with a running agent; each can open connections to the other."""

    def __init__(self, host: AgentHost) -> None:
        self.host = host
        self.netns: dict[str, str] = {}
        self.sockets: list[socket.socket] = []
        for endpoint, address in ((A, ADDRESS_A), (B, ADDRESS_B)):
            host.up(endpoint, address)
            self.netns[endpoint] = container(host, endpoint, address)

    def close(self) -> None:
        for one in self.sockets:
            one.close()
        for name in self.netns.values():
            subprocess.run(["ip", "netns", "del", name], check=True)

    def connect(self, port: int) -> Conversation:
        """A TCP connection from A to B."""
        listener = in_namespace(self.netns[B], socket.socket)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((ADDRESS_B, port))
        listener.listen()
        near = in_namespace(self.netns[A], socket.socket)
        near.settimeout(5)
        near.connect((ADDRESS_B, port))
        far, _ = listener.accept()
        self.sockets += [listener, near, far]
        return Conversation(near, far)

    def label(self, endpoint: str, address: str, **labels: str) -> None:
        self.host.put(self.host.endpoint(endpoint, address, **labels))

    def entries(self) -> int:
        """Connections between the two that the kernel knows."""
        listed = self.host.run("conntrack", "-L", "-p", "tcp", check=False)
        return listed.count(f"src={ADDRESS_A} dst={ADDRESS_B} sport")

    def cuts(self) -> int:
        return self.host.text().count("cut connections that policy forbids now")


class Conversation:
    """One open connection."""

    def __init__(self, near: socket.socket, far: socket.socket) -> None:
        self._near, self._far = near, far

    def goes_on(self, seconds: float = 0.6) -> bool:
        """Whether a byte gets through, both ways."""
        for sender, receiver in ((self._near, self._far), (self._far, self._near)):
            sender.send(b"x")
            receiver.settimeout(seconds)
            try:
                if receiver.recv(100)[-1:] != b"x":
                    return False
            except TimeoutError:
                return False
        return True


@pytest.fixture
def pair(tmp_path: Path, etcd: str, kv: EtcdKV) -> Iterator[Pair]:
    with AgentHost(tmp_path, etcd, kv) as host:
        host.open_profile()
        host.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        host.started()
        made = Pair(host)
        yield made
        made.close()
        assert BUG_MARKER not in host.text(), host.text()


def ingress(name: str, *rules: Rule, selector: str = "all()", order: float = 10) -> GlobalNetworkPolicy:
    spec = PolicySpec(selector=selector, order=order, types=("Ingress",), ingress=rules)
    return GlobalNetworkPolicy(metadata=Metadata(name=name), spec=spec)


def to_port(action: str, *ports: int) -> Rule:
    return Rule(action=action, protocol="TCP", destination=EntityRule(ports=ports))


def test_forbidden_connection_is_cut_and_allowed_one_goes_on(pair: Pair) -> None:
    """A new Deny ends the open connection to its port at once; the one beside it does not notice."""
    kept, doomed = pair.connect(7000), pair.connect(7001)
    assert kept.goes_on() and doomed.goes_on()
    pair.host.put(ingress("narrow", to_port("Allow", 7000)))
    wait_until("the cut", pair.cuts, 5)
    assert kept.goes_on()
    assert not doomed.goes_on()
    assert pair.entries() == 1


def test_changed_rule_of_a_policy_that_stays_cuts(pair: Pair) -> None:
    """The list of policies is the same, one of them is edited."""
    pair.host.put(ingress("ports", to_port("Allow", 7000, 7001)))
    wait_until("the policy", lambda: "pi-gnp/ports" in pair.host.table(), 5)
    kept, doomed = pair.connect(7000), pair.connect(7001)
    pair.host.put(ingress("ports", to_port("Allow", 7000)))
    wait_until("the cut", pair.cuts, 5)
    assert kept.goes_on() and not doomed.goes_on()


def test_changed_label_cuts(pair: Pair) -> None:
    """Only a member of a set changes: the peer loses the label that lets it in."""
    pair.label(A, ADDRESS_A, role="web")
    pair.host.put(ingress("web", Rule(action="Allow", source=EntityRule(selector="role == 'web'"))))
    wait_until("the policy", lambda: "pi-gnp/web" in pair.host.table() and ADDRESS_A in pair.host.table(), 5)
    opened = pair.connect(7000)
    assert opened.goes_on()
    pair.label(A, ADDRESS_A)
    wait_until("the cut", pair.cuts, 5)
    assert not opened.goes_on()


def test_change_while_the_agent_is_down_cuts_when_it_is_back(pair: Pair) -> None:
    """The first pass after a start judges what is open."""
    opened = pair.connect(7000)
    pair.host.kill()
    pair.host.put(ingress("none"))
    assert opened.goes_on()
    pair.host.started()
    wait_until("the cut", pair.cuts, 5)
    assert not opened.goes_on()


def test_opening_changes_look_at_nothing(pair: Pair) -> None:
    """A policy that only opens more, and a container that starts, cut nothing; the hosts' own connections stay."""
    pair.host.put(ingress("ports", to_port("Allow", 7000)))
    wait_until("the policy", lambda: "pi-gnp/ports" in pair.host.table(), 5)
    opened = pair.connect(7000)
    host = own_connection(pair, 7002)
    pair.host.put(ingress("ports", to_port("Allow", 7000, 7001)))
    pair.host.put(ingress("other", to_port("Deny", 7001), order=1))
    wait_until("the policies", lambda: "pi-gnp/other" in pair.host.table(), 5)
    assert opened.goes_on(1.0) and host() and pair.cuts() == 0


def own_connection(pair: Pair, port: int) -> Callable[[], bool]:
    """From the host itself to B, which its policy does not concern."""
    pair.host.ip("addr", "add", "172.30.0.1/32", "dev", "lo")
    listener = in_namespace(pair.netns[B], socket.socket)
    listener.bind((ADDRESS_B, port))
    listener.listen()
    near = in_namespace(pair.host.netns, socket.socket)
    near.bind(("172.30.0.1", 0))
    near.settimeout(5)
    near.connect((ADDRESS_B, port))
    far, _ = listener.accept()
    pair.sockets += [listener, near, far]
    return Conversation(near, far).goes_on
