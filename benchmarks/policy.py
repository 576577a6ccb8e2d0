"""How fast policy follows the cluster: real etcd, the real agent, real packets, in network namespaces of their own.

* a policy edited in etcd -> the first packet that passes, or does not any more;
* an endpoint's label changed in etcd -> the kernel's sets;
* a WorkloadEndpoint written to etcd, its link being there -> its packets pass in both directions, and its status file;
* start of the agent without a table, and again with one -> in sync, first pass done, all local endpoints up;
* memory, processor time when nothing changes, size of the table.

Time begins before the write to etcd (without fsync). Beside each figure stands what the original Felix (nftables) did
on a machine of this kind.

    sudo python -m benchmarks.policy [--sizes 2x1,10000x1000] [--samples 30]
"""

from __future__ import annotations

import argparse
import re
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from ipaddress import ip_address
from multiprocessing import get_context
from pathlib import Path
from typing import Callable, Iterable, Mapping, Sequence

import msgspec

from benchmarks.containers import Container, Way, await_running, create
from benchmarks.driver import memory, own_namespace, start
from benchmarks.policy_world import LOCAL, NODE, ROLES, Document, address, endpoint, interface, policy, world
from benchmarks.report import Report, percentile
from calico_plugin.dataplane import nfdump, nfwire
from calico_plugin.dataplane.netlink import NETLINK_NETFILTER, Netlink
from calico_plugin.datastore.etcd import EtcdKV, connect
from calico_plugin.datastore.kv import Put
from calico_plugin.deadline import Deadline
from calico_plugin.model import codec, keys, names
from calico_plugin.model.resources import KINDS, Resource
from tests.etcd_server import etcd_cluster

EDIT, LABEL, FIRST = "policy edit -> on the wire", "label change -> sets", "endpoint written -> first packet"
# Felix, by size of the cluster: (lowest, highest) in ms, or in the unit of the row's name.
SMALL: Mapping[str, tuple[float, float]] = {EDIT: (9, 16), LABEL: (10, 30), FIRST: (36, 36)}
LARGE: Mapping[str, tuple[float, float]] = {
    EDIT: (30, 35), LABEL: (130, 130), FIRST: (772, 772), "start -> in sync, s": (2.8, 2.8),
    "start -> all local endpoints up, s": (5.9, 5.9), "memory (resident), MB": (147, 147), "idle processor, %": (2, 2),
    "rules": (35194, 35194), "chains": (2681, 2681),
}
GOALS: Mapping[str, Mapping[str, float]] = {
    "small": {EDIT: 9, LABEL: 10, FIRST: 15},
    "large": {
        EDIT: 15, LABEL: 65, FIRST: 40, "start -> all local endpoints up, s": 10, "memory (resident), MB": 150,
        "idle processor, %": 2,
    },
}
# Of processor time of the loop, for a single change, in ms.
PROCESSOR_GOAL = 5.0
# The agent looks at old connections a moment after a change: that work shall not meet the next change.
PAUSE = 0.4
IDLE_SECONDS = 10.0
_SOL_NETLINK, _ADD_MEMBERSHIP, _GROUP_NFTABLES, _SO_RCVBUFFORCE = 270, 1, 7, 33
_CHANGED_ELEMENTS = {(10 << 8) | 12, (10 << 8) | 14}


