"""What policy costs: from a changed resource to rules in the kernel by size of the cluster, and a packet on the wire.

Runs in network namespaces of its own.

    sudo python -m benchmarks.policy [--sizes 2x1,1000x100,10000x1000]
"""

from __future__ import annotations

import argparse
import random
import resource
import time
from typing import Any, Callable, Mapping

from benchmarks.report import Report, percentile
from calico_plugin.dataplane.nftables import Table
from calico_plugin.policy import PolicyEngine
from tests.kernel.packets import Packet, Router, frame, in_namespace
from tests.unit.policy.worlds import policy, typed

LOCAL = 200
NODE = "n1"
NETWORK = {"kind": "Profile", "metadata": {"name": "net1"}, "spec": {
    "labelsToApply": {"net1": ""}, "ingress": [{"action": "Allow", "source": {"selector": "has(net1)"}}],
    "egress": [{"action": "Allow"}]}}
ROLES = ("web", "api", "db")


class Cluster:
    """Endpoints with a hundred applications; policies from one application to another."""

    def __init__(self, endpoints: int, policies: int) -> None:
        self.rng = random.Random(1)
        self.engine = PolicyEngine(NODE)
        self.documents = [NETWORK, *map(self.policy, range(policies)), *map(self.endpoint, range(endpoints))]

    def endpoint(self, number: int, shift: int = 0) -> dict[str, Any]:
        node = NODE if number < LOCAL else f"n{number % 50 + 2}"
        app, env = f"app{(number + shift) % 100}", "prod" if number % 4 else "dev"
        labels = {"app": app, "role": ROLES[number % 3], "env": env}
        address = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}/32"
        return {
            "kind": "WorkloadEndpoint",
            "metadata": {
                "name": f"{node}-libnetwork-libnetwork-e{number}", "namespace": "libnetwork", "labels": labels,
            },
            "spec": {"node": node, "orchestrator": "libnetwork", "workload": "libnetwork", "endpoint": f"e{number}",
                     "interfaceName": f"cali{number:x}", "ipNetworks": [address], "profiles": ["net1"]},
        }

    def local(self, name: str, address: str) -> dict[str, Any]:
        """An endpoint of this node besides the numbered ones."""
        document = self.endpoint(0)
        document["metadata"]["name"] = f"{NODE}-libnetwork-libnetwork-{name}"
        document["spec"].update(endpoint=name, interfaceName=f"cali{name}", ipNetworks=[f"{address}/32"])
        return document

    def policy(self, number: int) -> dict[str, Any]:
        here, there = (f"app{self.rng.randrange(100)}" for _ in range(2))
        return policy(f"p{number}", order=number, selector=f"app=='{here}'", ingress=[
            {"action": "Allow", "protocol": "TCP", "source": {"selector": f"app=='{there}' && role=='web'"},
             "destination": {"ports": [80 + number % 7, 443]}},
            {"action": "Allow", "source": {"selector": f"app in {{'{there}','{here}'}}"}},
            {"action": "Deny", "source": {"nets": [f"10.9.{number % 250}.0/24"]}}], egress=[{"action": "Allow"}])

    def tell(self, document: Mapping[str, Any]) -> None:
        key, value = typed(document)
        self.engine.on_update(key, None, value)


def timed(work: Callable[[], object]) -> float:
    """Milliseconds."""
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e3


def size_row(report: Report, endpoints: int, policies: int) -> None:
    cluster = Cluster(endpoints, policies)
    with Router("bench-policy", {}) as router:
        table = in_namespace(router.name, Table)
        start = timed(lambda: [cluster.tell(document) for document in cluster.documents])
        start += timed(lambda: table.apply(cluster.engine.compile()))

        def change(make: Callable[[int], Mapping[str, Any]]) -> float:
            times = [timed(lambda: (cluster.tell(document), table.apply(cluster.engine.compile())))
                     for document in map(make, range(20))]
            return percentile(times, 50)

        ruleset = cluster.engine.compile()
        report.add(
            endpoints=endpoints, policies=policies, start_ms=start,
            new_endpoint_ms=change(lambda number: cluster.local(f"new{number}", f"10.200.0.{number}")),
            label_change_ms=change(lambda number: cluster.endpoint(endpoints - 1 - number, 7)),
            policy_edit_ms=change(lambda number: cluster.policy(number % policies)),
            chains=len(ruleset.chains), rules=sum(len(chain.rules) for chain in ruleset.chains.values()),
            sets=len(ruleset.sets), members=sum(len(item.members) for item in ruleset.sets.values()),
            memory_mb=resident(),
        )
        table.close()


def resident() -> float:
    """Of this process now."""
    with open("/proc/self/statm") as handle:
        return int(handle.read().split()[1]) * resource.getpagesize() / 2**20


def packet_row(report: Report, policies: int, packets: int = 4000) -> None:
    """Microseconds for a forwarded packet between two local endpoints: the first of a connection, and later ones."""
    web, api = "10.65.0.10", "10.65.0.20"
    cluster = Cluster(0, 0)
    with Router("bench-policy", {"caliweb": (web,), "caliapi": (api,)}) as router:
        table = in_namespace(router.name, Table)
        cluster.tell(NETWORK)
        cluster.tell(cluster.local("web", web))
        cluster.tell(cluster.local("api", api))
        for number in range(policies - 1):
            net = {"nets": [f"172.16.{number % 250}.0/24"]}
            cluster.tell(policy(f"q{number}", order=number, selector="all()", ingress=[
                {"action": "Allow", "source": net}], egress=[{"action": "Allow", "destination": net}]))
        cluster.tell(policy("last", selector="all()", ingress=[{"action": "Allow"}], egress=[{"action": "Allow"}]))
        table.apply(cluster.engine.compile())
        first = [frame(Packet(web, api, 6, 1024 + number, 80), b"calico00") for number in range(packets)]
        new = per_packet(router, first)
        router.send([Packet(web, api, 6, 1024, 80), Packet(api, web, 6, 80, 1024, 0x12)])
        later = per_packet(router, [frame(Packet(web, api, 6, 1024, 80, 0x10), b"calico00")] * packets)
        report.add(policies=policies, new_connection_us=new, established_us=later)
        table.close()


def per_packet(router: Router, frames: list[bytes]) -> float:
    """The kernel forwards a frame in the context of the sender, so the sender's CPU time is the packet's."""
    handle = router.socket_of("caliweb")
    best = []
    for _ in range(5):
        if len(set(frames)) > 1:
            router.forget_connections()
        start = time.process_time()
        for data in frames:
            handle.send(data)
        best.append((time.process_time() - start) / len(frames) * 1e6)
    return min(best)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="2x1,1000x100,10000x1000", help="endpoints x policies, comma separated")
    sizes = [tuple(map(int, size.split("x"))) for size in parser.parse_args().sizes.split(",")]
    report = Report("policy", "From a changed resource to rules in the kernel (p50)")
    for endpoints, policies in sizes:
        size_row(report, endpoints, policies)
    report.finish()
    wire = Report("policy-packets", "One forwarded packet between two local endpoints, all policies select both")
    for policies in (1, 10, 100, 1000):
        packet_row(wire, policies)
    wire.finish()


if __name__ == "__main__":
    main()
