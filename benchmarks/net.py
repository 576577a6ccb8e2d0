"""TCP throughput and request rate, container to container: Calico, Docker's bridge, and a bare routed veth.

    sudo python -m benchmarks.net [SECONDS]        (default 2 for each measurement, seven rounds in turns)

On one host and across two. The bare routed veth is the best that a routed network can do on this kernel: a namespace on
each side, static routes, no firewall of ours. Ratios count, not the figures: all is on one machine.
"""
from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Sequence

from benchmarks.report import Report
from tests.lab import lab as labs
from tests.lab import state
from tests.lab.connectivity import Container, start_container
from tests.lab.lab import Lab
from tests.lab.spec import LabSpec
from tests.lab.wait import wait_for

REQUESTS = Path(__file__).with_name("request_rate.py")
ROUNDS = 7


@dataclass(frozen=True)
class End:
    """A network namespace with an address: ``enter`` is the command line that gets there."""

    enter: tuple[str, ...]
    address: str


def bare_end(lab: Lab, host: str, name: str, address: str) -> End:
    """A namespace on a host, joined by a veth and a route, as any routed container network does at the least."""
    machine = lab[host]
    machine.shell(f"""
        ip netns add {name}
        ip link add {name} type veth peer name eth0 netns {name}
        ip link set {name} up
        echo 1 > /proc/sys/net/ipv4/conf/{name}/proxy_arp
        ip route add {address}/32 dev {name}
        ip -n {name} link set lo up
        ip -n {name} link set eth0 up
        ip -n {name} address add {address}/32 dev eth0
        ip -n {name} route add 169.254.1.1 dev eth0
        ip -n {name} route add default via 169.254.1.1
        iptables -I FORWARD -i {name} -j ACCEPT
        iptables -I FORWARD -o {name} -j ACCEPT
        echo 0 > /proc/sys/net/ipv4/neigh/{name}/proxy_delay""")
    return End(("nsenter", f"--net=/proc/{machine.init.pid}/root/run/netns/{name}", "--"), address)


def container_end(container: Container) -> End:
    """A container's namespace."""
    return End(tuple(container.inside()), container.address())


def throughput(client: End, server: End, seconds: int) -> float:
    """Gbit/s of one TCP stream."""
    words = ("iperf3", "-s", "-1", "--forceflush")
    listener = subprocess.Popen([*server.enter, *words], stdout=subprocess.PIPE, text=True)
    assert listener.stdout is not None
    while "listening" not in (said := listener.stdout.readline()):
        assert said, "iperf3 -s ended at once"
    said = subprocess.run([*client.enter, "iperf3", "-J", "-t", str(seconds), "-c", server.address], check=True,
                          capture_output=True, text=True, timeout=seconds + 30).stdout
    listener.communicate(timeout=10)
    return json.loads(said)["end"]["sum_received"]["bits_per_second"] / 1e9


def request_rate(client: End, server: End, seconds: int) -> float:
    """Requests of one byte, each answered before the next, a second."""
    python = ["/usr/bin/python3", "-I", str(REQUESTS)]
    listener = subprocess.Popen([*server.enter, *python, "server"], stdout=subprocess.PIPE, text=True)
    assert listener.stdout is not None
    listener.stdout.readline()
    said = subprocess.run([*client.enter, *python, "client", server.address, str(seconds)], check=True,
                          capture_output=True, text=True, timeout=seconds + 30).stdout
    listener.communicate(timeout=10)
    return float(said)


def pairs(lab: Lab) -> dict[tuple[str, str], tuple[End, End]]:
    """What is compared: (where, kind) -> client and server."""
    lab["host1"].run("docker", "network", "create", "--driver", "calico", "--ipam-driver", "calico-ipam", "cal_bench")
    lab["host1"].run("docker", "network", "create", "bridge_bench")
    a, b = (container_end(start_container(lab, "host1", f"cal-{name}", "cal_bench")) for name in "ab")
    far_container = start_container(lab, "host2", "cal-c", "cal_bench")
    c = container_end(far_container)
    x, y = (container_end(start_container(lab, "host1", f"bridge-{name}", "bridge_bench")) for name in "xy")
    v, w = bare_end(lab, "host1", "bare1", "10.77.0.1"), bare_end(lab, "host1", "bare2", "10.77.0.2")
    z = bare_end(lab, "host2", "bare3", "10.77.1.3")
    lab["host1"].run("ip", "route", "add", "10.77.1.0/24", "via", "172.20.62.105")
    lab["host2"].run("ip", "route", "add", "10.77.0.0/24", "via", "172.20.62.110")
    wait_for("the route to the far container", lambda: Container(lab["host1"], "cal-a").pings(c.address), 20)
    return {("one host", "bare veth"): (v, w), ("one host", "calico"): (a, b), ("one host", "bridge"): (x, y),
            ("two hosts", "bare veth"): (v, z), ("two hosts", "calico"): (a, c)}


def middle(values: Sequence[float]) -> float:
    """The median: a busy moment of the machine counts for nothing."""
    return sorted(values)[len(values) // 2]


def main() -> None:
    """Build a lab, measure in turns, print."""
    seconds = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    own = state.claim_free("bench")
    try:
        lab = labs.up(LabSpec(own.name), print)
        for host in lab.hosts:
            lab.node(host).run()
        ends = pairs(lab)
        gbits: dict[tuple[str, str], list[float]] = {key: [] for key in ends}
        rates: dict[tuple[str, str], list[float]] = {key: [] for key in ends}
        for number in range(ROUNDS):
            print(f"round {number + 1} of {ROUNDS}", flush=True)
            for key, (client, server) in ends.items():
                gbits[key].append(throughput(client, server, seconds))
                rates[key].append(request_rate(client, server, seconds))
        report = Report("net", "TCP between two containers")
        for where, kind in ends:
            gbit, rate = middle(gbits[where, kind]), middle(rates[where, kind])
            report.add(where=where, network=kind, gbit_s=gbit, of_veth=gbit / middle(gbits[where, "bare veth"]),
                       requests_s=rate, requests_of_veth=rate / middle(rates[where, "bare veth"]))
        report.finish()
    finally:
        state.clear(own.name, keep_logs=False)


if __name__ == "__main__":
    main()
