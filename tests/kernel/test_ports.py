"""`docker run -p` on a real host: real driver, real agent, containers and a client outside, real connections."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import threading
import time
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from typing import Any, Iterator

import pytest

from calico_plugin.datastore.etcd import EtcdKV, connect
from calico_plugin.deadline import Deadline
from calico_plugin.model import codec, keys, names
from calico_plugin.model.docker import NetworkRecord
from calico_plugin.model.resources import GlobalNetworkPolicy, Metadata, Profile, Rule, WorkloadEndpoint
from calico_plugin.model.resources.policy import EntityRule, PolicySpec, ProfileSpec
from tests.kernel.agent_host import NODE, AgentHost, wait_until
from tests.kernel.driverlab import POOL, POOL6, Driver, create_endpoint, fill
from tests.kernel.packets import HOST, Packet, Router, in_namespace
from tests.kernel.policylab import Lab as Rules
from tests.kernel.policylab import host_endpoint, on_host
from tests.unit.policy.worlds import endpoint as written

pytestmark = pytest.mark.root

WEB, OTHER = "a" * 64, "b" * 64
HOST4, CLIENT4, HOST6, CLIENT6 = "172.31.7.1", "172.31.7.2", "fd31:7::1", "fd31:7::2"
TCP, UDP, SCTP = 6, 17, 132
SECONDS = 2.0


def mapping(port: int, host_port: int = 0, last: int = 0, protocol: int = TCP, host_ip: str = "") -> dict[str, Any]:
    """An entry of Docker's list of ports."""
    return {"Proto": protocol, "IP": "", "Port": port, "HostIP": host_ip,
            "HostPort": host_port, "HostPortEnd": last or host_port}


@dataclass
class Container:
    """A network namespace with the container's ends of its endpoints, and servers that tell who asks."""

    site: Site
    number: int
    endpoints: list[tuple[str, str]] = field(default_factory=list)
    stack: ExitStack = field(default_factory=ExitStack)

    @property
    def netns(self) -> str:
        return f"{self.site.host.netns}c{self.number}"

    def join(self, network: str, gateway: bool = True) -> str:
        """What Docker does for one network, up to Join; the endpoint's id."""
        endpoint = f"{self.number:02x}{len(self.endpoints):02x}{os.urandom(30).hex()}"
        four, six = (f"{start}{self.number}{len(self.endpoints)}" for start in ("10.77.1.", "fd77:77::"))
        driver = self.site.driver
        driver.ok("NetworkDriver.CreateEndpoint", **create_endpoint(network, endpoint, f"{four}/32", f"{six}/128"))
        answer = driver.ok("NetworkDriver.Join", NetworkID=network, EndpointID=endpoint,
                           SandboxKey=f"/var/run/docker/netns/{self.number:012d}", Options={})
        inside = names.temporary_interface(endpoint)
        self.site.host.ip("link", "set", inside, "netns", self.netns)
        lines = [f"link set {inside} up", f"addr add {four}/32 dev {inside}", f"addr add {six}/128 dev {inside} nodad"]
        for hop in (answer["Gateway"], answer["GatewayIPv6"]):
            lines.append(f"route add {hop} dev {inside}")
            lines += [f"route replace default via {hop} dev {inside}"] if gateway else []
        for line in lines:
            subprocess.run(["ip", "-n", self.netns, *line.split()], check=True)
        self.endpoints.append((network, endpoint))
        return endpoint

    def address(self, version: int = 4) -> str:
        return f"{'10.77.1.' if version == 4 else 'fd77:77::'}{self.number}0"

    def serve(self, port: int, protocol: int = TCP) -> None:
        """Answer each client with its own address."""
        server = in_namespace(self.netns, lambda: _server(port, protocol))
        self.stack.callback(server.close)
        threading.Thread(target=_tell_who_asks, args=(server, protocol), daemon=True).start()

    def publish(self, *ports: dict[str, Any], which: int = 0) -> tuple[int, Any]:
        network, endpoint = self.endpoints[which]
        return self.site.driver.call("NetworkDriver.ProgramExternalConnectivity", NetworkID=network,
                                     EndpointID=endpoint, Options={"com.docker.network.portmap": list(ports)})

    def published(self, *ports: dict[str, Any], which: int = 0) -> list[int]:
        """Publish; the host's ports."""
        status, answer = self.publish(*ports, which=which)
        assert status == 200, answer
        return [port.host_port for port in self.site.stored(self.endpoints[which][1]).spec.ports]

    def revoke(self, which: int = 0) -> None:
        network, endpoint = self.endpoints[which]
        self.site.driver.ok("NetworkDriver.RevokeExternalConnectivity", NetworkID=network, EndpointID=endpoint)

    def leave(self, which: int = 0) -> None:
        network, endpoint = self.endpoints[which]
        self.site.driver.ok("NetworkDriver.Leave", NetworkID=network, EndpointID=endpoint)

    def stop(self) -> None:
        self.stack.close()
        for network, endpoint in self.endpoints:
            for method in ("Leave", "DeleteEndpoint"):
                self.site.driver.ok(f"NetworkDriver.{method}", NetworkID=network, EndpointID=endpoint)
        self.endpoints.clear()


