"""The loop when a part of it fails: what is not in force is not told as up, and is tried again."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, Iterable, Iterator, Mapping, Sequence

import pytest

from calico_plugin.agent.labels import Awaited
from calico_plugin.agent.loop import HEALTH_PART, Loop, Stop
from calico_plugin.agent.mailbox import Mailbox
from calico_plugin.agent.policy import Policy
from calico_plugin.agent.ports import PublishedPorts
from calico_plugin.agent.status_files import StatusFiles
from calico_plugin.dataplane.nftables import Applied, Table
from calico_plugin.datastore.etcd import EtcdKV
from calico_plugin.datastore.kv import Change, KeyValue
from calico_plugin.datastore.watch import Changes, Listed
from calico_plugin.errors import DataplaneError
from calico_plugin.model import codec, keys
from calico_plugin.model.desired import Ruleset
from calico_plugin.model.resources import WorkloadEndpoint
from calico_plugin.model.snapshot import Snapshot
from calico_plugin.observe.health import Health
from calico_plugin.observe.metrics import Metrics
from calico_plugin.observe.problems import Problems
from calico_plugin.policy import PolicyEngine
from tests.kernel.agent_host import NODE, AgentHost, enter, wait_until

pytestmark = pytest.mark.root
A, B = "a" * 64, "b" * 64


class WeakTable(Table):
    """A table that refuses while `refusing` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.refusing = False
        self.refused = 0

    def apply(self, ruleset: Ruleset) -> Applied:
        if self.refusing:
            self.refused += 1
            raise DataplaneError("nftables: refused by the test")
        return super().apply(ruleset)


class Deaf:
    """Listeners that do nothing; addresses are forgotten at once when `forget` is given."""

    def routing(self, snapshot: Snapshot) -> None: ...

    def released_addresses(self, addresses: Iterable[str]) -> None: ...

    def hurry(self) -> None: ...

    def felix(self, specs: Sequence[dict[str, Any]]) -> None: ...

    def endpoints(self, up: dict[tuple[str, str, str], bool]) -> None: ...

    def host_endpoints(self, states: Mapping[str, str]) -> None: ...

    def wants_endpoints(self) -> bool:
        return False

    def awaits_labels(self, endpoint: Awaited) -> None: ...

    def needs_no_labels(self, endpoint: str) -> None: ...


class LoopInHost:
    """The loop in a thread of this process that is in the host's namespace."""

    def __init__(self, host: AgentHost) -> None:
        self.mailbox, self.health, self.metrics = Mailbox(), Health(), Metrics(NODE)
        self._host, self._ready = host, threading.Event()
        self.ended: list[bool] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self._ready.wait(10)

    def _run(self) -> None:
        enter(self._host.netns)
        self.table = WeakTable()
        policy = Policy(PolicyEngine(NODE), self.table, self.metrics)
        files = StatusFiles(self._host.run_dir)
        ports = PublishedPorts(self._host.run_dir)
        problems = Problems(self._host.run_dir)
        loop = Loop(NODE, self.mailbox, policy, files, Deaf(), self.metrics, self.health, problems, ports)
        self._ready.set()
        self.ended.append(loop.run())
        loop.close()

    def listed(self, *endpoints: WorkloadEndpoint) -> None:
        items = tuple(item(one) for one in endpoints)
        self.mailbox.put(Listed({keys.RESOURCES: items}, 1))

    def changed(self, endpoint: WorkloadEndpoint) -> None:
        self.mailbox.put(Changes((Change(item(endpoint).key, item(endpoint), 2),)))

    def stop(self, failed: bool = False) -> bool:
        self.mailbox.put(Stop(failed))
        self._thread.join(10)
        return self.ended[0]


def item(endpoint: WorkloadEndpoint) -> KeyValue:
    key = keys.resource(endpoint.kind, endpoint.name, endpoint.namespace)
    return KeyValue(key, codec.encode(endpoint), 1, 1)


@pytest.fixture
def host(tmp_path: Path, etcd: str, kv: EtcdKV) -> Iterator[AgentHost]:
    with AgentHost(tmp_path, etcd, kv) as one:
        yield one


@pytest.fixture
def loop(host: AgentHost) -> Iterator[LoopInHost]:
    one = LoopInHost(host)
    yield one
    if not one.ended:
        one.stop()


def part_is_ready(loop: LoopInHost) -> bool:
    (line,) = (line for line in loop.health.readiness().text.splitlines() if line.startswith(HEALTH_PART))
    return "reporting ready" in line


def test_policy_that_the_kernel_refuses(host: AgentHost, loop: LoopInHost) -> None:
    """No file, no route, not ready while nftables refuses; all of it as soon as it takes the rules."""
    loop.table.refusing = True
    host.add_link(A)
    loop.listed(host.endpoint(A, "10.65.0.1"))
    wait_until("several tries", lambda: loop.table.refused >= 3)
    assert not host.is_up(A) and not any("10.65.0.1" in route for route in host.routes())
    assert not part_is_ready(loop)
    loop.table.refusing = False
    wait_until("the endpoint", lambda: host.is_up(A))
    wait_until("readiness", lambda: part_is_ready(loop))


def test_refusal_leaves_the_others_up(host: AgentHost, loop: LoopInHost) -> None:
    """An endpoint that is up stays so while a new one cannot be policed; the new one waits, link and all."""
    host.add_link(A)
    loop.listed(host.endpoint(A, "10.65.0.1"))
    wait_until("the first endpoint", lambda: host.is_up(A))
    loop.table.refusing = True
    loop.changed(host.endpoint(B, "10.65.0.2"))
    host.add_link(B)
    wait_until("several tries", lambda: loop.table.refused >= 2)
    assert host.is_up(A) and not host.is_up(B)
    loop.table.refusing = False
    wait_until("the second endpoint", lambda: host.is_up(B))


def test_status_directory_that_cannot_be_written(host: AgentHost, loop: LoopInHost) -> None:
    """It is tried again; the endpoint is policed and routed meanwhile."""
    directory = host.run_dir / "endpoint-status"
    wait_until("the directory", directory.exists)
    directory.rmdir()
    directory.write_text("in the way")
    host.add_link(A)
    loop.listed(host.endpoint(A, "10.65.0.1"))
    wait_until("the route", lambda: any("10.65.0.1" in route for route in host.routes()))
    directory.unlink()
    directory.mkdir()
    wait_until("the file", lambda: host.is_up(A))


def test_end_of_a_needed_part_is_a_failure(loop: LoopInHost) -> None:
    """The watch that ends by itself makes the agent end with another exit status than SIGTERM does."""
    assert not loop.stop(failed=True)


def test_meant_end(loop: LoopInHost) -> None:
    """SIGTERM is no failure."""
    assert loop.stop()
