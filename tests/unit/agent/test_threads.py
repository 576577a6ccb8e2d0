"""Mailbox, timers, workers, the lock and the forgetting of connections."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
from pathlib import Path
from typing import Collection

import pytest

from calico_plugin.agent.lock import AgentLock, AlreadyRunning, is_alive
from calico_plugin.agent.mailbox import Mailbox
from calico_plugin.agent.released import Forgotten, Released
from calico_plugin.agent.timers import Timers
from calico_plugin.agent.worker import Worker
from calico_plugin.errors import DataplaneError, DockerError
from calico_plugin.observe.metrics import Metrics


def readable(mailbox: Mailbox) -> bool:
    return bool(select.select([mailbox], [], [], 0)[0])


class TestMailbox:
    def test_readable_while_something_waits(self) -> None:
        """A selector sees it, and all messages come in order at once."""
        mailbox = Mailbox()
        assert not readable(mailbox)
        for number in range(3):
            mailbox.put(number)
        assert readable(mailbox)
        assert mailbox.take() == [0, 1, 2]
        assert not readable(mailbox) and mailbox.take() == []
        mailbox.close()


class TestTimers:
    def test_repeated_and_once(self) -> None:
        """A repeated job comes again; one that was asked for twice comes once, at the earlier time."""
        now = [100.0]
        done: list[str] = []
        timers = Timers(lambda: now[0])
        assert timers.left() is None
        timers.every(10, lambda: done.append("often"))
        timers.once("x", 3, lambda: done.append("once"))
        timers.once("x", 1000, lambda: done.append("later"))
        assert timers.left() == 3
        for at in (102.0, 103.0, 110.0, 120.0):
            now[0] = at
            for job in timers.due():
                job()
        assert done == ["once", "often", "often"]


class TestWorker:
    def test_failed_step_is_tried_again(self) -> None:
        """An error of ours is told and the step is repeated; so is a mistake, which is told as one."""
        runs: list[int] = []
        done = threading.Event()

        def step() -> None:
            runs.append(1)
            if len(runs) == 1:
                raise DockerError("no")
            if len(runs) == 2:
                raise ZeroDivisionError
            done.set()

        worker = Worker("test", step, again=0.01)
        worker.start()
        assert done.wait(5)
        worker.stop()
        worker.join(5)
        assert len(runs) == 3

    def test_stop_ends_a_waiting_worker(self) -> None:
        """At once, not at the end of its pause."""
        worker = Worker("test", lambda: None, every=1000)
        worker.start()
        worker.stop()
        worker.join(5)
        assert not worker._thread.is_alive()


class TestReleased:
    def test_hurry_ends_the_collecting(self) -> None:
        """Addresses are collected, and forgotten together when somebody waits."""
        seen: list[frozenset[str]] = []
        told = threading.Event()

        def forget(addresses: Collection[str]) -> int:
            seen.append(frozenset(addresses))
            return 0

        released = Released(forget, lambda message: told.set(), Metrics("n"), collect_seconds=1000)
        released.submit(["10.0.0.1"])
        released.submit(["10.0.0.2"])
        released.worker.start()
        released.hurry()
        assert told.wait(5)
        assert seen == [frozenset({"10.0.0.1", "10.0.0.2"})]
        released.stop()

    def test_addresses_come_back_although_the_kernel_refuses(self) -> None:
        """To hold them back for ever would be worse."""
        told: list[Forgotten] = []
        done = threading.Event()

        def forget(addresses: Collection[str]) -> int:
            raise DataplaneError("no")

        def tell(message: Forgotten) -> None:
            told.append(message)
            done.set()

        released = Released(forget, tell, Metrics("n"), collect_seconds=0)
        released.submit(["10.0.0.1"])
        released.worker.start()
        assert done.wait(5)
        assert told == [Forgotten(frozenset({"10.0.0.1"}))]
        released.stop()


class TestLock:
    def test_one_holder(self, tmp_path: Path) -> None:
        """A second holder is refused and told the process; after the first closed it is free."""
        lock = AgentLock(tmp_path)
        assert is_alive(tmp_path)
        with pytest.raises(AlreadyRunning, match=f"process {os.getpid()} "):
            AgentLock(tmp_path)
        lock.close()
        assert not is_alive(tmp_path)
        AgentLock(tmp_path).close()

    def test_nobody_ever(self, tmp_path: Path) -> None:
        """Without file nobody runs."""
        assert not is_alive(tmp_path)

    def test_killed_holder(self, tmp_path: Path) -> None:
        """The kernel gives the lock back when its holder is killed."""
        code = "import sys,time;from pathlib import Path;from calico_plugin.agent.lock import AgentLock;" \
            "l=AgentLock(Path(sys.argv[1]));print('held',flush=True);time.sleep(60)"  # fmt: skip
        process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        assert is_alive(tmp_path)
        process.kill()
        process.wait()
        assert not is_alive(tmp_path)