def _server(port: int, protocol: int) -> socket.socket:
    made = socket.socket(socket.AF_INET6, socket.SOCK_STREAM if protocol == TCP else socket.SOCK_DGRAM)
    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("::", port))
    if protocol == TCP:
        made.listen(16)
    return made


def _tell_who_asks(server: socket.socket, protocol: int) -> None:
    with suppress(OSError):
        while True:
            if protocol == TCP:
                one, peer = server.accept()
                with closing(one):
                    one.sendall(_plain(peer[0]).encode())
            else:
                _, peer = server.recvfrom(100)
                server.sendto(_plain(peer[0]).encode(), peer)


def _plain(address: str) -> str:
    return address.removeprefix("::ffff:")


def asks(netns: str, address: str, port: int, protocol: int = TCP, seconds: float = SECONDS) -> str:
    """What the server says, as who it sees the client; nothing when there is no connection."""
    return in_namespace(netns, lambda: _ask(address, port, protocol, seconds))


def is_shut(netns: str, address: str, port: int) -> bool:
    return not asks(netns, address, port, seconds=0.25)


def _ask(address: str, port: int, protocol: int, seconds: float) -> str:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM if protocol == TCP else socket.SOCK_DGRAM) as client:
        client.settimeout(seconds)
        try:
            client.connect((address, port))
            if protocol == UDP:
                client.send(b"who am I")
            return client.recv(100).decode()
        except OSError:
            return ""


@dataclass
class Site:
    """A host with driver and agent, a client outside on its link, and two Docker networks."""

    host: AgentHost
    driver: Driver
    kv: EtcdKV
    outside: str
    containers: list[Container] = field(default_factory=list)

    def container(self, network: str = WEB) -> Container:
        made = Container(self, len(self.containers) + 1)
        subprocess.run(["ip", "netns", "add", made.netns], check=True)
        self.containers.append(made)
        subprocess.run(["ip", "-n", made.netns, "link", "set", "lo", "up"], check=True)
        made.join(network)
        return made

    def stored(self, endpoint: str) -> WorkloadEndpoint:
        key = keys.resource("WorkloadEndpoint", names.workload_endpoint(NODE, endpoint), names.NAMESPACE)
        item = self.kv.get(key, Deadline(5))
        assert item is not None
        return codec.decode(WorkloadEndpoint, key, item.value)

    def is_free(self, port: int, family: int = socket.AF_INET) -> bool:
        """Whether a server of the host can have it."""
        def bind() -> bool:
            with socket.socket(family) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                try:
                    probe.bind(("", port))
                    probe.listen(1)
                    return True
                except OSError:
                    return False
        return in_namespace(self.host.netns, bind)

    def elements(self) -> str:
        return self.host.run("nft", "list", "maps", "inet")

    def clear(self) -> None:
        with ExitStack() as stack:
            for one in self.containers:
                stack.callback(subprocess.run, ["ip", "netns", "del", one.netns], check=True)
                stack.callback(one.stop)
            self.containers.clear()
        self.kv.delete_prefix(keys.kind_prefix("GlobalNetworkPolicy"), Deadline(5))


