"""Requests that arrive together share one commit: while one is on its way, the next ones queue, and one of them takes
all along.

There is no thread of its own: the first caller leads, serves whatever is queued, and hands the lead to a waiting
caller when its own request is done. A single caller therefore goes straight through, without hand-over and without
delay.

A caller whose time is over leaves. Was its request on its way already, then `undo` is asked for what must be done
about its result, and that is served like a request, so that nobody's address is left behind.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any, Callable

from calico_plugin.deadline import Deadline
from calico_plugin.errors import CalicoError, DatastoreUnavailable, DeadlineExceeded

# Requests that one turn plans at most; what does not fit into one transaction goes with the next anyway.
BATCH = 64

# What a caller may be held up by undoing for another who has left.
UNDO_SECONDS = 2.0


@dataclass(slots=True, eq=False)
class Job:
    """A request on its way. `attached`: a caller waits for it."""

    request: Any
    deadline: Deadline
    attached: bool = True
    done: bool = False
    result: Any = None
    error: BaseException | None = None
    leads: bool = False
    abandoned: bool = False
    _wake: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._wake.acquire()

    def succeed(self, result: Any) -> None:
        self.done, self.result = True, result

    def fail(self, error: BaseException) -> None:
        self.done, self.error = True, error

    def outcome(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.result

    def wait(self, seconds: float) -> bool:
        return self._wake.acquire(timeout=seconds)

    def wake(self) -> None:
        if self.attached and self._wake.locked():
            self._wake.release()


Serve = Callable[[list[Job], Deadline], None]
"""Settles jobs (succeed or fail) as far as one transaction allows; those it leaves open come again. Raises what stops
all of them.
"""

Undo = Callable[[Job], Any]
"""A request that undoes the result of a job whose caller has left, or None."""


class Combiner:
    """`submit` may be called by any thread."""

    def __init__(self, serve: Serve, undo: Undo) -> None:
        self._serve, self._undo = serve, undo
        self._lock = threading.Lock()
        self._queue: list[Job] = []
        self._led = False

    def submit(self, request: Any, deadline: Deadline) -> Any:
        """The result of the request, or its error; DeadlineExceeded when its time is over first."""
        deadline.check("etcd to give or take an address")
        job = Job(request, deadline)
        with self._lock:
            self._queue.append(job)
            job.leads, self._led = not self._led, True
        if not job.leads and not self._wait(job):
            raise DeadlineExceeded("time is over while waiting for etcd to give or take an address")
        if job.leads and not job.done:
            self._lead(job)
        return job.outcome()

    def _wait(self, job: Job) -> bool:
        """Until the job is done or leads; False when its time is over first."""
        if job.wait(job.deadline.left()):
            return True
        with self._lock:
            if job.done or job.leads:
                return True
            job.abandoned = True
            if job in self._queue:
                self._queue.remove(job)
        return False

    def _lead(self, job: Job) -> None:
        try:
            while not job.done:
                self._round(job)
        finally:
            self._hand_over()

    def _round(self, leader: Job | None) -> None:
        with self._lock:
            batch, self._queue = self._queue[:BATCH], self._queue[BATCH:]
        deadline = leader.deadline if leader else batch[0].deadline
        try:
            self._serve(batch, deadline)
        except (DatastoreUnavailable, DeadlineExceeded) as error:
            # The leader's time is over, or etcd is away. The others may have more time: one of them tries again.
            self._give_up(batch, leader, error)
        except CalicoError as error:
            _fail_all(batch, error)
        except BaseException as error:
            _fail_all(batch, error)
            self._settle(batch)
            raise
        self._settle(batch)

    def _give_up(self, batch: list[Job], leader: Job | None, error: CalicoError) -> None:
        for job in batch:
            if job is leader or not job.attached or job.abandoned or job.deadline.expired():
                if not job.done:
                    job.fail(error)

    def _settle(self, batch: list[Job]) -> None:
        """Wake those who are done; put back what is open; undo what nobody waits for any more."""
        with self._lock:
            orphans = [job for job in batch if job.abandoned and job.done and job.error is None]
            self._queue[:0] = [job for job in batch if not job.done and not job.abandoned]
            for orphan in orphans:
                request = self._undo(orphan)
                if request is not None:
                    self._queue.append(Job(request, Deadline(UNDO_SECONDS), attached=False))
        for job in batch:
            if job.done:
                job.wake()

    def _hand_over(self) -> None:
        """The lead goes to the first who waits. What nobody waits for is served here, once; the janitor finds what
        even that misses.
        """
        while True:
            with self._lock:
                heir = next((job for job in self._queue if job.attached), None)
                if heir is not None:
                    heir.leads = True
                finished = heir is None and not self._queue
                if finished:
                    self._led = False
            if heir is not None:
                heir.wake()
            if heir is not None or finished:
                return
            self._round(None)


def _fail_all(batch: list[Job], error: BaseException) -> None:
    for job in batch:
        if not job.done:
            job.fail(error)
