"""DNS queries on the wire: a real agent, a container's network namespace, and a real DNS server behind the host.

The server knows `up.test` and, wrongly, `shadow`; its log tells what has reached it.
"""

from __future__ import annotations

import itertools
import json
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator

import dns.message
import dns.query
import dns.rcode
import dns.rdatatype
import dns.reversename
import pytest

from calico_plugin.datastore.etcd import EtcdKV
from calico_plugin.deadline import Deadline
from calico_plugin.model import codec, keys, names
from calico_plugin.model.docker import EndpointNames
from calico_plugin.model.resources import Metadata, Profile, Rule, WorkloadEndpoint
from calico_plugin.model.resources.policy import ProfileSpec
from tests.kernel.agent_host import AgentHost, wait_until
from tests.kernel.packets import in_namespace

pytestmark = pytest.mark.root
HERE, OTHER = "aaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbb"
ADDRESS, ADDRESS6 = "10.65.0.2", "fd65::2"
FAR = ("10.65.9.1", "fd65::9")
SERVER, SERVER6, NOWHERE = "172.31.9.2", "fd31::2", "203.0.113.53"
HOST, HOST6 = "172.31.9.1", "fd31::1"
SERVER_SCRIPT = Path(__file__).parents[1] / "dns_server.py"


@dataclass(frozen=True)
class Answer:
    """What a query brought: a response code's name (`timeout` for none) and the data."""

    code: str
    data: tuple[str, ...] = ()


class Net:
    """The agent's host with one container, and the world behind it with a DNS server."""

    def __init__(self, host: AgentHost, server_log: Path) -> None:
        self.host, self._log = host, server_log
        self.container, self.world = f"{host.netns}c", f"{host.netns}w"
        self._ports = itertools.count(30000)

    def build(self) -> None:
        for name in (self.container, self.world):
            subprocess.run(["ip", "netns", "add", name], check=True)
        self.host.ip("link", "add", "uplink", "type", "veth", "peer", "eth0", "netns", self.world)
        self.shell(self.host.netns, f"ip addr add {HOST}/24 dev uplink; ip -6 addr add {HOST6}/64 dev uplink nodad; "
                                    "ip link set uplink up; ip route add default via " + SERVER)
        self.shell(self.world, f"ip link set lo up; ip link set eth0 up; ip addr add {SERVER}/24 dev eth0; "
                               f"ip -6 addr add {SERVER6}/64 dev eth0 nodad; ip route add {ADDRESS} via {HOST}; "
                               f"ip -6 route add {ADDRESS6} via {HOST6}")

    def shell(self, namespace: str, script: str) -> None:
        subprocess.run(["nsenter", f"--net=/run/netns/{namespace}", "sh", "-ec", script], check=True)

    def plug(self) -> None:
        """The container's end of its link, as Docker would set it up."""
        far = names.temporary_interface(HERE)
        self.host.ip("link", "set", far, "netns", self.container)
        (link,) = json.loads(self.host.ip("-j", "link", "show", names.host_interface(HERE)))
        gateway = link["address"]
        self.shell(self.container, f"ip link set lo up; ip link set {far} up; ip addr add {ADDRESS}/32 dev {far}; "
                                   f"ip route add 169.254.1.1 dev {far}; ip route add default via 169.254.1.1; "
                                   f"ip -6 addr add {ADDRESS6}/128 dev {far} nodad; ip -6 route add fe80::1 dev {far}; "
                                   f"ip -6 route add default via fe80::1 dev {far}; "
                                   f"ip neigh replace fe80::1 lladdr {gateway} dev {far}")

    def ask(self, name: str, kind: str = "A", server: str = SERVER, *, port: int | None = None, seconds: float = 2.0,
            namespace: str = "") -> Answer:
        """One query by UDP, from the container if not said otherwise; each from a port of its own."""
        query = dns.message.make_query(name, kind)
        source = port or next(self._ports)

        def exchange() -> Answer:
            try:
                response = dns.query.udp(query, server, timeout=seconds, source_port=source)
            except (dns.exception.Timeout, OSError):
                return Answer("timeout")
            return Answer(dns.rcode.to_text(response.rcode()), tuple(
                sorted(str(one) for part in response.answer for one in part)))

        return in_namespace(namespace or self.container, exchange)

    def heard(self) -> list[str]:
        """Names that the server was asked for."""
        return [line.split()[1].rstrip(".") for line in self._log.read_text().splitlines()[1:]]

    def call(self, node: str, endpoint: str, network: str, *called: str) -> None:
        """The record of an endpoint's names."""
        record = EndpointNames(container=f"container of {endpoint}", network=network, names=called)
        self.host.kv.put(keys.endpoint_names(node, endpoint), codec.encode(record), Deadline(5))

    def remove(self) -> None:
        for name in (self.container, self.world):
            subprocess.run(["ip", "netns", "del", name], check=True)


