"""A real calico-driver in a network namespace of its own, on temporary sockets, with a real etcd; only the agent may
be a stand-in.

The namespace reaches etcd, which listens on the machine's loopback, through a relay in the test process: a socket
belongs to the namespace in which it was made, whoever uses it.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Callable, Iterator, Sequence

import msgspec

from calico_plugin.dataplane import veth
from calico_plugin.dataplane.netlink import Netlink, socket_in
from calico_plugin.datastore.kv import KV
from calico_plugin.datastore.watch import Changes, Listed, Watch
from calico_plugin.deadline import Deadline
from calico_plugin.errors import CalicoError
from calico_plugin.model import codec, keys, names
from calico_plugin.model.docker import NetworkRecord
from calico_plugin.model.ipam import Block
from calico_plugin.model.resources import IPPool, Metadata, Node, WorkloadEndpoint
from calico_plugin.model.resources.ipam import IPPoolSpec

NODE = "host-a"
POOL, POOL6 = "10.77.0.0/16", "fd77:77::/112"
START_SECONDS, WAIT_SECONDS = 20.0, 15.0


def wait_until(true: Callable[[], Any], what: str, seconds: float = WAIT_SECONDS) -> Any:
    """The first true result. Raises AssertionError that names `what`."""
    over = time.monotonic() + seconds
    while time.monotonic() < over:
        result = true()
        if result:
            return result
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s: {what}")


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def post(
    path: Path, method: str, body: bytes, timeout: float = 30.0, headers: dict[str, str] | None = None
) -> tuple[int, Any]:
    """One call as dockerd makes it: (status, decoded body)."""
    connection = UnixConnection(path, timeout)
    try:
        connection.putrequest("POST", f"/{method}", skip_host=True, skip_accept_encoding=True)
        for name, value in (headers or {"Host": "", "User-Agent": "Go-http-client/1.1"}).items():
            connection.putheader(name, value)
        connection.putheader("Accept", "application/vnd.docker.plugins.v1.2+json")
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        data = answer.read()
        return answer.status, json.loads(data) if data else None
    finally:
        connection.close()


class Relay:
    """Accepts inside a namespace, connects outside of it. `cut` refuses and breaks connections: etcd looks dead from
    inside. `stall` keeps them and passes nothing on: etcd hangs.
    """

    def __init__(self, netns: str, target: tuple[str, int]) -> None:
        self._target = target
        self._listener = socket_in(netns, socket.AF_INET, socket.SOCK_STREAM)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(64)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: set[socket.socket] = set()
        self._is_cut = False
        self._flows = threading.Event()
        self._flows.set()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self._is_cut = True
        for one in tuple(self._open):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def stall(self) -> None:
        self._flows.clear()

    def mend(self) -> None:
        self._is_cut = False
        self._flows.set()

    def close(self) -> None:
        self.cut()
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                inside, _ = self._listener.accept()
                if self._is_cut:
                    inside.close()
                    continue
                outside = socket.create_connection(self._target)
                for source, sink in ((inside, outside), (outside, inside)):
                    source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    self._open.add(source)
                    threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                self._flows.wait()
                sink.sendall(data)
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._open.discard(source)
        source.close()


class StandInAgent:
    """Does what the driver needs of the agent: names networks, and says of each endpoint that it is ready. `paused`
    stops the latter.
    """

    def __init__(self, kv: KV, run_dir: Path, node: str = NODE, name_networks: bool = True) -> None:
        self._kv, self._directory, self._node, self._name_networks = (
            kv,
            run_dir / "endpoint-status",
            node,
            name_networks,
        )
        self._endpoints = keys.kind_prefix("WorkloadEndpoint", names.NAMESPACE)
        self.paused = False
        self._watch = Watch(kv, (keys.NETWORKS, self._endpoints))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._watch.close()
        self._thread.join(5.0)

    def _run(self) -> None:
        for event in self._watch:
            if isinstance(event, Listed):
                for items in event.items.values():
                    for item in items:
                        self._take(item.key, item.value)
            elif isinstance(event, Changes):
                for change in event.changes:
                    self._take(change.key, change.item.value if change.item else None)

    def _take(self, key: str, value: bytes | None) -> None:
        if key.startswith(keys.NETWORKS):
            if value is not None and self._name_networks:
                self._name(key, codec.decode(NetworkRecord, key, value))
            return
        endpoint = names.split_workload_endpoint(key.rpartition("/")[2])[-1]
        path = self._directory / names.endpoint_status_file(endpoint)
        if value is None:
            path.unlink(missing_ok=True)
        elif not self.paused:
            self.ready(endpoint)

    def ready(self, endpoint: str) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        path = self._directory / names.endpoint_status_file(endpoint)
        temporary = self._directory / f".{endpoint}"
        temporary.write_text("{}")
        temporary.rename(path)

    def _name(self, key: str, record: NetworkRecord) -> None:
        if record.name:
            return
        name = f"net-{record.network_id[:8]}"
        named = msgspec.structs.replace(record, name=name, profile=names.network_profile(name))
        with suppress(CalicoError):
            self._kv.put(key, codec.encode(named), Deadline(5))
            self._kv.put(keys.resource("Profile", named.profile), b'{"kind":"Profile"}', Deadline(5))


class Driver:
    """The process and its files. `start` returns when both sockets answer."""

    def __init__(
        self, netns: str, base: Path, etcd_url: str, environ: dict[str, str] | None = None, node: str = NODE
    ) -> None:
        self.netns, self.base, self.node = netns, base, node
        self.run_dir, self.lib_dir, self.plugin_dir = base / "run", base / "lib", base / "plugins"
        for directory in (self.run_dir, self.lib_dir, self.plugin_dir):
            directory.mkdir(parents=True, exist_ok=True)
        self.log = base / "driver.log"
        self.environ = {
            "PATH": os.environ["PATH"],
            "ETCD_ENDPOINTS": etcd_url,
            "NODENAME": node,
            "CALICO_RUN_DIR": str(self.run_dir),
            "CALICO_LIB_DIR": str(self.lib_dir),
            "CALICO_PLUGIN_DIR": str(self.plugin_dir),
            "CALICO_LOG_LEVEL": "debug",
            **(environ or {}),
        }
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        return self.plugin_dir / "calico.sock"

    @property
    def ipam_socket(self) -> Path:
        return self.plugin_dir / "calico-ipam.sock"

    def start(self) -> None:
        script = Path(sys.executable).parent / "calico-driver"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{self.netns}", str(script)], env=self.environ, stdout=log, stderr=log
            )
        wait_until(self._answers, f"driver answers; log: {self.log.read_text()[-2000:]}", START_SECONDS)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it and all its workers; the exit status."""
        if self.process is None:
            return 0
        self.process.send_signal(number)
        status = self.process.wait(40)
        self.process = None
        return status

    def workers(self) -> list[int]:
        assert self.process is not None
        text = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in text.split()]

    def kill(self) -> None:
        """kill -9 of the supervisor and its worker."""
        assert self.process is not None
        workers = self.workers()
        self.process.kill()
        self.process.wait()
        self.process = None
        for pid in workers:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def call(self, method: str, _timeout: float = 30.0, **members: Any) -> tuple[int, Any]:
        path = self.ipam_socket if method.startswith("IpamDriver") else self.socket
        return post(path, method, json.dumps(members).encode() + b"\n" if members else b"", _timeout)

    def ok(self, method: str, **members: Any) -> Any:
        status, answer = self.call(method, **members)
        assert status == 200, (method, answer)
        return answer

    def refused(self, method: str, **members: Any) -> str:
        """Text of an error answer."""
        status, answer = self.call(method, **members)
        assert status == 500, (method, status, answer)
        assert answer["Err"] == answer["Error"] and "\n" not in answer["Err"]
        return str(answer["Err"])

    def _answers(self) -> bool:
        assert self.process is not None and self.process.poll() is None, self.log.read_text()[-2000:]
        try:
            return all(post(path, "Plugin.Activate", b"", 5.0)[0] == 200 for path in (self.socket, self.ipam_socket))
        except (OSError, http.client.HTTPException):
            return False