class Host:
    """etcd, our node's links and its agent; `size` endpoints and policies."""

    def __init__(self, stack: ExitStack, base: Path, endpoints: int, policies: int) -> None:
        self.endpoints, self.policies, self.base, self._stack = endpoints, policies, base, stack
        cluster = stack.enter_context(etcd_cluster(base / "etcd"))
        self.kv = connect(cluster.endpoints)
        self._environ = {
            "ETCD_ENDPOINTS": cluster.endpoints[0], "NODENAME": NODE, "CALICO_RUN_DIR": str(base / "run"),
            "CALICO_LIB_DIR": str(base / "lib"), "CALICO_LOG_DIR": str(base / "log"), "CALICO_LOG_LEVEL": "info",
            "CALICO_NETWORKING_BACKEND": "none", "DOCKER_HOST": f"unix://{base}/no-docker.sock",
        }
        self.links = Netlink()
        self.local = min(LOCAL, endpoints)
        fill(self.kv, world(endpoints, policies))
        self.containers = [self.container(number) for number in range(self.local)]
        await_running(self.links, self.containers)

    def container(self, number: int) -> Container:
        made = create(self.links, interface(number), address(number))
        self._stack.callback(made.close)
        return made

    def put(self, document: Document) -> None:
        key, value = encoded(document)
        self.kv.put(key, value, Deadline(20))

    def is_up(self, number: int) -> bool:
        name = names.endpoint_status_file(f"e{number}")
        return (self.base / "run/endpoint-status" / name).exists()

    def start(self, log: str) -> tuple[subprocess.Popen[bytes], dict[str, float]]:
        """The agent, and seconds until it is in sync, until its first pass is done, until all endpoints are up."""
        text, began = self.base / log, time.perf_counter()
        process = start(self._stack, [sys.executable, "-m", "calico_plugin.agent.main"], self._environ, text)

        def when(what: str, happened: Callable[[], bool]) -> float:
            while not happened():
                if time.perf_counter() - began > 120 or process.poll() is not None:
                    state = f"exit status {process.poll()}, None while it runs"
                    raise TimeoutError(f"{what} does not happen ({state}):\n{text.read_text()[-3000:]}")
                time.sleep(0.01)
            return time.perf_counter() - began

        return process, {
            "in sync": when("in sync", lambda: "in sync with the datastore" in text.read_text()),
            "first pass done": when("first pass", lambda: "the first pass is done" in text.read_text()),
            "all local endpoints up": when("endpoints up", lambda: all(map(self.is_up, range(self.local)))),
        }


def fill(kv: EtcdKV, documents: Iterable[Document]) -> None:
    puts = [Put(*encoded(document)) for document in documents]
    for begin in range(0, len(puts), 100):
        kv.commit((), puts[begin:begin + 100], Deadline(60))


def encoded(document: Document) -> tuple[str, bytes]:
    value: Resource = msgspec.convert(document, KINDS[document["kind"]].type)
    return keys.resource(value.kind, value.name, value.namespace), codec.encode(value)


Spent = tuple[float, float]
"""Processor time of the agent's loop, which is its first thread, and of all its threads."""


def processor_seconds(process: subprocess.Popen[bytes]) -> Spent:
    """So far, exactly."""
    threads = Path(f"/proc/{process.pid}/task").iterdir()
    found = {thread.name: int((thread / "schedstat").read_text().split()[0]) / 1e9 for thread in threads}
    return found[str(process.pid)], sum(found.values())


class Processor:
    """Processor time from now on; what the agent uses when nothing changes is known and left out."""

    def __init__(self, process: subprocess.Popen[bytes], idle: Spent = (0.0, 0.0)) -> None:
        self._process, self._idle = process, idle
        self._began, self._used = time.perf_counter(), processor_seconds(process)

    def spent(self, changes: int) -> Spent:
        """Milliseconds for each of so many changes."""
        passed, now = time.perf_counter() - self._began, processor_seconds(self._process)
        loop, whole = ((end - begin - passed * idle) * 1e3 / changes
                       for end, begin, idle in zip(now, self._used, self._idle))
        return loop, whole


