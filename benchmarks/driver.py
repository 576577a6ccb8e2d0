"""Latency of the driver's calls and of a container's whole life, as Docker sees them: over the real unix sockets, at
concurrency 1, 10, 50.

Runs in a network namespace of its own with a real etcd, the real driver and (unless ``--agent stand-in``) the real
agent, so that the life includes policy and route. A life is RequestAddress, CreateEndpoint, Join, EndpointOperInfo,
Leave, DeleteEndpoint, ReleaseAddress.

    sudo python -m benchmarks.driver [--agent real|stand-in] [--lives 200]
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.report import Report, percentile
from calico_plugin.datastore.etcd import connect
from calico_plugin.datastore.kv import KV
from calico_plugin.deadline import Deadline
from calico_plugin.model import codec, keys, names
from calico_plugin.model.docker import NetworkRecord
from calico_plugin.model.resources import IPPool, Metadata, Node, Profile, Rule
from calico_plugin.model.resources.ipam import IPPoolSpec
from calico_plugin.model.resources.policy import EntityRule, ProfileSpec
from tests.etcd_server import etcd_cluster

# A whole life of the original Go plugin on a machine like this one (p50, ms): an order of magnitude to compare with,
# not a measurement of today.
ORIGINAL = {1: 39.0, 10: 166.0, 50: 758.0}
NODE, NETWORK = "bench-host", "a" * 64
CALLS = ("RequestAddress", "CreateEndpoint", "Join", "EndpointOperInfo", "Leave", "DeleteEndpoint", "ReleaseAddress")
_CLONE_NEWNET = 0x40000000


class Client:
    """Calls as dockerd makes them, with little work of our own: what is measured is the driver."""

    def __init__(self, plugins: Path) -> None:
        self._paths = {"Network": str(plugins / "calico.sock"), "Ipam": str(plugins / "calico-ipam.sock")}

    def call(self, method: str, members: dict[str, Any]) -> dict[str, Any]:
        body = json.dumps(members).encode() + b"\n"
        head = (
            f"POST /{method} HTTP/1.1\r\nHost: plugin.moby.localhost\r\nUser-Agent: Go-http-client/1.1\r\n"
            f"Content-Length: {len(body)}\r\nAccept: application/vnd.docker.plugins.v1.2+json\r\n\r\n"
        )
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(self._paths["Ipam" if method.startswith("Ipam") else "Network"])
            connection.sendall(head.encode() + body)
            answer = b""
            while part := connection.recv(65536):
                answer += part
        top, _, data = answer.partition(b"\r\n\r\n")
        if b" 200 " not in top[:20]:
            raise RuntimeError(f"{method}: {data.decode()}")
        decoded: dict[str, Any] = json.loads(data)
        return decoded


def life(client: Client, endpoint: str, times: dict[str, list[float]]) -> None:
    """One container's life; adds the milliseconds of each call and of the whole."""
    ids = {"NetworkID": NETWORK, "EndpointID": endpoint}
    begun = time.perf_counter()

    def timed(method: str, members: dict[str, Any]) -> dict[str, Any]:
        started = time.perf_counter()
        answer = client.call(method, members)
        times[method.partition(".")[2]].append((time.perf_counter() - started) * 1000)
        return answer

    address = timed("IpamDriver.RequestAddress", {"PoolID": "CalicoPoolIPv4", "Address": "", "Options": None})[
        "Address"
    ]
    interface = {"Address": address, "AddressIPv6": "", "MacAddress": ""}
    timed("NetworkDriver.CreateEndpoint", {**ids, "Interface": interface, "Options": {}})
    timed("NetworkDriver.Join", {**ids, "SandboxKey": f"/var/run/docker/netns/{endpoint[:12]}", "Options": {}})
    timed("NetworkDriver.EndpointOperInfo", ids)
    middle = time.perf_counter()
    timed("NetworkDriver.Leave", ids)
    timed("NetworkDriver.DeleteEndpoint", ids)
    timed("IpamDriver.ReleaseAddress", {"PoolID": "CalicoPoolIPv4", "Address": address.partition("/")[0]})
    ended = time.perf_counter()
    times["start"].append((middle - begun) * 1000)
    times["stop"].append((ended - middle) * 1000)
    times["whole life"].append((ended - begun) * 1000)