@pytest.fixture(scope="module")
def the_site(tmp_path_factory: pytest.TempPathFactory, etcd_endpoint: str) -> Iterator[Site]:
    base = tmp_path_factory.mktemp("ports")
    with ExitStack() as stack:
        kv = stack.enter_context(closing(connect([etcd_endpoint], source="the tests")))
        kv.delete_prefix("", Deadline(10))
        host = stack.enter_context(AgentHost(base, etcd_endpoint, kv))
        fill(kv, (NODE,))
        for network, name in ((WEB, "web"), (OTHER, "other")):
            record = NetworkRecord(network_id=network, name=name, profile=name, pools4=(POOL,), pools6=(POOL6,))
            kv.put(keys.network(network), codec.encode(record), Deadline(5))
            members = (Rule(action="Allow", source=EntityRule(selector=f"has({name})")),)
            host.put(Profile(metadata=Metadata(name=name), spec=ProfileSpec(
                labels_to_apply={name: ""}, ingress=members, egress=(Rule(action="Allow"),))))
        outside = f"{host.netns}out"
        subprocess.run(["ip", "netns", "add", outside], check=True)
        stack.callback(subprocess.run, ["ip", "netns", "del", outside], check=True)
        _connect_outside(host, outside)
        host.started()
        driver = Driver(host.netns, base, "http://127.0.0.1:2379", node=NODE)
        stack.callback(lambda: driver.process and driver.stop())
        driver.start()
        site = Site(host, driver, kv, outside)
        stack.callback(site.clear)
        yield site
        for log in (driver.log.read_text(), host.text()):
            assert "Traceback" not in log, log


def _connect_outside(host: AgentHost, outside: str) -> None:
    host.ip("link", "add", "eth0", "type", "veth", "peer", "eth0", "netns", outside)
    for netns, four, six in ((host.netns, HOST4, HOST6), (outside, CLIENT4, CLIENT6)):
        for line in (f"addr add {four}/24 dev eth0", f"addr add {six}/64 dev eth0 nodad", "link set eth0 up",
                     "link set lo up"):
            subprocess.run(["ip", "-n", netns, *line.split()], check=True)
    for line in (f"route add default via {HOST4}", f"-6 route add default via {HOST6}"):
        subprocess.run(["ip", "-n", outside, *line.split()], check=True)


@pytest.fixture
def site(the_site: Site) -> Iterator[Site]:
    yield the_site
    the_site.clear()
    wait_until("nothing published", lambda: "ports4" not in the_site.elements())


def test_reached_from_everywhere_with_the_client_s_address(site: Site) -> None:
    """From outside, the host, another container and itself, by IPv4 and IPv6; only what could not come back carries the
    host's address. In force when the driver answers.
    """
    web, other = site.container(), site.container(OTHER)
    web.serve(80)
    web.serve(53, UDP)
    assert web.published(mapping(80, 8080), mapping(53, 5353, protocol=UDP)) == [8080, 5353]
    for port, protocol in ((8080, TCP), (5353, UDP)):
        assert asks(site.outside, HOST4, port, protocol) == CLIENT4
        assert asks(site.outside, HOST6, port, protocol) == CLIENT6
        assert asks(other.netns, HOST4, port, protocol) == other.address()
        assert asks(other.netns, HOST6, port, protocol) == other.address(6)
        assert asks(site.host.netns, HOST4, port, protocol) == HOST4
        assert asks(site.host.netns, HOST6, port, protocol) == HOST6
        assert asks(web.netns, HOST4, port, protocol) == HOST4
        assert asks(web.netns, HOST6, port, protocol) == HOST6
        assert asks(site.host.netns, "127.0.0.1", port, protocol) == HOST4
    # ::1 leads nowhere, which a client hears at once.
    with pytest.raises(ConnectionRefusedError):
        in_namespace(site.host.netns, lambda: socket.create_connection(("::1", 8080), 5))
    # Members only, but for what was published: by its own address, and by a port that is not.
    assert is_shut(site.outside, web.address(), 80) and is_shut(other.netns, web.address(), 80)
    assert is_shut(site.outside, HOST4, 80)


