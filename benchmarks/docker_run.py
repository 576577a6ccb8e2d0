"""``docker run --rm`` on a Calico network and on Docker's own user bridge, in turns, on a lab host; memory after it.

    sudo python -m benchmarks.docker_run [RUNS]        (default 40 of each at concurrency 1, three times as many at 10)
"""
from __future__ import annotations

import itertools
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from benchmarks.report import Report, percentile
from tests.lab import lab as labs
from tests.lab import state
from tests.lab.lab import Lab
from tests.lab.services import PARTS
from tests.lab.spec import LabSpec

CREATE = ("docker", "network", "create")
NETWORKS = {"calico": ("cal_bench", "--driver", "calico", "--ipam-driver", "calico-ipam"), "bridge": ("bridge_bench",)}
CONCURRENCIES = (1, 10)
_numbers = itertools.count()


def once(lab: Lab, network: str) -> float:
    """Milliseconds of one ``docker run --rm``, as its user waits for it."""
    words = ("docker", "run", "--rm", "--name", f"bench{next(_numbers)}", "--net", network, "busybox", "true")
    began = time.monotonic()
    lab["host1"].run(*words)
    return (time.monotonic() - began) * 1000


def measure(lab: Lab, runs: int, concurrency: int) -> dict[str, list[float]]:
    """Times for each kind of network; batches in turns, so that a busy moment of the machine hits all kinds."""
    found: dict[str, list[float]] = {kind: [] for kind in NETWORKS}
    with ThreadPoolExecutor(max_workers=concurrency) as pool:
        for _ in range(runs if concurrency == 1 else 3 * runs // concurrency):
            for kind, (name, *_rest) in NETWORKS.items():
                found[kind] += pool.map(lambda _, name=name: once(lab, name), range(concurrency))
    return found


def memory(lab: Lab, part: str) -> float:
    """Megabytes of all processes of a part (proportional set size: shared pages count once)."""
    total = 0
    for process in lab.node("host1").part(part):
        with open(f"/proc/{process.pid}/smaps_rollup", encoding="ascii") as lines:
            total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def main() -> None:
    """Build a lab, measure, print."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    own = state.claim_free("bench")
    try:
        lab = labs.up(LabSpec(own.name), print)
        for host in lab.hosts:
            lab.node(host).run()
        for name, *options in NETWORKS.values():
            lab["host1"].run(*CREATE, *options, name)
        report = Report("docker_run", "docker run --rm, ms")
        for concurrency in CONCURRENCIES:
            print(f"concurrency {concurrency}", flush=True)
            times = measure(lab, runs, concurrency)
            base = percentile(times["bridge"], 50)
            for kind, values in times.items():
                report.add(network=kind, concurrency=concurrency, runs=len(values), p50=percentile(values, 50),
                           p99=percentile(values, 99), of_bridge=percentile(values, 50) / base)
        sizes = Report("memory", "memory after it, MB (proportional)")
        for part in PARTS:
            sizes.add(part=part, processes=len(lab.node("host1").part(part)), mb=memory(lab, part))
        report.finish()
        sizes.finish()
    finally:
        state.clear(own.name, keep_logs=False)


if __name__ == "__main__":
    main()