def measure(client: Client, concurrency: int, lives: int, prefix: str) -> tuple[dict[str, list[float]], float]:
    """Times of each call, and lives a second."""
    times: dict[str, list[float]] = {name: [] for name in (*CALLS, "start", "stop", "whole life")}
    numbers = iter(range(lives))
    lock, errors = threading.Lock(), list[BaseException]()

    def caller() -> None:
        while True:
            with lock:
                number = next(numbers, None)
            if number is None or errors:
                return
            try:
                life(client, f"{prefix}{number:09x}".ljust(64, "0"), times)
            except BaseException as error:
                errors.append(error)

    started = time.perf_counter()
    callers = [threading.Thread(target=caller) for _ in range(concurrency)]
    for one in callers:
        one.start()
    for one in callers:
        one.join()
    if errors:
        raise errors[0]
    return times, lives / (time.perf_counter() - started)


def fill(kv: KV) -> None:
    """What calico-node, Docker and the agent would have stored before the first container."""
    label = names.network_label("bench")
    profile = Profile(
        metadata=Metadata(name="bench"),
        spec=ProfileSpec(
            ingress=(Rule(action="Allow", source=EntityRule(selector=f"has({label})")),),
            egress=(Rule(action="Allow"),),
            labels_to_apply={label: ""},
        ),
    )
    pool = IPPool(metadata=Metadata(name="pool"), spec=IPPoolSpec(cidr="10.99.0.0/16", node_selector="all()"))
    for resource in (Node(metadata=Metadata(name=NODE)), pool, profile):
        kv.put(keys.resource(resource.kind, resource.name), codec.encode(resource), Deadline(5))
    record = NetworkRecord(network_id=NETWORK, name="bench", profile="bench", pools4=("0.0.0.0/0",), created_on=NODE)
    kv.put(keys.network(NETWORK), codec.encode(record), Deadline(5))


def own_namespace() -> None:
    """This process, and all that it starts, get a network of their own."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "a network namespace cannot be made: run this as root")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    # A default route, as a host has: proxy ARP and the agent rely on one.
    subprocess.run(
        "ip link add up0 type veth peer name up1 && ip link set up0 up && ip link set up1 up && "
        "ip addr add 10.98.0.2/24 dev up0 && ip route add default via 10.98.0.1",
        shell=True,
        check=True,
    )
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")


def start(stack: ExitStack, command: list[str], environ: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as out:
        process = subprocess.Popen(command, env={"PATH": os.environ["PATH"], **environ}, stdout=out, stderr=out)

    def stop() -> None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    stack.callback(stop)
    return process


def await_ready(base: Path, client: Client, agent: str) -> None:
    over = time.monotonic() + 30
    while True:
        try:
            client.call("Plugin.Activate", {})
            life(client, "f" * 64, {name: [] for name in (*CALLS, "start", "stop", "whole life")})
            return
        except (OSError, RuntimeError) as error:
            if time.monotonic() > over:
                logs = "\n".join(f"{path}: {path.read_text()[-1500:]}" for path in base.glob("*.log"))
                raise SystemExit(f"driver or agent ({agent}) does not work: {error}\n{logs}") from error
            time.sleep(0.2)


def memory(process: subprocess.Popen[bytes]) -> tuple[float, float]:
    """(resident, proportional) megabytes of a process and its children."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    resident = proportional = 0
    for pid in (str(process.pid), *children):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            name, _, value = line.partition(":")
            resident += int(value.split()[0]) if name == "Rss" else 0
            proportional += int(value.split()[0]) if name == "Pss" else 0
    return resident / 1024, proportional / 1024