def far_endpoint(host: AgentHost, node: str, endpoint: str, *addresses: str) -> WorkloadEndpoint:
    made = AgentHost(host.base, "", host.kv, host.netns, node).endpoint(endpoint, *addresses)
    host.put(made)
    return made


@pytest.fixture(scope="module")
def _net(tmp_path_factory: pytest.TempPathFactory, etcd_endpoint: str, _session_kv: EtcdKV) -> Iterator[Net]:
    """One for all tests of this file."""
    _session_kv.delete_prefix("", Deadline(10))
    base = tmp_path_factory.mktemp("names")
    log = base / "server.log"
    with AgentHost(base, etcd_endpoint, _session_kv) as host:
        made = Net(host, log)
        made.build()
        processes = []
        try:
            for address, path in ((SERVER, log), (SERVER6, base / "server6.log")):
                words = ["nsenter", f"--net=/run/netns/{made.world}", sys.executable, str(SERVER_SCRIPT), address]
                with path.open("wb") as output:
                    processes.append(subprocess.Popen([*words, "up.test=192.0.2.7", "shadow=192.0.2.8"], stdout=output))
            wait_until("the servers", lambda: "ready" in log.read_text() and "ready" in path.read_text(), 20, 0.05)
            host.open_profile()
            host.started()
            host.up(HERE, ADDRESS, ADDRESS6)
            made.plug()
            for server in (SERVER, SERVER6):
                wait_until("a way out", lambda: made.ask("up.test", server=server, seconds=0.3).code == "NOERROR")
            yield made
            assert "Traceback" not in host.text()
        finally:
            for process in processes:
                process.kill()
                process.wait()
            host.kill()
            made.remove()


@pytest.fixture
def net(_net: Net) -> Net:
    """The container `one` of net1 here; `web`, alias `www`, of net1 and `db` of net2 on another host."""
    host = _net.host
    _net.call(host.node, HERE, "net1", "one")
    _net.call("host-2", OTHER, "net1", "web", "www")
    far_endpoint(host, "host-2", OTHER, *FAR)
    _net.call("host-2", "c" * 16, "net2", "db", "shadow")
    far_endpoint(host, "host-2", "c" * 16, "10.65.9.2")
    host.kv.delete_prefix(keys.names_of_node("host-3"), Deadline(5))
    host.open_profile()
    if host.agent is None:
        host.started()
    wait_until("the open profile", lambda: _net.ask("up.test", seconds=0.3).code == "NOERROR")
    wait_until("names", lambda: _net.ask("web", seconds=0.3) == Answer("NOERROR", FAR[:1]))
    return _net


