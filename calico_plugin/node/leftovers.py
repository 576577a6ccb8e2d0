"""Processes of a calico-node tree, found by a mark in their environment and ended by process id, never by a name.

s6-svscan and all below it carry `CALICO_NODE_TREE=<run directory>`. A process belongs to this host's tree when it also
has our mount namespace: in another one the same path is another host's.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterable, Iterator

MARK = "CALICO_NODE_TREE"
_LOOK_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Process:
    """`started` (clock ticks since boot) tells it from a later process with the same number."""

    pid: int
    started: int
    argv: tuple[str, ...]

    @property
    def program(self) -> str:
        return os.path.basename(self.argv[0]) if self.argv else ""

    def alive(self) -> bool:
        now = read(self.pid)
        return now is not None and now.started == self.started

    def send(self, number: int) -> None:
        """Signal it; one that has gone is no error."""
        if self.alive():
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                pass


def read(pid: int) -> Process | None:
    """None when there is no such process, or only what its parent has not fetched yet."""
    try:
        argv = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, UnicodeDecodeError):
        return None
    if fields[0] == "Z":
        return None
    return Process(pid, int(fields[19]), tuple(word.decode(errors="replace") for word in argv))


def mark(run_dir: Path) -> dict[str, str]:
    """The environment that marks a tree."""
    return {MARK: str(run_dir.resolve())}


def find(run_dir: Path) -> list[Process]:
    """All processes of the tree of a run directory."""
    wanted = f"{MARK}={run_dir.resolve()}".encode()
    here = _mounts("self")
    return [
        process
        for pid in _pids()
        if pid != os.getpid() and wanted in _environ(pid) and _mounts(str(pid)) == here and (process := read(pid))
    ]


def elsewhere(pid: int) -> bool:
    """Whether a process lives in another mount namespace than we do: in a container."""
    return _mounts(str(pid)) != _mounts("self")


def environment(pid: int) -> dict[str, str]:
    """What a process was started with; nothing when it has gone."""
    entries = (entry.decode(errors="replace").partition("=") for entry in _environ(pid))
    return {name: value for name, _, value in entries if name}


def end(processes: Iterable[Process], seconds: float, first: int = signal.SIGTERM) -> None:
    """Signal all, wait, and SIGKILL what is still there after the time."""
    left = list(processes)
    for process in left:
        process.send(first)
    if not wait(lambda: not any(process.alive() for process in left), seconds):
        for process in left:
            process.send(signal.SIGKILL)
        wait(lambda: not any(process.alive() for process in left), seconds)


def wait(true: Callable[[], bool], seconds: float) -> bool:
    """Poll; the kernel tells nobody but its parent that a process has ended."""
    over = time.monotonic() + seconds
    while not true():
        if time.monotonic() > over:
            return False
        time.sleep(_LOOK_SECONDS)
    return True


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def _environ(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def _mounts(pid: str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/mnt")
    except OSError:
        return ""
