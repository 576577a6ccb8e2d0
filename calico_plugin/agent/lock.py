"""One agent a host: a lock on `<run_dir>/agent.lock`, held while it runs.

The driver looks at it to say in an error whether the agent is alive. The kernel gives it back however the agent ends.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from calico_plugin.errors import CalicoError

NAME = "agent.lock"


class AlreadyRunning(CalicoError):
    """Another agent holds the lock."""


class AgentLock:
    """Held from construction to `close`. Raises AlreadyRunning, naming the process."""

    def __init__(self, run_dir: Path) -> None:
        path = run_dir / NAME
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(self._file, 32).decode(errors="replace").strip()
            os.close(self._file)
            raise AlreadyRunning(f"calico-agent runs already as process {holder or '?'} ({path} is locked)") from None
        os.ftruncate(self._file, 0)
        os.write(self._file, f"{os.getpid()}\n".encode())

    def close(self) -> None:
        os.close(self._file)


def is_alive(run_dir: Path) -> bool:
    """Whether an agent holds the lock."""
    try:
        file = os.open(run_dir / NAME, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(file)
