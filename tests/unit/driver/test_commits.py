"""Writes that arrive together share a transaction, and nobody pays for another's trouble."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from calico_plugin.datastore.kv import Commit
from calico_plugin.deadline import Deadline
from calico_plugin.driver.commits import Commits
from calico_plugin.errors import AlreadyExists, DatastoreUnavailable
from tests.fakes.memory_kv import MemoryKV


class Gate:
    """A KV whose commits wait until they are let through; it counts them."""

    def __init__(self, kv: MemoryKV) -> None:
        self._kv = kv
        self.open = threading.Event()
        self.entered = threading.Event()
        self.commits: list[int] = []
        self.error: Exception | None = None

    def commit(self, compares: Any, operations: Any, deadline: Deadline) -> Commit:
        self.commits.append(len(operations))
        self.entered.set()
        self.open.wait(10)
        if self.error is not None:
            raise self.error
        return self._kv.commit(compares, operations, deadline)

    def get(self, key: str, deadline: Deadline) -> Any:
        return self._kv.get(key, deadline)


class Callers:
    """Calls in threads of their own, with their results or errors by key."""

    def __init__(self, commits: Commits) -> None:
        self._commits, self.threads, self.results = commits, list[threading.Thread](), dict[str, Any]()

    def create(self, key: str) -> None:
        self._start(key, lambda: self._commits.create(key, b"{}", Deadline(10)))

    def delete(self, key: str) -> None:
        self._start(f"-{key}", lambda: self._commits.delete((key,), Deadline(10)))

    def _start(self, name: str, call: Any) -> None:
        def run() -> None:
            try:
                self.results[name] = call()
            except Exception as error:
                self.results[name] = error

        self.threads.append(threading.Thread(target=run))
        self.threads[-1].start()

    def join(self) -> None:
        for thread in self.threads:
            thread.join(10)


@pytest.fixture
def gate() -> Gate:
    return Gate(MemoryKV())


def queue_up(gate: Gate, commits: Commits, keys: list[str]) -> Callers:
    """The first caller is on its way to etcd, the others wait."""
    callers = Callers(commits)
    callers.create("/first")
    assert gate.entered.wait(5)
    for key in keys:
        callers.create(key)
    while len(commits._queue) < len(keys):
        threading.Event().wait(0.005)
    return callers


def test_who_comes_meanwhile_goes_together(gate: Gate) -> None:
    """Ten callers during one commit make one more, not ten."""
    commits = Commits(gate)  # type: ignore[arg-type]
    callers = queue_up(gate, commits, [f"/k{n}" for n in range(10)])
    gate.open.set()
    callers.join()
    assert gate.commits == [1, 10]
    assert len({callers.results[f"/k{n}"] for n in range(10)}) == 1


def test_one_that_exists_does_not_fail_the_others(gate: Gate) -> None:
    gate._kv.create("/k3", b"old", Deadline(1))
    commits = Commits(gate)  # type: ignore[arg-type]
    callers = queue_up(gate, commits, [f"/k{n}" for n in range(6)])
    gate.open.set()
    callers.join()
    failed = {key: result for key, result in callers.results.items() if isinstance(result, Exception)}
    assert list(failed) == ["/k3"] and isinstance(failed["/k3"], AlreadyExists)
    assert failed["/k3"].current.value == b"old"


def test_a_key_goes_only_once_into_a_transaction(gate: Gate) -> None:
    """etcd refuses doubles: the create of a key and its delete follow each other, in the order of their arrival."""
    commits = Commits(gate)  # type: ignore[arg-type]
    callers = queue_up(gate, commits, ["/k"])
    callers.delete("/k")
    while len(commits._queue) < 2:
        threading.Event().wait(0.005)
    gate.open.set()
    callers.join()
    assert gate.commits == [1, 1, 1]
    assert gate._kv.get("/k", Deadline(1)) is None


def test_when_etcd_is_away_all_hear_it_and_the_next_one_starts_afresh(gate: Gate) -> None:
    commits = Commits(gate)  # type: ignore[arg-type]
    callers = queue_up(gate, commits, ["/a", "/b"])
    gate.error = DatastoreUnavailable("etcd is away")
    gate.open.set()
    callers.join()
    assert all(isinstance(result, DatastoreUnavailable) for result in callers.results.values())
    gate.error = None
    assert commits.create("/c", b"{}", Deadline(1)) > 0


def test_deleting_what_is_not_there_is_no_error(gate: Gate) -> None:
    gate.open.set()
    assert Commits(gate).delete(("/nothing",), Deadline(1)) >= 0  # type: ignore[arg-type]