def test_policy_sees_the_client_and_the_container_s_port(site: Site) -> None:
    """As soon as a policy selects the container it alone decides; open connections that it forbids are cut."""
    web = site.container()
    web.serve(80)
    web.published(mapping(80, 8080))
    assert asks(site.outside, HOST4, 8080) == CLIENT4

    def allow(net: str, port: int) -> None:
        source, to = EntityRule(nets=(net,)), EntityRule(ports=(port,))
        rule = Rule(action="Allow", protocol="TCP", source=source, destination=to)
        spec = PolicySpec(selector="has(web)", types=("Ingress",), ingress=(rule,))
        site.host.put(GlobalNetworkPolicy(metadata=Metadata(name="only"), spec=spec))

    allow("172.31.8.0/24", 80)
    wait_until("the policy", lambda: is_shut(site.outside, HOST4, 8080))
    allow(f"{CLIENT4}/32", 8080)
    assert is_shut(site.outside, HOST4, 8080)
    allow(f"{CLIENT4}/32", 80)
    wait_until("the client", lambda: asks(site.outside, HOST4, 8080) == CLIENT4)
    assert asks(site.host.netns, "127.0.0.1", 8080) == HOST4


def test_one_address_of_the_host_only(site: Site) -> None:
    """127.0.0.1 is the host's own: neither a neighbour nor a container comes to it, whatever it writes in a header."""
    web, other = site.container(), site.container(OTHER)
    web.serve(80)
    web.published(mapping(80, 8081, host_ip="127.0.0.1"), mapping(80, 8082, host_ip=HOST4))
    assert asks(site.host.netns, "127.0.0.1", 8081) == HOST4 and is_shut(site.host.netns, HOST4, 8081)
    assert asks(site.outside, HOST4, 8082) == CLIENT4 and is_shut(site.host.netns, "127.0.0.1", 8082)
    assert is_shut(site.outside, HOST4, 8081) and is_shut(site.outside, HOST6, 8082)
    # A client that routes loopback addresses to the host.
    with_loopback(site.outside, f"via {HOST4} dev eth0", lambda: is_shut(site.outside, "127.0.0.1", 8081))
    inside = names.temporary_interface(other.endpoints[0][1])
    with_loopback(other.netns, f"via 169.254.1.1 dev {inside}", lambda: is_shut(other.netns, "127.0.0.1", 8081))
    # Its own link has route_localnet: what listens on the host's loopback stays the host's.
    server = in_namespace(site.host.netns, lambda: socket.create_server(("127.0.0.1", 9999)))
    with closing(server):
        inside = names.temporary_interface(web.endpoints[0][1])
        with_loopback(web.netns, f"via 169.254.1.1 dev {inside}", lambda: is_shut(web.netns, "127.0.0.1", 9999))
        assert not select.select([server], [], [], 0)[0]


def with_loopback(netns: str, via: str, check: Any) -> None:
    """In a namespace where 127.0.0.0/8 leads out."""
    def run(*words: str) -> None:
        subprocess.run(["nsenter", f"--net=/run/netns/{netns}", *words], check=True, capture_output=True)
    run("sysctl", "-qw", "net.ipv4.conf.all.route_localnet=1")
    run("ip", "addr", "flush", "dev", "lo")
    run("ip", "route", "flush", "table", "local", "127.0.0.0/8")
    run("ip", "route", "add", "127.0.0.0/8", *via.split())
    assert check()


