"""At most one calico-node on a host: a locked file.

The file holds a process id for people. Programs ask the kernel who has the lock: a calico-node in a container may be
process 1 there, and has another number here.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType

from calico_plugin.errors import CalicoError

PID_NAME = "calico-node.pid"


class AlreadyRunning(CalicoError):
    """Another calico-node runs on this host; `pid` is its process."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        where = f"process {pid}" if pid else "in another container"
        super().__init__(
            f"calico-node already runs on this host ({where}); `calicoctl node stop` ends it, "
            "`calicoctl node run` ends it and starts it anew"
        )


class Lock:
    """The kernel takes the lock back when its holder dies, however it does; the number in the file may be stale."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / PID_NAME

    def __enter__(self) -> Lock:
        """Raises AlreadyRunning."""
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = _owner(os.fstat(self._descriptor))
            os.close(self._descriptor)
            raise AlreadyRunning(pid) from None
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)


def holder(run_dir: Path) -> int | None:
    """Process id of the running calico-node as seen from here, 0 when it cannot be seen from here, or None."""
    path = run_dir / PID_NAME
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        return _owner(os.fstat(descriptor))
    finally:
        os.close(descriptor)


def _owner(file: os.stat_result, table: Path = Path("/proc/locks")) -> int:
    """Who has a flock on the file; 0 when it cannot be seen from our PID namespace.

    A line of the table: `1: FLOCK  ADVISORY  WRITE 4711 00:19:1234 0 EOF`.
    """
    wanted = f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}:{file.st_ino}"
    for line in table.read_text().splitlines():
        fields = line.split()
        if len(fields) > 5 and fields[1] == "FLOCK" and fields[3] == "WRITE" and fields[5] == wanted:
            return max(int(fields[4]), 0)
    return 0