def test_names_are_answered_and_others_go_on(net: Net) -> None:
    """Name, alias, with the network, reversed, IPv6; by any server, reachable or not. The server hears of none."""
    before = len(net.heard())
    four, six = Answer("NOERROR", FAR[:1]), Answer("NOERROR", FAR[1:])
    for name in ("web", "www", "web.net1", "WEB", "www.Net1"):
        assert net.ask(name) == four, name
        assert net.ask(name, "AAAA") == six, name
    for server in (NOWHERE, SERVER6, HOST):
        assert net.ask("web", server=server) == four, server
    for address in FAR:
        assert net.ask(str(dns.reversename.from_address(address)), "PTR") == Answer("NOERROR", ("web.net1.",))
    assert net.ask("web", "MX") == Answer("NOERROR")
    assert net.heard()[before:] == []
    assert net.ask("up.test") == net.ask("up.test", server=SERVER6) == Answer("NOERROR", ("192.0.2.7",))
    for name in ("nobody", "web.net2", "website", "web.up.test", "web.test"):
        assert net.ask(name) == Answer("NXDOMAIN"), name
    assert net.heard()[before:] == ["up.test", "nobody", "web.net2", "website", "web.up.test", "web.test"]


def test_names_of_other_networks_are_nobodys(net: Net) -> None:
    """They go to the server like any other: what it says counts."""
    assert net.ask("db") == net.ask("db.net2") == Answer("NXDOMAIN")
    assert net.ask("shadow") == Answer("NOERROR", ("192.0.2.8",))


def test_what_changes_counts_at_once(net: Net) -> None:
    """Renamed, gone with its endpoint, back with other addresses, one more of the same alias."""
    net.call("host-2", OTHER, "net1", "shop", "www")
    wait_until("the new name", lambda: net.ask("shop") == Answer("NOERROR", FAR[:1]))
    assert net.ask("web") == Answer("NXDOMAIN")
    far_endpoint(net.host, "host-3", "d" * 16, "10.65.9.3")
    net.call("host-3", "d" * 16, "net1", "other", "www")
    wait_until("both", lambda: net.ask("www") == Answer("NOERROR", (FAR[0], "10.65.9.3")))
    net.host.remove(far_endpoint(net.host, "host-2", OTHER, *FAR))
    wait_until("one of them", lambda: net.ask("www") == Answer("NOERROR", ("10.65.9.3",)))
    assert net.ask("shop") == Answer("NXDOMAIN")
    far_endpoint(net.host, "host-2", OTHER, "10.65.9.9")
    wait_until("the new address", lambda: net.ask("shop") == Answer("NOERROR", ("10.65.9.9",)))


def test_values_that_do_not_parse(net: Net) -> None:
    """They count as absent, and do not keep others out."""
    strange = far_endpoint(net.host, "host-3", "d" * 16, "10.65.9.3")
    key = keys.resource(strange.kind, strange.name, strange.namespace)
    net.call("host-3", "d" * 16, "net1", "odd")
    wait_until("the name", lambda: net.ask("odd") == Answer("NOERROR", ("10.65.9.3",)))
    for value in (codec.encode(strange).replace(b"10.65.9.3", b"10.65.9"), b"{", b'{"spec": 7}'):
        net.host.kv.put(key, value, Deadline(5))
        wait_until("no such name", lambda: net.ask("odd") == Answer("NXDOMAIN"))
        far_endpoint(net.host, "host-3", "d" * 16, "10.65.9.3")
        wait_until("the name again", lambda: net.ask("odd") == Answer("NOERROR", ("10.65.9.3",)))
    net.host.kv.put(keys.endpoint_names("host-3", "d" * 16), b"[]", Deadline(5))
    wait_until("no such name", lambda: net.ask("odd") == Answer("NXDOMAIN"))
    assert net.ask("web") == Answer("NOERROR", FAR[:1])


