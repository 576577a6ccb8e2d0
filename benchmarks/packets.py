"""What a packet costs under policy: the first of a connection and later ones, by how many policies select both ends.

The packets go from one container of this host to another. No policy but the last decides about them, so a first packet
has to get past all others. Runs in network namespaces of its own; all sizes take turns, so that a busy moment of the
machine does not count for one of them alone.

    sudo python -m benchmarks.packets [--sizes 1,10,100,1000] [--worlds nets,ports,apps]
"""

from __future__ import annotations

import argparse
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Callable, Iterator, Mapping, Sequence

from benchmarks.report import Report
from calico_plugin.dataplane.nftables import Table
from calico_plugin.policy import PolicyEngine
from tests.kernel.packets import Packet, Router, frame, in_namespace
from tests.unit.policy.worlds import OPEN, endpoint, policy, typed

WEB, API = "10.65.0.10", "10.65.0.20"
PACKETS = 2000
ROUNDS = 9
APPLICATIONS = 100
Document = Mapping[str, Any]


def by_nets(number: int) -> Document:
    """Each policy from and to a network of its own."""
    net = {"nets": [f"172.{16 + number // 250}.{number % 250}.0/24"]}
    return policy(f"q{number}", order=number, selector="all()", ingress=[
        {"action": "Allow", "source": net}], egress=[{"action": "Allow", "destination": net}])


def by_ports(number: int) -> Document:
    """Each policy for a port of its own."""
    rule = {"action": "Allow", "protocol": "TCP", "destination": {"ports": [2000 + number]}}
    return policy(f"q{number}", order=number, selector="all()", ingress=[rule], egress=[rule])


def by_apps(number: int) -> Document:
    """What people write: labels with ports, labels alone, and a denied network, both ways."""
    one, other = (f"app{(number * step + step) % APPLICATIONS}" for step in (1, 7))

    def rules(side: str) -> list[dict[str, Any]]:
        ports = {"destination": {"ports": [80 + number % 7, 443]}}
        from_web: dict[str, Any] = {"action": "Allow", "protocol": "TCP", **ports}
        from_web[side] = {**from_web.get(side, {}), "selector": f"app=='{one}' && role=='web'"}
        return [from_web, {"action": "Allow", side: {"selector": f"app in {{'{one}','{other}'}}"}},
                {"action": "Deny", side: {"nets": [f"10.9.{number % 250}.0/24"]}}]

    return policy(
        f"q{number}", order=number, selector="all()", ingress=rules("source"), egress=rules("destination"))


WORLDS: dict[str, Callable[[int], Document]] = {"nets": by_nets, "ports": by_ports, "apps": by_apps}


def documents(world: str, policies: int) -> Iterator[Document]:
    """A thousand endpoints of other hosts, so that the sets of labels have members; two of this one."""
    yield OPEN
    yield from (endpoint("web", WEB), endpoint("api", API))
    for number in range(1000):
        labels = {"app": f"app{number % APPLICATIONS}", "role": ("web", "api", "db")[number % 3]}
        there = endpoint(f"x{number}", f"10.66.{number >> 8}.{number & 255}", labels, node="n2")
        there["metadata"]["name"] = there["metadata"]["name"].replace("n1-", "n2-", 1)
        yield there
    yield from map(WORLDS[world], range(policies - 1))
    yield policy("last", selector="all()", ingress=[{"action": "Allow"}], egress=[{"action": "Allow"}])


@dataclass
class Bench:
    """A host with so many policies, and the best microseconds for a packet so far."""

    router: Router
    policies: int
    best: dict[str, float] = field(default_factory=dict)

    def first(self) -> None:
        self.router.forget_connections()
        self._time("first", [frame(Packet(WEB, API, 6, 1024 + number, 80), b"calico00") for number in range(PACKETS)])

    def later(self) -> None:
        self.router.forget_connections()
        self.router.send([Packet(WEB, API, 6, 1024, 80), Packet(API, WEB, 6, 80, 1024, 0x12)])
        self._time("later", [frame(Packet(WEB, API, 6, 1024, 80, 0x10), b"calico00")] * PACKETS)

    def _time(self, what: str, frames: Sequence[bytes]) -> None:
        """The kernel forwards a frame in the context of the sender, so the sender's CPU time is the packet's."""
        handle = self.router.socket_of("caliweb")
        start = time.process_time()
        for data in frames:
            handle.send(data)
        taken = (time.process_time() - start) / len(frames) * 1e6
        self.best[what] = min(taken, self.best.get(what, taken))


def host(stack: ExitStack, world: str, policies: int) -> Bench:
    """Its namespaces and its table are there until the stack is left."""
    router = stack.enter_context(Router(f"bp{policies}", {"caliweb": (WEB,), "caliapi": (API,)}))
    engine = PolicyEngine("n1")
    for document in documents(world, policies):
        key, value = typed(document)
        engine.on_update(key, None, value)
    table = in_namespace(router.name, Table)
    stack.callback(table.close)
    table.apply(engine.compile())
    if not router.send([Packet(WEB, API)])[0]:
        raise RuntimeError(f"world {world!r} with {policies} policies does not let the packet through")
    return Bench(router, policies)


def measure(report: Report, world: str, sizes: Sequence[int]) -> None:
    with ExitStack() as stack:
        benches = [host(stack, world, size) for size in sizes]
        for _ in range(ROUNDS):
            for bench in benches:
                bench.first()
                bench.later()
    least = benches[0].best
    for bench in benches:
        report.add(world=world, policies=bench.policies, new_connection_us=bench.best["first"],
                   ratio=bench.best["first"] / least["first"], established_us=bench.best["later"],
                   established_ratio=bench.best["later"] / least["later"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="1,10,100,1000", help="how many policies, comma separated")
    parser.add_argument("--worlds", default=",".join(WORLDS), help="of: " + ", ".join(WORLDS))
    given = parser.parse_args()
    report = Report("policy-packets", "One forwarded packet between two local endpoints, all policies select both")
    for world in given.worlds.split(","):
        measure(report, world, [int(size) for size in given.sizes.split(",")])
    report.finish()


if __name__ == "__main__":
    main()