def test_taken_port_is_refused_and_leaves_nothing(site: Site) -> None:
    """By a process of the host, by another container, an address that is not the host's; then it starts elsewhere."""
    first, second = site.container(), site.container()
    server = in_namespace(site.host.netns, lambda: socket.create_server(("0.0.0.0", 8080)))
    with closing(server):
        status, answer = first.publish(mapping(80, 8079), mapping(80, 8080))
        assert status == 500 and "port 0.0.0.0:8080/tcp of this host is taken: a process of the host" in answer["Err"]
    assert site.stored(first.endpoints[0][1]).spec.ports == () and site.is_free(8079)
    assert first.published(mapping(80, 8080)) == [8080]
    status, answer = second.publish(mapping(80, 8080))
    who = f"container endpoint {first.endpoints[0][1][:12]} ({first.address()}, {first.address(6)}) publishes it"
    assert status == 500 and who in answer["Err"], answer
    status, answer = second.publish(mapping(80, 8095, host_ip="203.0.113.9"))
    assert status == 500 and "203.0.113.9" in answer["Err"] and "no address of this host" in answer["Err"]
    status, answer = second.publish(mapping(80, 8095, host_ip="::1"))
    assert status == 500 and "use 127.0.0.1" in answer["Err"]
    assert second.published(mapping(80, 8080, 8090), mapping(81, 8080, 8090)) == [8081, 8082]
    status, answer = site.container().publish(mapping(80, 8080, 8082))
    assert status == 500 and "8080-8082/tcp" in answer["Err"]
    for port in (8080, 8081):
        assert not site.is_free(port) and not site.is_free(port, family=socket.AF_INET6)
    first.stop()
    assert site.is_free(8080) and site.is_free(8080, family=socket.AF_INET6)


def test_port_that_ended_connections_still_hold(site: Site) -> None:
    """What a server of the host has just left (TIME_WAIT) keeps no container off."""
    web = site.container()
    server = in_namespace(site.host.netns, lambda: socket.create_server((HOST4, 8083)))
    client = in_namespace(site.outside, lambda: socket.create_connection((HOST4, 8083)))
    one, _ = server.accept()
    one.close()
    assert client.recv(1) == b""
    client.close()
    server.close()
    wait_until("TIME_WAIT", lambda: "8083" in site.host.run("ss", "-tan", "state", "time-wait"))
    web.serve(80)
    assert web.published(mapping(80, 8083)) == [8083] and asks(site.outside, HOST4, 8083) == CLIENT4
    assert not site.is_free(8083)


def test_any_port(site: Site) -> None:
    """Of the kernel's own range, the same in both IP versions, and none that is in use."""
    site.host.run("sysctl", "-qw", "net.ipv4.ip_local_port_range=40000 40009")
    try:
        web = site.container()
        taken = [in_namespace(site.host.netns, lambda port=port: socket.create_server(("0.0.0.0", port)))
                 for port in range(40000, 40004)]
        ports = web.published(*[mapping(80) for _ in range(6)])
        assert sorted(ports) == list(range(40004, 40010))
        status, answer = site.container().publish(mapping(80))
        assert status == 500 and "any/tcp" in answer["Err"]
        for one in taken:
            one.close()
        web.serve(80)
        assert {asks(site.outside, address, port) for address in (HOST4, HOST6) for port in ports} == {CLIENT4, CLIENT6}
        # Docker repeats a call whose answer it did not get.
        assert web.published(*[mapping(80) for _ in range(6)]) == ports
    finally:
        site.host.run("sysctl", "-qw", "net.ipv4.ip_local_port_range=32768 60999")


@pytest.mark.parametrize("how", ["kill", pytest.param("stop", marks=pytest.mark.long)])
def test_driver_restart_keeps_and_reserves_ports(site: Site, how: str) -> None:
    """Connections go on; the new process holds what the old one held, and knows who has it."""
    web, other = site.container(), site.container()
    web.serve(80)
    web.published(mapping(80, 8080), mapping(80, 8443, protocol=SCTP))
    site.driver.kill() if how == "kill" else site.driver.stop(signal.SIGTERM)
    assert asks(site.outside, HOST4, 8080) == CLIENT4
    wait_until("the end of the driver", lambda: site.is_free(8080))
    site.driver.start()
    for port, protocol in ((8080, TCP), (8443, SCTP)):
        status, answer = other.publish(mapping(80, port, protocol=protocol))
        assert status == 500 and web.endpoints[0][1][:12] in answer["Err"], answer
    assert not site.is_free(8080) and asks(site.outside, HOST4, 8080) == CLIENT4
    web.stop()
    assert site.is_free(8080) and other.published(mapping(80, 8080)) == [8080]