class Lab:
    """One namespace with driver, relay and stand-in agent, and the questions that tests ask about what is there."""

    def __init__(self, netns: str, kv: KV, relay: Relay, driver: Driver, agent: StandInAgent) -> None:
        self.netns, self.kv, self.relay, self.driver, self.agent = netns, kv, relay, driver, agent
        self._netlink = Netlink(netns)

    def links(self) -> set[str]:
        return {link.name for link in veth.ours(self._netlink, "")} - {"lo"}

    def endpoints(self) -> list[WorkloadEndpoint]:
        items = self.kv.list(keys.kind_prefix("WorkloadEndpoint"), Deadline(5)).items
        return [codec.decode(WorkloadEndpoint, item.key, item.value) for item in items]

    def addresses(self) -> dict[str, Any]:
        """Given addresses with their (handle, attributes)."""
        found: dict[str, Any] = {}
        for item in self.kv.list(keys.BLOCKS, Deadline(5)).items:
            block = codec.decode(Block, item.key, item.value)
            base, prefix = block.cidr.split("/")
            for ordinal, index in enumerate(block.allocations):
                if index is not None and block.attributes:
                    entry = block.attributes[index]
                    found[_address(block.cidr, ordinal)] = (entry.handle_id, entry.secondary)
        return found

    def networks(self) -> list[NetworkRecord]:
        return [
            codec.decode(NetworkRecord, item.key, item.value)
            for item in self.kv.list(keys.NETWORKS, Deadline(5)).items
        ]

    def nothing_left(self) -> None:
        """No link, endpoint or address; waits for what goes in the background."""
        wait_until(lambda: not self.links(), f"links are gone: {self.links()}")
        assert self.endpoints() == []
        assert self.addresses() == {}

    def network(self, network: str, **members: Any) -> str:
        """Create a network as Docker does; its PoolID."""
        granted = self.driver.ok(
            "IpamDriver.RequestPool",
            AddressSpace="CalicoLocalAddressSpace",
            Pool="",
            SubPool="",
            Options={},
            V6=False,
        )
        data = {"AddressSpace": "CalicoLocalAddressSpace", "Pool": granted["Pool"], "Gateway": "0.0.0.0/0"}
        self.driver.ok("NetworkDriver.CreateNetwork", **create_network(network, IPv4Data=[data], **members))
        return str(granted["PoolID"])

    def start(
        self, network: str, pool: str, endpoint: str, sandbox: str = "/var/run/docker/netns/0123456789ab"
    ) -> dict[str, Any]:
        """What `docker run` causes for one network; the Join answer."""
        address = self.driver.ok("IpamDriver.RequestAddress", PoolID=pool, Address="", Options=None)["Address"]
        self.driver.ok("NetworkDriver.CreateEndpoint", **create_endpoint(network, endpoint, address))
        joined = self.driver.ok(
            "NetworkDriver.Join", NetworkID=network, EndpointID=endpoint, SandboxKey=sandbox, Options={}
        )
        return {"address": address.split("/")[0], **joined}

    def stop(self, network: str, pool: str, endpoint: str, address: str) -> None:
        self.driver.ok("NetworkDriver.Leave", NetworkID=network, EndpointID=endpoint)
        self.driver.ok("NetworkDriver.DeleteEndpoint", NetworkID=network, EndpointID=endpoint)
        self.driver.ok("IpamDriver.ReleaseAddress", PoolID=pool, Address=address)

    def close(self) -> None:
        self._netlink.close()