class Elements:
    """What the kernel tells of changed elements of nftables' sets, from the moment when this is made."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 16 << 20)
        self._socket.bind((0, 0))
        self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _GROUP_NFTABLES)
        self._socket.settimeout(30.0)

    def changed(self, text: str) -> float:
        """When an element of this address is told."""
        wanted = ip_address(text).packed
        while True:
            data = self._socket.recv(1 << 18)
            if int.from_bytes(data[4:6], sys.byteorder) in _CHANGED_ELEMENTS and wanted in data:
                return time.perf_counter()

    def close(self) -> None:
        self._socket.close()


_TITLE = "From a change in etcd to its effect, in ms; processor time that loop and whole agent spend on it"


class Rows:
    """Of one size, for both tables: times of changes, and everything of which there is one figure."""

    def __init__(self, endpoints: int, policies: int) -> None:
        self.size, self.name = f"{endpoints}x{policies}", "small" if endpoints < 100 else "large"
        self.changes = Report("policy", _TITLE)
        self.agent = Report("policy-agent", "The agent itself")

    def add(self, what: str, times: Sequence[float], spent: Spent | None = None) -> None:
        """`what`, with anything in parentheses, is the row; what stands before them is looked up."""
        p50, goal, felix = percentile(times, 50), *self._known(what)
        loop, whole = spent or ("", "")
        self.changes.add(
            size=self.size, what=what, p50=p50, p99=percentile(times, 99), count=len(times),
            felix=_range(felix), ratio=p50 / felix[0] if felix else "", goal=goal or "", met=_met(p50, goal),
            loop_ms=loop, under_5=_met(loop, PROCESSOR_GOAL) if isinstance(loop, float) else "", agent_ms=whole,
        )

    def one(self, what: str, value: float) -> None:
        goal, felix = self._known(what)
        self.agent.add(
            size=self.size, what=what, ours=value, felix=_range(felix), ratio=value / felix[0] if felix else "",
            goal=goal or "", met=_met(value, goal))

    def _known(self, what: str) -> tuple[float | None, tuple[float, float] | None]:
        plain = what.partition(" (of")[0]
        felix = SMALL if self.name == "small" else LARGE
        return GOALS[self.name].get(plain), felix.get(plain)


def _range(felix: tuple[float, float] | None) -> str:
    return "" if felix is None else f"{felix[0]:g}" if felix[0] == felix[1] else f"{felix[0]:g} - {felix[1]:g}"


def _met(value: float, goal: float | None) -> str:
    return "" if goal is None else "yes" if value <= goal else "NO"


def edits(host: Host, samples: int) -> Iterable[tuple[str, float]]:
    """The first rule of the policy that governs endpoint 1 denies, and allows again."""
    way = Way(host.containers[0], host.containers[1])
    for number in range(samples):
        for action, effect in (("Deny", way.closed), ("Allow", way.opened)):
            began = time.perf_counter()
            host.put(policy(0, action))
            yield action, (effect() - began) * 1e3
            time.sleep(PAUSE)


def processor_of_edits(host: Host, process: subprocess.Popen[bytes], idle: Spent, samples: int) -> Spent:
    """Without the packets, whose connections the agent would look at."""
    used = Processor(process, idle)
    for number in range(samples):
        host.put(policy(0, ("Deny", "Allow")[number % 2]))
        time.sleep(PAUSE)
    return used.spent(samples)


def forget_connections() -> None:
    subprocess.run(["conntrack", "-F"], check=True, capture_output=True)


def label_changes(host: Host, numbers: Sequence[int], samples: int) -> Iterable[float]:
    """One endpoint after the other joins the application of endpoint 1, and goes back."""
    elements = Elements()
    for number in range(samples):
        chosen = numbers[number // 2 % len(numbers)]
        began = time.perf_counter()
        host.put(endpoint(chosen, 1 if number % 2 == 0 else None))
        yield (elements.changed(address(chosen)) - began) * 1e3
        time.sleep(PAUSE)
    elements.close()


def processor_of_labels(
    host: Host, process: subprocess.Popen[bytes], idle: Spent, samples: int, label: str, values: tuple[str, str]
) -> Spent:
    """Of changes of one label of an endpoint of this host."""
    document = endpoint(0)
    used = Processor(process, idle)
    for number in range(samples):
        document["metadata"]["labels"][label] = values[number % 2]
        host.put(document)
        time.sleep(PAUSE)
    return used.spent(samples)


def first_packets(host: Host, samples: int) -> Iterable[tuple[float, float]]:
    """(until packets pass both ways, until the status file is there) of new endpoints."""
    for number in range(samples):
        chosen = host.endpoints + 1000 + number
        made = host.container(chosen)
        await_running(host.links, [made])
        ways = [Way(made, host.containers[1]), Way(host.containers[1], made)]
        assert not any(way.passes(0.01) for way in ways)
        began = time.perf_counter()
        host.put(endpoint(chosen, 1, local=True))
        passes = max(way.opened() for way in ways)
        while not host.is_up(chosen):
            time.sleep(0.0005)
        yield (passes - began) * 1e3, (time.perf_counter() - began) * 1e3
        time.sleep(PAUSE)


def measure_changes(host: Host, rows: Rows, process: subprocess.Popen[bytes], idle: Spent, samples: int) -> None:
    found = list(edits(host, samples))
    forget_connections()
    rows.add(EDIT, [value for _, value in found], processor_of_edits(host, process, idle, samples))
    for action in ("Deny", "Allow"):
        rows.add(f"{EDIT} (of these: {action})", [value for done, value in found if done == action])
    remote = range(LOCAL + 50, host.endpoints, 100)
    for place, numbers in {"local": range(0, host.local, 100), **({"remote": remote} if remote else {})}.items():
        used = Processor(process, idle)
        times = list(label_changes(host, numbers, samples))
        rows.add(f"{LABEL} (of a {place} endpoint)", times, used.spent(samples))
    for what, label, values in (("that no selector names", "build", ("1", "2")), ("that some name", "role", ROLES[:2])):
        loop, whole = processor_of_labels(host, process, idle, samples, label, values)
        rows.one(f"processor of a local label {what}: loop, ms", loop)
        rows.one(f"processor of a local label {what}: agent, ms", whole)
    used = Processor(process, idle)
    pairs = list(first_packets(host, samples))
    rows.add(FIRST, [passes for passes, _ in pairs], used.spent(samples))
    rows.add("endpoint written -> status file", [there for _, there in pairs])


def measure_start(host: Host, rows: Rows) -> tuple[subprocess.Popen[bytes], Spent]:
    """A start without a table, one with it; then what the agent takes when nothing happens. The agent, and that."""
    process, times = host.start("agent.log")
    for what, seconds in times.items():
        rows.one(f"start -> {what}, s", seconds)
    rows.one("processor of the start, s", processor_seconds(process)[1])
    process.terminate()
    process.wait(30)
    process, times = host.start("again.log")
    rows.one("start again -> first pass done, s", times["first pass done"])
    time.sleep(3.0)
    used = Processor(process)
    time.sleep(IDLE_SECONDS)
    loop, whole = used.spent(1)
    rows.one("idle processor, %", whole / IDLE_SECONDS / 10)
    return process, (loop / IDLE_SECONDS / 1e3, whole / IDLE_SECONDS / 1e3)


def measure_size(rows: Rows, process: subprocess.Popen[bytes]) -> None:
    resident, proportional = memory(process)
    rows.one("memory (resident), MB", resident)
    rows.one("memory (proportional), MB", proportional)
    peak = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())
    rows.one("memory (most), MB", int(peak[1]) / 1024 if peak else 0.0)
    link = nfwire.Link()
    state = nfdump.read(link)
    link.close()
    rows.one("rules", sum(len(getattr(chain, "comments", ())) for chain in state.chains.values()))
    rows.one("chains", len(state.chains))
    rows.one("sets", len(state.sets))
    rows.one("members of sets", sum(len(item.members) for item in state.sets.values()))


def run_size(endpoints: int, policies: int, samples: int) -> Rows:
    """In a process of its own: threads of gRPC would stay in the namespace of an earlier size."""
    own_namespace()
    rows = Rows(endpoints, policies)
    with ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-policy-")))
        for name in ("etcd", "run", "lib", "log"):
            (base / name).mkdir()
        host = Host(stack, base, endpoints, policies)
        process, idle = measure_start(host, rows)
        measure_changes(host, rows, process, idle, samples)
        measure_size(rows, process)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="2x1,10000x1000", help="endpoints x policies, comma separated")
    parser.add_argument("--samples", type=int, default=30, help="changes of each sort")
    arguments = parser.parse_args()
    sizes = [tuple(map(int, size.split("x"))) for size in arguments.sizes.split(",")]
    changes, agent = Rows(0, 0).changes, Rows(0, 0).agent
    for endpoints, policies in sizes:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            rows = pool.submit(run_size, endpoints, policies, arguments.samples).result()
        changes.rows += rows.changes.rows
        agent.rows += rows.agent.rows
    changes.finish()
    agent.finish()


if __name__ == "__main__":
    main()