def test_agent_restart_keeps_ports(site: Site) -> None:
    """And takes away what went meanwhile: rules, file and the link's setting."""
    web, gone = site.container(), site.container()
    web.serve(80)
    for one, port in ((web, 8080), (gone, 8081)):
        one.published(mapping(80, port))
    link = names.host_interface(gone.endpoints[0][1])
    setting = f"net.ipv4.conf.{link}.route_localnet"
    assert site.host.run("sysctl", "-n", setting).strip() == "1"
    site.host.kill()
    assert asks(site.outside, HOST4, 8080) == CLIENT4
    gone.revoke()
    site.host.started()
    assert asks(site.outside, HOST4, 8080) == CLIENT4 and asks(site.host.netns, "127.0.0.1", 8080) == HOST4
    assert "8081" not in site.elements() and site.host.run("sysctl", "-n", setting).strip() == "0"
    files = sorted((site.host.run_dir / "published-ports").iterdir())
    assert [path.read_text() for path in files] == [
        f"0.0.0.0:8080/tcp -> {web.address()}:80\n[::]:8080/tcp -> [{web.address(6)}]:80\n"]


@pytest.mark.long
def test_without_agent_nothing_is_published(site: Site) -> None:
    """The call fails, says why, and leaves nothing."""
    web = site.container()
    site.host.kill()
    began = time.monotonic()
    status, answer = web.publish(mapping(80, 8080))
    assert status == 500 and "calico-agent" in answer["Err"] and "not running" in answer["Err"], answer
    assert time.monotonic() - began < 20 and site.is_free(8080)
    assert site.stored(web.endpoints[0][1]).spec.ports == ()
    site.host.started()


def test_gateway_moves_and_ports_with_it(site: Site) -> None:
    """Revoked on one endpoint, published on the other of the same container: another address answers at the port."""
    web = site.container()
    web.join(OTHER, gateway=False)
    web.serve(80)
    assert web.published(mapping(80, 8080)) == [8080]
    web.revoke()
    assert site.is_free(8080) and site.stored(web.endpoints[0][1]).spec.ports == ()
    assert web.published(mapping(80, 8080), which=1) == [8080]
    assert "10.77.1.11 . 80" in site.elements() and "10.77.1.10 . 80" not in site.elements()
    assert asks(site.outside, HOST4, 8080) == CLIENT4


def test_leave_and_delete_without_revoke(site: Site) -> None:
    """Docker does not always revoke; nothing published costs no change of etcd."""
    web = site.container()
    before = site.stored(web.endpoints[0][1])
    web.published()
    web.revoke()
    assert site.stored(web.endpoints[0][1]) == before
    web.published(mapping(80, 8080))
    web.leave()
    assert site.is_free(8080) and site.stored(web.endpoints[0][1]).spec.ports == ()
    web.published(mapping(80, 8080))
    network, endpoint = web.endpoints[0]
    site.driver.ok("NetworkDriver.DeleteEndpoint", NetworkID=network, EndpointID=endpoint)
    assert site.is_free(8080)
    wait_until("no rule", lambda: "8080" not in site.elements())


@pytest.mark.long
def test_etcd_away(site: Site) -> None:
    """Publishing fails in time and says so; what was published stays reserved until etcd has forgotten it."""
    web, other = site.container(), site.container()
    web.published(mapping(80, 8080))
    site.host.door.shut()
    try:
        status, answer = other.publish(mapping(80, 8081))
        assert status == 500 and "etcd" in answer["Err"] and site.is_free(8081)
        web.leave()
        network, endpoint = web.endpoints.pop()
        status, _ = site.driver.call("NetworkDriver.DeleteEndpoint", NetworkID=network, EndpointID=endpoint)
        assert status == 500 and not site.is_free(8080)
    finally:
        site.host.door.reopen()
    wait_until("the port", lambda: site.is_free(8080), 15)