def test_policy(net: Net) -> None:
    """Who may not reach the server has names of containers, nothing else; and no way out is opened by asking."""
    closed = ProfileSpec(ingress=(Rule(action="Allow"),), egress=(Rule(action="Deny"),))
    net.host.put(Profile(metadata=Metadata(name="net"), spec=closed))
    wait_until("the profile", lambda: net.ask("up.test", seconds=0.3).code == "timeout")
    before = len(net.heard())
    assert net.ask("web", port=31000) == Answer("NOERROR", FAR[:1])
    assert net.ask("nobody", port=31000, seconds=0.5).code == "timeout"
    assert net.ask("web.nobody", port=31000, seconds=0.5).code == "timeout"
    assert net.heard()[before:] == []


def test_agent_ends(net: Net) -> None:
    """Killed: all queries go to the server as if nothing were there, without delay. One that is told to keep off takes
    away what the other left.
    """
    net.host.kill()
    assert net.ask("web", seconds=1) == Answer("NXDOMAIN") and net.ask("up.test", seconds=1).code == "NOERROR"
    assert names.NAME_TABLE in net.host.run("nft", "list", "tables")
    net.host.settings["CALICO_LIBNETWORK_DNS"] = "false"
    net.host.started()
    wait_until("the table to go", lambda: names.NAME_TABLE not in net.host.run("nft", "list", "tables"))
    assert net.ask("web") == Answer("NXDOMAIN")
    net.host.stop()
    del net.host.settings["CALICO_LIBNETWORK_DNS"]


def test_agent_hangs(net: Net) -> None:
    """What does not look like a name of ours does not wait for it."""
    assert net.host.agent is not None
    tasks = Path(f"/proc/{net.host.agent.pid}/task")
    net.host.agent.send_signal(signal.SIGSTOP)
    try:
        # The thread that takes the signal tells the others, once it has a processor.
        wait_until("all threads to stand still", lambda: all(
            (task / "stat").read_text().rpartition(")")[2].split()[0] == "T" for task in tasks.iterdir()))
        assert net.ask("up.test", seconds=1).code == "NOERROR" and net.ask("nobody", seconds=1) == Answer("NXDOMAIN")
        assert net.ask("web", seconds=0.3).code == "timeout"
    finally:
        net.host.agent.send_signal(signal.SIGCONT)
    wait_until("an answer", lambda: net.ask("web", seconds=0.3) == Answer("NOERROR", FAR[:1]))


def test_somebody_flushes_nftables(net: Net) -> None:
    """The table is back within the agent's next look."""
    net.host.run("nft", "delete", "table", "inet", names.NAME_TABLE)
    assert net.ask("web") == Answer("NXDOMAIN")
    wait_until("the table", lambda: net.ask("web") == Answer("NOERROR", FAR[:1]), 15, 0.2)


def test_this_host(net: Net) -> None:
    """Its own queries are answered where they go to a server on this host (as Docker's do, for a container), the name
    is elsewhere only, and somebody here is on its network.
    """
    ask = net.host.netns

    def host_asks(name: str, server: str) -> Answer:
        return net.ask(name, server=server, namespace=ask, seconds=0.2)

    for name in ("web", "www", "web.net1"):
        assert host_asks(name, "127.0.0.53") == Answer("NOERROR", FAR[:1])
    for name in ("one", "one.net1", "db", "db.net2"):
        assert host_asks(name, "127.0.0.53").code == "timeout"
    assert host_asks("web", SERVER) == Answer("NXDOMAIN")


def test_one_container_cannot_keep_the_agent_busy(net: Net) -> None:
    """Of a flood only so much is looked at; the rest passes, and the others' queries are looked at."""

    def flood() -> None:
        query = dns.message.make_query("web.nobody", "A").to_wire()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for _ in range(6000):
                sender.sendto(query, (NOWHERE, 53))

    in_namespace(net.container, flood)
    chain = net.host.run("cat", "/proc/net/netfilter/nfnetlink_queue").split()
    assert 0 < int(chain[7]) < 4000, chain
    assert net.ask("web", server="127.0.0.53", namespace=net.host.netns) == Answer("NOERROR", FAR[:1])
