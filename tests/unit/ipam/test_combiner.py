"""Requests that share a commit: who leads, who waits, who leaves."""

from __future__ import annotations

import threading
from typing import Any, Callable

import pytest

from calico_plugin.deadline import Deadline
from calico_plugin.errors import Conflict, DatastoreUnavailable, DeadlineExceeded
from calico_plugin.ipam.combiner import Combiner, Job


class Server:
    """Serves batches; holds each until `gate` is open, and tells when one has begun."""

    def __init__(self, answer: Callable[[list[Job]], None] | None = None) -> None:
        self.batches: list[list[Any]] = []
        self.undone: list[Any] = []
        self.gate, self.begun = threading.Event(), threading.Semaphore(0)
        self.answer = answer
        self.combiner = Combiner(self.serve, self.undo)

    def serve(self, jobs: list[Job], deadline: Deadline) -> None:
        self.batches.append([job.request for job in jobs])
        self.begun.release()
        assert self.gate.wait(10)
        if self.answer:
            self.answer(jobs)
        for job in jobs:
            if not job.done:
                job.succeed(f"done {job.request}")

    def undo(self, job: Job) -> Any:
        self.undone.append(job.request)
        return f"undo {job.request}"

    def queued(self, count: int) -> None:
        """Wait until so many requests are queued behind the one being served."""
        deadline = Deadline(10)
        while len(self.combiner._queue) < count:
            deadline.check("requests to queue")
            threading.Event().wait(0.001)


class Caller(threading.Thread):
    def __init__(self, server: Server, request: Any, seconds: float = 10) -> None:
        super().__init__(daemon=True)
        self.server, self.request, self.seconds = server, request, seconds
        self.result: Any = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.result = self.server.combiner.submit(self.request, Deadline(self.seconds))
        except BaseException as error:
            self.error = error

    def finish(self) -> Any:
        self.join(10)
        assert not self.is_alive()
        return self.error or self.result


def test_a_single_caller_goes_straight_through() -> None:
    """In its own thread, one batch of one."""
    server = Server()
    server.gate.set()
    assert server.combiner.submit("a", Deadline(5)) == "done a"
    assert server.combiner.submit("b", Deadline(5)) == "done b"
    assert server.batches == [["a"], ["b"]]


def test_requests_that_arrive_meanwhile_go_together() -> None:
    """All that queued during one commit are the next batch, in the order of their arrival."""
    server = Server()
    first = Caller(server, 0)
    assert server.begun.acquire(timeout=10)
    others = []
    for number in range(1, 6):
        others.append(Caller(server, number))
        server.queued(number)
    server.gate.set()
    assert [caller.finish() for caller in (first, *others)] == [f"done {number}" for number in range(6)]
    assert server.batches == [[0], [1, 2, 3, 4, 5]]


def test_what_a_batch_leaves_open_comes_first_in_the_next() -> None:
    """A full transaction postpones the rest; nobody is forgotten."""
    def only_two(jobs: list[Job]) -> None:
        for job in jobs[:2]:
            job.succeed(f"done {job.request}")
        for job in jobs[2:]:
            open_jobs.append(job.request)

    open_jobs: list[Any] = []

    class Picky(Server):
        def serve(self, jobs: list[Job], deadline: Deadline) -> None:
            self.batches.append([job.request for job in jobs])
            self.begun.release()
            assert self.gate.wait(10)
            only_two(jobs)

    server = Picky()
    callers = [Caller(server, 0)]
    assert server.begun.acquire(timeout=10)
    for number in range(1, 6):
        callers.append(Caller(server, number))
        server.queued(number)
    server.gate.set()
    assert [caller.finish() for caller in callers] == [f"done {number}" for number in range(6)]
    assert server.batches == [[0], [1, 2, 3, 4, 5], [3, 4, 5], [5]]


def test_errors_are_each_ones_own() -> None:
    """A refusal of one request does not touch its neighbours."""
    def refuse_one(jobs: list[Job]) -> None:
        for job in jobs:
            if job.request == 2:
                job.fail(Conflict("address 2"))

    server = Server(refuse_one)
    first = Caller(server, 0)
    assert server.begun.acquire(timeout=10)
    others = [Caller(server, number) for number in (1, 2, 3)]
    server.queued(3)
    server.gate.set()
    first.finish()
    results = {caller.request: caller.finish() for caller in others}
    assert isinstance(results.pop(2), Conflict)
    assert results == {1: "done 1", 3: "done 3"}


def test_the_leaders_time_is_not_the_others() -> None:
    """When the leader's time is over, it fails alone; another takes the batch along and tries again."""
    calls: list[int] = []

    def first_time_out(jobs: list[Job]) -> None:
        calls.append(len(jobs))
        if len(calls) == 2:
            raise DeadlineExceeded("the leader's time is over")

    server = Server(first_time_out)
    first = Caller(server, 0)
    assert server.begun.acquire(timeout=10)
    others = [Caller(server, number) for number in (1, 2, 3)]
    server.queued(3)
    server.gate.set()
    first.finish()
    outcomes = [caller.finish() for caller in others]
    assert sum(isinstance(outcome, DeadlineExceeded) for outcome in outcomes) == 1
    assert calls == [1, 3, 2]


def test_a_datastore_that_is_away_fails_everyone_in_turn() -> None:
    """Nobody hangs, and the next call works."""
    def away(jobs: list[Job]) -> None:
        if not healed.is_set():
            raise DatastoreUnavailable("etcd does not answer")

    healed = threading.Event()
    server = Server(away)
    server.gate.set()
    callers = [Caller(server, number) for number in range(4)]
    assert all(isinstance(caller.finish(), DatastoreUnavailable) for caller in callers)
    healed.set()
    assert server.combiner.submit("next", Deadline(5)) == "done next"


def test_a_caller_that_leaves_the_queue_is_not_served() -> None:
    """Its time is over before its turn: the request is dropped."""
    server = Server()
    first = Caller(server, "first")
    assert server.begun.acquire(timeout=10)
    late = Caller(server, "late", seconds=0.05)
    assert isinstance(late.finish(), DeadlineExceeded)
    server.gate.set()
    first.finish()
    assert server.batches == [["first"]]


def test_a_caller_that_leaves_on_the_way_is_undone() -> None:
    """The commit went through after its caller had left: what it did is undone at once, by whoever leads."""
    server = Server()
    first = Caller(server, "first")
    assert server.begun.acquire(timeout=10)
    second, late = Caller(server, "second"), Caller(server, "late", seconds=1)
    server.queued(2)
    held, server.gate = server.gate, threading.Event()
    held.set()
    assert isinstance(late.finish(), DeadlineExceeded)
    server.gate.set()
    assert (first.finish(), second.finish()) == ("done first", "done second")
    assert server.undone == ["late"]
    assert server.batches[-1] == ["undo late"]
    assert server.combiner.submit("next", Deadline(5)) == "done next"


def test_a_bug_reaches_the_callers_and_the_lead_goes_on() -> None:
    """An exception that is none of ours fails the batch; later requests are served."""
    def broken(jobs: list[Job]) -> None:
        if jobs[0].request == "bad":
            raise ZeroDivisionError("a bug")

    server = Server(broken)
    server.gate.set()
    with pytest.raises(ZeroDivisionError):
        server.combiner.submit("bad", Deadline(5))
    assert server.combiner.submit("good", Deadline(5)) == "done good"


def test_no_time_left_is_told_before_anything_is_done() -> None:
    """The text has the word that the user needs."""
    server = Server()
    with pytest.raises(DeadlineExceeded, match="etcd"):
        server.combiner.submit("a", Deadline(0))
    assert server.batches == []