@pytest.mark.parametrize("ports", [[5353], [5353, 5354]])
def test_client_that_sends_before_the_port_is_published(site: Site, ports: list[int]) -> None:
    """An UDP client's connection from before does not keep it from the container."""
    web = site.container()
    web.serve(53, UDP)

    def client() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind((CLIENT4, 5000))
        return made

    with closing(in_namespace(site.outside, client)) as sender:
        sender.settimeout(0.2)

        def answered() -> bool:
            sender.sendto(b"who am I", (HOST4, 5353))
            with suppress(OSError):
                return sender.recv(100) == CLIENT4.encode()
            return False

        assert not answered() and not answered()
        web.published(*(mapping(53, port, protocol=UDP) for port in ports))
        assert answered()


@pytest.fixture(scope="module")
def router() -> Iterator[Router]:
    with Router("cports", {"calipub": ("10.65.0.60", "fd65::60")}) as made:
        yield made


@pytest.fixture
def rules(router: Router) -> Iterator[Rules]:
    """The table alone, and hand-made packets."""
    made = Rules(router)
    yield made
    made.table.close()
    router.run("nft", "delete", "table", "inet", "calico")
    router.forget_connections()


def publishing(*ports: dict[str, Any]) -> dict[str, Any]:
    both = ["10.65.0.60/32", "fd65::60/128"]
    return written("pub", "10.65.0.60", {}, profiles=[], ipNetworks=both, ports=list(ports))


def test_sctp_and_other_protocols(router: Router, rules: Rules) -> None:
    """SCTP is led to the container, the client's address kept; what is not published or not for the host is left alone.
    """
    rules.set(publishing(*({"protocol": protocol, "port": 80, "hostPort": 8080} for protocol in ("SCTP", "TCP"))))
    for client, host in (("203.0.113.7", HOST[4]), ("2001:db8::7", HOST[6])):
        for protocol in (SCTP, TCP):
            assert router.where(Packet(client, host, protocol, dport=8080)) == {"calipub"}
        assert "calipub" not in router.where(Packet(client, host, UDP, dport=8080))
        assert "calipub" not in router.where(Packet(client, host, SCTP, dport=8081))
    assert router.where(Packet("203.0.113.7", "10.65.0.60", TCP, dport=80)) == set()
    rules.set(publishing())
    assert "published" not in router.run("nft", "list", "table", "inet", "calico")


def test_policy_before_translation_sees_the_host_s_port(router: Router, rules: Rules) -> None:
    """preDNAT policy of a host endpoint: by the port that the client asks for."""
    deny = {"action": "Deny", "protocol": "TCP", "source": {"nets": ["203.0.113.9/32"]},
            "destination": {"ports": [8080]}}
    rules.set(
        publishing(*({"protocol": "TCP", "port": 80, "hostPort": port} for port in (8080, 8081))), host_endpoint(),
        on_host("n", preDNAT=True, applyOnForward=True, ingress=[deny, {"action": "Allow"}]))
    for client, port, expected in (("203.0.113.9", 8080, set()), ("203.0.113.9", 8081, {"calipub"}),
                                   ("203.0.113.7", 8080, {"calipub"})):
        assert router.where(Packet(client, HOST[4], TCP, dport=port)) == expected


def test_stored_in_calico_s_own_form(site: Site) -> None:
    """The endpoint in etcd has Calico's own form, which other tools read."""
    web = site.container()
    web.published(mapping(80, 8080))
    key = keys.resource("WorkloadEndpoint", names.workload_endpoint(NODE, web.endpoints[0][1]), names.NAMESPACE)
    item = site.kv.get(key, Deadline(5))
    assert item is not None and json.loads(item.value)["spec"]["ports"] == [
        {"name": "", "protocol": "TCP", "port": 80, "hostPort": 8080, "hostIP": ""}]
