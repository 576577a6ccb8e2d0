"""A host for agent tests: a network namespace, a real calico-agent in it, and a door from there to the test's etcd.

The door is a socket that is opened inside the namespace and served by a thread outside, so etcd stays on loopback and
can be cut off.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Callable, Iterable, TypeVar

import msgspec

from calico_plugin.datastore.kv import KV
from calico_plugin.deadline import Deadline
from calico_plugin.model import codec, keys, names
from calico_plugin.model.resources import Metadata, Profile, Resource, Rule, WorkloadEndpoint
from calico_plugin.model.resources.endpoint import WorkloadEndpointSpec
from calico_plugin.model.resources.policy import ProfileSpec

T = TypeVar("T")
NODE = "host-1"
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def wait_until(what: str, condition: Callable[[], T], seconds: float = 10.0, pause: float = 0.005) -> T:
    """The first true result of `condition`; fails naming `what`."""
    over = time.monotonic() + seconds
    while True:
        result = condition()
        if result:
            return result
        assert time.monotonic() < over, f"gave up waiting for {what}"
        time.sleep(pause)


def enter(netns: str) -> None:
    """Put the calling thread into a network namespace; for threads that end there."""
    with open(f"/run/netns/{netns}") as file:
        if _libc.setns(file.fileno(), _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")


def listener_in(netns: str, port: int) -> socket.socket:
    """A listening TCP socket on loopback of a namespace; made by a thread that enters it and ends."""
    made: list[socket.socket] = []

    def make() -> None:
        enter(netns)
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", port))
        sock.listen(64)
        made.append(sock)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    return made[0]


class Door:
    """Connections to 127.0.0.1:2379 of the namespace reach etcd, unless it is closed."""

    def __init__(self, netns: str, endpoint: str) -> None:
        host, port = endpoint.removeprefix("http://").split(":")
        self._target = (host, int(port))
        self._listener = listener_in(netns, 2379)
        self._open = True
        self._flows = threading.Event()
        self._flows.set()
        self._live: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def shut(self) -> None:
        """etcd is gone: connections break, new ones are closed at once."""
        self._open = False
        for sock in self._live:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self._live.clear()

    def reopen(self) -> None:
        self._open = True

    def freeze(self) -> None:
        """etcd hangs: connections stay, nothing passes any more."""
        self._flows.clear()

    def close(self) -> None:
        self._flows.set()
        self.shut()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if not self._open:
                near.close()
                continue
            far = socket.create_connection(self._target)
            for one in (near, far):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._live += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=_pump, args=(source, sink, self._flows), daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket, flows: threading.Event) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            flows.wait()
            sink.sendall(data)
    for one in (source, sink):
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)


class AgentHost:
    """Use as a context. `kv` is the test's own client of the same etcd."""

    def __init__(self, base: Path, endpoint: str, kv: KV, netns: str | None = None, node: str = NODE) -> None:
        self.base, self.kv, self.node = base, kv, node
        self.netns = netns or f"cagt{os.getpid()}{os.urandom(2).hex()}"
        self.run_dir = base / "run"
        self.log = base / "agent.log"
        self.agent: subprocess.Popen[bytes] | None = None
        self._endpoint = endpoint
        self.settings: dict[str, str] = {}

    def __enter__(self) -> AgentHost:
        subprocess.run(["ip", "netns", "add", self.netns], check=True)
        self.ip("link", "set", "lo", "up")
        self.door = Door(self.netns, self._endpoint)
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.door.close()
        subprocess.run(["ip", "netns", "del", self.netns], check=True)

    # Processes

    def command(self, *words: str) -> list[str]:
        return ["nsenter", f"--net=/run/netns/{self.netns}", *words]

    def run(self, *words: str, check: bool = True) -> str:
        done = subprocess.run(self.command(*words), capture_output=True, text=True)
        assert not check or done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout

    def ip(self, *words: str) -> str:
        return self.run("ip", *words)

    def start(self) -> None:
        ours = ("ETCD_", "CALICO_", "FELIX_")
        environ = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        environ |= {
            "ETCD_ENDPOINTS": "http://127.0.0.1:2379",
            "NODENAME": self.node,
            "CALICO_RUN_DIR": str(self.run_dir),
            "CALICO_LOG_LEVEL": "debug",
            "CALICO_NETWORKING_BACKEND": "none",
            "DOCKER_HOST": f"unix://{self.base}/no-docker.sock",
            **self.settings,
        }
        with self.log.open("ab") as log:
            words = self.command(sys.executable, "-m", "calico_plugin.agent.main")
            self.agent = subprocess.Popen(words, env=environ, stdout=log, stderr=log)

    def started(self) -> AgentHost:
        """Start and wait for the first pass."""
        passes = self.text().count("the first pass is done")
        self.start()
        wait_until("the agent's first pass", lambda: self.text().count("the first pass is done") > passes, 15)
        return self

    def stop(self) -> float:
        """SIGTERM; how many seconds it took to end."""
        assert self.agent is not None
        began = time.monotonic()
        self.agent.send_signal(signal.SIGTERM)
        assert self.agent.wait(10) == 0
        self.agent = None
        return time.monotonic() - began

    def kill(self) -> None:
        if self.agent is not None:
            self.agent.kill()
            self.agent.wait()
            self.agent = None

    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def cpu_seconds(self) -> float:
        assert self.agent is not None
        fields = Path(f"/proc/{self.agent.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_mb(self) -> float:
        assert self.agent is not None
        return int(Path(f"/proc/{self.agent.pid}/statm").read_text().split()[1]) * 4096 / 1e6

    # The cluster

    def put(self, resource: Resource) -> None:
        key = keys.resource(resource.kind, resource.name, resource.namespace)
        self.kv.put(key, codec.encode(resource), Deadline(5))

    def remove(self, resource: Resource) -> None:
        self.kv.delete(keys.resource(resource.kind, resource.name, resource.namespace), Deadline(5))

    def endpoint(
        self, endpoint: str, *addresses: str, profiles: Iterable[str] = ("net",), **labels: str
    ) -> WorkloadEndpoint:
        """A local WorkloadEndpoint, not stored yet."""
        own = {names.LABEL_NAMESPACE: names.NAMESPACE, names.LABEL_ORCHESTRATOR: names.ORCHESTRATOR}
        return WorkloadEndpoint(
            metadata=Metadata(
                name=names.workload_endpoint(self.node, endpoint), namespace=names.NAMESPACE, labels={**own, **labels}
            ),
            spec=WorkloadEndpointSpec(
                orchestrator=names.ORCHESTRATOR,
                workload=names.WORKLOAD,
                node=self.node,
                endpoint=endpoint,
                ip_networks=tuple(f"{one}/{128 if ':' in one else 32}" for one in addresses),
                profiles=tuple(profiles),
                interface_name=names.host_interface(endpoint),
                mac="02:00:00:00:00:01",
            ),
        )

    def open_profile(self, name: str = "net") -> None:
        allow = (Rule(action="Allow"),)
        self.put(Profile(metadata=Metadata(name=name), spec=ProfileSpec(ingress=allow, egress=allow)))

    # The kernel

    def add_link(self, endpoint: str) -> None:
        """As the driver: a pair whose host end is down and has no settings."""
        ends = names.host_interface(endpoint), names.temporary_interface(endpoint)
        self.ip("link", "add", ends[0], "type", "veth", "peer", ends[1])

    def delete_link(self, endpoint: str) -> None:
        self.ip("link", "del", names.host_interface(endpoint))

    def routes(self) -> list[str]:
        """Routes of our protocol, both IP versions, as `ip` prints them."""
        shown = self.ip("route", "show", "proto", "80") + self.ip("-6", "route", "show", "proto", "80")
        return [" ".join(line.split()) for line in shown.splitlines()]

    def table(self) -> str:
        return self.run("nft", "list", "table", "inet", "calico", check=False)

    # Status files

    def status_path(self, endpoint: str) -> Path:
        return self.run_dir / "endpoint-status" / names.endpoint_status_file(endpoint)

    def is_up(self, endpoint: str) -> bool:
        return self.status_path(endpoint).exists()

    def status(self, endpoint: str) -> dict[str, object]:
        return msgspec.json.decode(self.status_path(endpoint).read_bytes(), type=dict)

    def up(self, endpoint: str, *addresses: str) -> WorkloadEndpoint:
        """An endpoint that is in force."""
        made = self.endpoint(endpoint, *addresses)
        self.put(made)
        self.add_link(endpoint)
        wait_until(f"endpoint {endpoint}", lambda: self.is_up(endpoint))
        return made