def cpu(process: subprocess.Popen[bytes]) -> float:
    """Milliseconds of processor time that a process and its children have used: tells more than wall time on a busy
    machine.
    """
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ticks = 0
    for pid in (str(process.pid), *children):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks * 1000 / os.sysconf("SC_CLK_TCK")


def stand_in(url: str, run_dir: Path) -> None:
    """The stand-in agent, as a process of its own."""
    from tests.kernel.driverlab import StandInAgent

    StandInAgent(connect([url]), run_dir, NODE)
    signal.pause()


def run(arguments: argparse.Namespace) -> None:
    own_namespace()
    with ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-driver-")))
        for name in ("etcd", "run", "lib", "log", "plugins"):
            (base / name).mkdir()
        url = stack.enter_context(etcd_cluster(base / "etcd")).endpoints[0]
        fill(connect([url]))
        environ = environment(base, url)
        scripts = Path(sys.executable).parent
        standing_in = [sys.executable, "-m", "benchmarks.driver", "--stand-in", url, str(base / "run")]
        command = [str(scripts / "calico-agent")] if arguments.agent == "real" else standing_in
        agent = start(stack, command, environ, base / "agent.log")
        driver = start(stack, [str(scripts / "calico-driver")], environ, base / "driver.log")
        client = Client(base / "plugins")
        await_ready(base, client, arguments.agent)
        report = Report("driver", f"Driver calls and a container's whole life, in ms (agent: {arguments.agent})")
        for index, concurrency in enumerate(arguments.concurrency):
            # The first lives warm up threads and connections.
            measure(client, concurrency, max(10, concurrency), f"d{index}")
            lives = max(arguments.lives, concurrency * 6)
            before = [cpu(one) for one in (driver, agent)]
            times, rate = measure(client, concurrency, lives, f"c{index}")
            spent = [(cpu(one) - was) / lives for one, was in zip((driver, agent), before)]
            add_lives(report, concurrency, times, rate, dict(zip(("driver", "agent"), spent)))
        resident, proportional = memory(driver)
        report.add(call="memory of the driver, MB (p50: resident, p99: proportional)", p50=resident, p99=proportional)
        report.finish()


def environment(base: Path, url: str) -> dict[str, str]:
    return {
        "ETCD_ENDPOINTS": url,
        "NODENAME": NODE,
        "CALICO_RUN_DIR": str(base / "run"),
        "CALICO_LIB_DIR": str(base / "lib"),
        "CALICO_LOG_DIR": str(base / "log"),
        "CALICO_PLUGIN_DIR": str(base / "plugins"),
        "CALICO_LOG_LEVEL": "warning",
        "DOCKER_HOST": f"unix://{base}/no-docker.sock",
    }


def add_lives(
    report: Report, concurrency: int, times: dict[str, list[float]], rate: float, spent: dict[str, float]
) -> None:
    """Rows of one concurrency; the original is compared with in the row of the whole life."""
    for name, values in times.items():
        row: dict[str, object] = {"concurrency": concurrency, "call": name, "p50": percentile(values, 50)}
        row |= {"p99": percentile(values, 99), "count": len(values), "ratio": "", "original": "", "per_second": ""}
        if name == "whole life":
            row["per_second"] = rate
            if concurrency in ORIGINAL:
                row |= {"ratio": percentile(values, 50) / ORIGINAL[concurrency], "original": ORIGINAL[concurrency]}
        report.add(**row)
    for name, milliseconds in spent.items():
        report.add(concurrency=concurrency, call=f"processor time of the {name}, each life", p50=milliseconds)


def main() -> None:
    if sys.argv[1:2] == ["--stand-in"]:
        stand_in(sys.argv[2], Path(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agent", choices=("real", "stand-in"), default="real")
    parser.add_argument(
        "--lives", type=int, default=200, help="lives at each concurrency, at least six for each caller"
    )
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 10, 50])
    run(parser.parse_args())


if __name__ == "__main__":
    main()
