"""At most one calico-node on a host: a locked file that also holds its process id."""

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
        super().__init__(
            f"calico-node already runs on this host (process {pid}); `calicoctl node stop` ends it, "
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
            os.close(self._descriptor)
            raise AlreadyRunning(_number(self.path)) from None
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)


def holder(run_dir: Path) -> int | None:
    """Process id of the running calico-node, or None."""
    path = run_dir / PID_NAME
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        return _number(path) or None
    finally:
        os.close(descriptor)


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except ValueError:
        return 0
