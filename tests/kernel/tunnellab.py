"""Three hosts on two subnets with a router between: real agents and BIRDs on one etcd, containers as namespaces.

`host-1` and `host-2` share 10.9.1.0/24, `host-3` is in 10.9.2.0/24; the router is .254 in both and knows nothing of the
containers. Its bridges `near` and `far` are where a test listens.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Iterator

from msgspec.structs import replace

from calico_plugin.datastore.etcd import EtcdKV, connect
from calico_plugin.datastore.store import Store
from calico_plugin.deadline import Deadline
from calico_plugin.ipam import Allocator
from calico_plugin.model import names
from calico_plugin.model.resources import IPPool, Metadata, Node, WorkloadEndpoint
from calico_plugin.model.resources.ipam import IPPoolSpec
from calico_plugin.model.resources.node import NodeBGPSpec, NodeSpec
from calico_plugin.node.tunnels import Keeper
from calico_plugin.policy import selector
from tests.kernel import birdlab
from tests.kernel.agent_host import AgentHost, wait_until

POOL, POOL6 = "10.66.0.0/16", "fd66::/64"
ADDRESSES = {"host-1": (1, 1), "host-2": (1, 2), "host-3": (2, 3)}
SECONDS = 20


@dataclass
class Container:
    """A namespace with an endpoint on `host`."""

    host: AgentHost
    endpoint: WorkloadEndpoint
    netns: str
    addresses: tuple[str, ...]

    @property
    def address(self) -> str:
        return self.addresses[0]

    def run(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = ["nsenter", f"--net=/run/netns/{self.netns}", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done

    def reaches(self, address: str, *options: str) -> bool:
        return self.run("ping", "-c1", "-W1", *options, address, check=False).returncode == 0


@dataclass
class Listener:
    """tcpdump on a bridge of the router; `packets` ends it and gives its lines."""

    process: subprocess.Popen[str]

    def packets(self) -> list[str]:
        time.sleep(0.3)  # tcpdump offers no event for "written out"
        self.process.send_signal(signal.SIGINT)
        out, _ = self.process.communicate(timeout=10)
        return [line for line in out.splitlines() if line]


@dataclass
class TunnelLab:
    """Use as a context."""

    folder: Path
    endpoint: str
    hosts: dict[str, AgentHost] = field(default_factory=dict)
    birds: dict[str, birdlab.Host] = field(default_factory=dict)
    containers: list[Container] = field(default_factory=list)

    def __enter__(self) -> TunnelLab:
        self._stack = ExitStack()
        with ExitStack() as undo:
            undo.push(self._stack.__exit__)
            self._build()
            undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _build(self) -> None:
        self.kv: EtcdKV = self._stack.enter_context(_client(self.endpoint))
        self.kv.delete_prefix("", Deadline(10))
        self.store = Store(self.kv)
        self.allocator = Allocator(self.kv, lambda text, labels: selector.parse(text).match(labels))
        self.router = f"ctun{os.getpid()}"
        self._stack.callback(_netns, "del", self.router)
        _netns("add", self.router)
        for bridge, number in (("near", 1), ("far", 2)):
            self.on_router("ip", "link", "add", bridge, "type", "bridge")
            self.on_router("ip", "addr", "add", f"10.9.{number}.254/24", "dev", bridge)
            self.on_router("ip", "addr", "add", f"fd09:{number}::254/64", "dev", bridge, "nodad")
            self.on_router("ip", "link", "set", bridge, "up")
        self.on_router("ip", "link", "set", "lo", "up")
        self.on_router("ip", "addr", "add", "203.0.113.1/32", "dev", "lo")
        self.on_router("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        for name in ADDRESSES:
            self._host(name)
        for name in ADDRESSES:
            kv = connect([self.endpoint], source="the tests")
            self._stack.callback(kv.close)
            keeper = Keeper(kv, name)
            keeper.start()
            self._stack.callback(keeper.close)

    def _host(self, name: str) -> None:
        subnet, number = ADDRESSES[name]
        host = AgentHost(self.folder / name, self.endpoint, self.kv, node=name)
        host.base.mkdir()
        self._stack.enter_context(host)
        host.settings["CALICO_NETWORKING_BACKEND"] = "bird"
        port, bridge = f"h{number}", "near" if subnet == 1 else "far"
        host.ip("link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", self.router)
        self.on_router("ip", "link", "set", port, "master", bridge, "up")
        four, six = f"10.9.{subnet}.{number}/24", f"fd09:{subnet}::{number}/64"
        host.ip("addr", "add", four, "dev", "eth0")
        host.ip("addr", "add", six, "dev", "eth0", "nodad")
        host.ip("link", "set", "eth0", "up")
        host.ip("route", "add", "default", "via", f"10.9.{subnet}.254")
        host.ip("-6", "route", "add", "default", "via", f"fd09:{subnet}::254")
        bgp = NodeBGPSpec(ipv4_address=four, ipv6_address=six)
        self.store.resources(Node).create(Node(metadata=Metadata(name=name), spec=NodeSpec(bgp=bgp)), Deadline(5))
        host.open_profile()
        host.started()
        conf = host.run_dir / "bird.conf"
        wait_until("a configuration", conf.exists, SECONDS)
        bird = birdlab.Host(host.netns, host.run_dir)
        self._stack.callback(bird.end_bird)
        bird.start_bird()
        self.hosts[name], self.birds[name] = host, bird

    def on_router(self, *words: str) -> str:
        command = ["nsenter", f"--net=/run/netns/{self.router}", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def listen(self, bridge: str, what: str) -> Listener:
        """tcpdump of what comes by on one side of the router; ready when this returns."""
        command = ["nsenter", f"--net=/run/netns/{self.router}", "tcpdump", "-lnni", bridge, what]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        while "listening on" not in process.stderr.readline():
            assert process.poll() is None
        return Listener(process)

    def pool(self, cidr: str, **spec: object) -> None:
        """Create the pool, or change it."""
        name = names.cidr_name(cidr)
        wanted = IPPool(metadata=Metadata(name=name), spec=IPPoolSpec(cidr=cidr, **spec))  # type: ignore[arg-type]
        pools = self.store.resources(IPPool)
        stored = pools.find(name, Deadline(5))
        if stored is None:
            pools.create(wanted, Deadline(5))
        else:
            pools.update(stored, replace(stored.value, spec=wanted.spec), Deadline(5))

    def node(self, name: str) -> NodeSpec:
        return self.store.resources(Node).get(name, Deadline(5)).value.spec

    def container(self, name: str, *cidrs: str, addresses: tuple[str, ...] = ()) -> Container:
        """A container with an address of each pool, or with these addresses; it can be reached when this returns."""
        host = self.hosts[name]
        for cidr in cidrs:
            attributes = {"node": name}
            version = 6 if ":" in cidr else 4
            found = self.allocator.auto_assign(
                name, version=version, deadline=Deadline(10), pools=[cidr], attributes=attributes
            )
            addresses += (str(found.addresses[0].ip),)
        number = len(self.containers)
        identity = f"{number:011x}{os.getpid():053x}"
        netns = f"{self.router}c{number}"
        _netns("add", netns)
        self._stack.callback(_netns, "del", netns)
        host.add_link(identity)
        inside = names.temporary_interface(identity)
        host.ip("link", "set", inside, "netns", netns)
        container = Container(host, host.endpoint(identity, *addresses), netns, addresses)
        self.containers.append(container)
        container.run("ip", "link", "set", inside, "name", "cali0", "up")
        for address in addresses:
            length, extra = (128, ["nodad"]) if ":" in address else (32, [])
            container.run("ip", "addr", "add", f"{address}/{length}", "dev", "cali0", *extra)
        container.run("ip", "route", "add", "169.254.1.1", "dev", "cali0", "scope", "link")
        container.run("ip", "route", "add", "default", "via", "169.254.1.1")
        host.put(container.endpoint)
        wait_until(f"container {number}", lambda: host.is_up(identity), SECONDS)
        if any(":" in address for address in addresses):
            # The driver gives this address to the host's end; here the test does.
            near = names.host_interface(identity)
            host.ip("addr", "replace", "fe80::1/64", "dev", near, "nodad")
            container.run("ip", "-6", "route", "add", "default", "via", "fe80::1", "dev", "cali0")
        return container

    def remove(self, container: Container) -> None:
        container.host.remove(container.endpoint)
        self.allocator.release(container.addresses, Deadline(10))
        wait_until("its end", lambda: not container.host.is_up(container.endpoint.spec.endpoint), SECONDS)


class _client:
    def __init__(self, endpoint: str) -> None:
        self._kv = connect([endpoint], source="the tests")

    def __enter__(self) -> EtcdKV:
        return self._kv

    def __exit__(self, *_: object) -> None:
        self._kv.close()


def _netns(*words: str) -> None:
    subprocess.run(["ip", "netns", *words], check=True)


def lab(folder: Path, endpoint: str) -> Iterator[TunnelLab]:
    """For a fixture."""
    with TunnelLab(folder, endpoint) as made:
        yield made
