"""Network namespaces on one bridge, each with a real BIRD: what the tests of routing stand on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Iterable

from calico_plugin.model.ipam import Affinity
from calico_plugin.model.keys import ResourceKey
from calico_plugin.model.resources import Metadata, Node, Resource
from calico_plugin.model.resources.node import NodeBGPSpec, NodeSpec
from calico_plugin.model.snapshot import Snapshot
from calico_plugin.routing.apply import CONF_NAME, PID_NAME, SOCKET_NAME
from calico_plugin.routing.birdc import BirdClient


def snapshot(objects: Iterable[Resource], blocks: dict[str, list[str]]) -> Snapshot:
    """A view with these resources, and blocks by host."""
    resources: dict[str, dict[ResourceKey, Resource]] = {}
    for one in objects:
        resources.setdefault(one.kind, {})[ResourceKey(one.kind, one.name)] = one
    affinities = {(host, cidr): Affinity(state="confirmed") for host, cidrs in blocks.items() for cidr in cidrs}
    return Snapshot(resources=resources, affinities=affinities)


def node(name: str, ipv4: str = "", ipv6: str = "", labels: dict[str, str] | None = None, **bgp: object) -> Node:
    """A Node resource with BGP data."""
    spec = NodeBGPSpec(ipv4_address=ipv4, ipv6_address=ipv6, **bgp)  # type: ignore[arg-type]
    return Node(metadata=Metadata(name=name, labels=labels or {}), spec=NodeSpec(bgp=spec))


def wait_for(what: str, true: Callable[[], object], seconds: float = 20) -> None:
    """Poll until it is so; BIRD and the kernel offer no event for these."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"no {what} within {seconds} s"
        time.sleep(0.05)


@dataclass
class Host:
    """One namespace. `run_dir` holds BIRD's files."""

    namespace: str
    run_dir: Path
    process: subprocess.Popen[bytes] | None = None
    client: BirdClient = field(init=False)

    def __post_init__(self) -> None:
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self.client = BirdClient(self.run_dir / SOCKET_NAME)

    def run(self, *argv: str) -> str:
        """Run a command in the namespace."""
        command = ["nsenter", f"--net=/run/netns/{self.namespace}", *argv]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{argv}: {done.stderr}"
        return done.stdout

    def routes(self, version: int = 4) -> dict[str, dict[str, str]]:
        """Kernel routes by destination."""
        found = json.loads(self.run("ip", f"-{version}", "-j", "-d", "route"))
        return {one["dst"]: one for one in found}

    def start_bird(self, *options: str) -> None:
        """Start BIRD on what is in `run_dir` and wait for its socket."""
        log = open(self.run_dir / "bird.log", "ab")
        command = ["bird", "-f", "-c", str(self.run_dir / CONF_NAME), "-s", str(self.run_dir / SOCKET_NAME)]
        command += ["-P", str(self.run_dir / PID_NAME), *options]
        self.process = subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{self.namespace}", *command], stdout=log, stderr=log
        )
        wait_for("control socket", self.answers)

    def answers(self) -> bool:
        """Whether BIRD serves its socket."""
        try:
            return bool(self.client.status())
        except Exception:
            return False

    def states(self) -> dict[str, bool]:
        """BGP protocols: whether they are established."""
        return {one.name: one.established for one in self.client.protocols() if one.kind == "BGP"}

    def end_bird(self, number: int = signal.SIGKILL) -> None:
        """End BIRD (nsenter has replaced itself, so the pid is BIRD's)."""
        if self.process is not None:
            if self.process.poll() is None:
                self.process.send_signal(number)
            self.process.wait(10)
            self.process = None


@dataclass
class Fabric:
    """A bridge in a namespace of its own, and the hosts on it."""

    folder: Path
    prefix: str = field(default_factory=lambda: f"cb{os.getpid()}")
    hosts: list[Host] = field(default_factory=list)

    def __enter__(self) -> Fabric:
        self._netns("add", self.prefix)
        self._ip("-n", self.prefix, "link", "add", "br0", "type", "bridge")
        self._ip("-n", self.prefix, "link", "set", "br0", "up")
        return self

    def host(self, name: str, *addresses: str) -> Host:
        """A host with an `eth0` on the bridge."""
        host = Host(f"{self.prefix}-{name}", self.folder / name)
        self._netns("add", host.namespace)
        self.hosts.append(host)
        end = ["netns", self.prefix]
        self._ip("-n", host.namespace, "link", "add", "eth0", "type", "veth", "peer", "name", f"v-{name}", *end)
        self._ip("-n", self.prefix, "link", "set", f"v-{name}", "master", "br0", "up")
        host.run("ip", "link", "set", "lo", "up")
        for address in addresses:
            host.run("ip", "address", "add", address, "dev", "eth0", *(["nodad"] if ":" in address else []))
        host.run("ip", "link", "set", "eth0", "up")
        return host

    def __exit__(self, *_: object) -> None:
        for host in self.hosts:
            host.end_bird()
            self._netns("del", host.namespace)
        self._netns("del", self.prefix)

    @staticmethod
    def _ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True)

    @staticmethod
    def _netns(*words: str) -> None:
        subprocess.run(["ip", "netns", *words], check=True)
