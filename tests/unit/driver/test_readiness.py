"""Waiting for the agent's word, with real inotify and real locks."""

from __future__ import annotations

import fcntl
import shutil
import threading
import time
from pathlib import Path
from typing import Iterator

import pytest

from calico_plugin.deadline import Deadline
from calico_plugin.driver.readiness import AGENT_LOCK, Readiness, is_locked
from calico_plugin.model import names


@pytest.fixture
def readiness(tmp_path: Path) -> Iterator[Readiness]:
    made = Readiness(tmp_path / "run")
    yield made
    made.close()


def say_ready(run: Path, endpoint: str) -> None:
    """As the agent does: by rename."""
    directory = run / "run/endpoint-status"
    directory.mkdir(parents=True, exist_ok=True)
    temporary = directory / f".{endpoint}"
    temporary.write_text("{}")
    temporary.rename(directory / names.endpoint_status_file(endpoint))


def test_an_endpoint_that_is_ready_is_not_waited_for(tmp_path: Path, readiness: Readiness) -> None:
    say_ready(tmp_path, "e1")
    assert readiness.wait("e1", Deadline(0))


def test_the_deadline_ends_the_wait(readiness: Readiness) -> None:
    """Also before the agent has made the directory."""
    started = time.monotonic()
    assert not readiness.wait("e1", Deadline(0.1))
    assert time.monotonic() - started < 2


def test_all_who_wait_are_woken_by_their_own_file(tmp_path: Path, readiness: Readiness) -> None:
    """Sooner than the second look would come: the watch woke them."""
    woken: dict[str, float] = {}

    def wait(endpoint: str) -> None:
        if readiness.wait(endpoint, Deadline(10)):
            woken[endpoint] = time.monotonic()

    threads = [threading.Thread(target=wait, args=(f"e{number}",)) for number in range(20)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    started = time.monotonic()
    for number in range(20):
        say_ready(tmp_path, f"e{number}")
    for thread in threads:
        thread.join(10)
    assert len(woken) == 20 and max(woken.values()) - started < 0.4


def test_a_directory_made_anew_is_watched_again(tmp_path: Path, readiness: Readiness) -> None:
    """Somebody empties /var/run/calico while a call waits."""
    assert not readiness.wait("e0", Deadline(0.01))
    thread = threading.Timer(0.1, lambda: (shutil.rmtree(tmp_path / "run"), say_ready(tmp_path, "e1")))
    thread.start()
    assert readiness.wait("e1", Deadline(5))
    threading.Timer(0.1, lambda: say_ready(tmp_path, "e2")).start()
    assert readiness.wait("e2", Deadline(5))


def test_a_living_agent_holds_its_lock(tmp_path: Path, readiness: Readiness) -> None:
    """Nobody has to take the lock to find out."""
    lock = tmp_path / "run" / AGENT_LOCK
    lock.parent.mkdir(exist_ok=True)
    assert not readiness.agent_alive()
    with lock.open("w") as held:
        assert not readiness.agent_alive()
        fcntl.flock(held, fcntl.LOCK_EX)
        assert readiness.agent_alive()
    assert not readiness.agent_alive()


def test_who_waits_for_a_lock_does_not_hold_it(tmp_path: Path) -> None:
    """The kernel's table lists waiting processes under the holder, with an arrow."""
    file = tmp_path / "lock"
    file.touch()
    status = file.stat()
    table = tmp_path / "locks"
    place = f"{status.st_dev >> 8:02x}:{status.st_dev & 255:02x}:{status.st_ino}"
    table.write_text(f"1: -> FLOCK  ADVISORY  WRITE 12 {place} 0 EOF\n2: POSIX  ADVISORY  WRITE 13 {place} 0 EOF\n")
    assert not is_locked(file, table)