def _address(cidr: str, ordinal: int) -> str:
    from ipaddress import ip_network

    return str(ip_network(cidr)[ordinal])


def create_network(network: str, options: dict[str, str] | None = None, **members: Any) -> dict[str, Any]:
    internal = {"com.docker.network.internal": True} if members.pop("internal", False) else {}
    generic = {
        "com.docker.network.generic": options or {},
        "com.docker.network.enable_ipv6": bool(members.get("IPv6Data")),
    }
    return {"NetworkID": network, "Options": {**generic, **internal}, "IPv4Data": [], "IPv6Data": [], **members}


def create_endpoint(network: str, endpoint: str, address: str, address6: str = "", mac: str = "") -> dict[str, Any]:
    interface = {"Address": address, "AddressIPv6": address6, "MacAddress": mac}
    return {
        "NetworkID": network,
        "EndpointID": endpoint,
        "Interface": interface,
        "Options": {"com.docker.network.portmap": []},
    }


def fill(kv: KV, nodes: Sequence[str] = (NODE,)) -> None:
    """What calico-node stores before the driver starts: the nodes and a pool of each family."""
    for node in nodes:
        kv.put(keys.resource("Node", node), codec.encode(Node(metadata=Metadata(name=node))), Deadline(5))
    for name, cidr in (("pool-a", POOL), ("pool-b", POOL6)):
        pool = IPPool(metadata=Metadata(name=name), spec=IPPoolSpec(cidr=cidr, node_selector="all()"))
        kv.put(keys.resource("IPPool", name), codec.encode(pool), Deadline(5))


@contextmanager
def namespace(name: str) -> Iterator[str]:
    """A network namespace with its loopback up, gone afterwards."""
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


@contextmanager
def driver_lab(base: Path, kv: KV, etcd_url: str, environ: dict[str, str] | None = None) -> Iterator[Lab]:
    """A running lab on an etcd that is filled."""
    host, port = etcd_url.rpartition("//")[2].split(":")
    with ExitStack() as stack:
        netns = stack.enter_context(namespace(f"cdrv-{os.getpid()}-{time.monotonic_ns() % 100000}"))
        relay = Relay(netns, (host, int(port)))
        stack.callback(relay.close)
        driver = Driver(netns, base, relay.url, environ)
        stack.callback(lambda: driver.process and driver.stop())
        agent = StandInAgent(kv, driver.run_dir)
        stack.callback(agent.close)
        driver.start()
        lab = Lab(netns, kv, relay, driver, agent)
        stack.callback(lab.close)
        yield lab
