"""calico-node in the background of this host: started and watched, ended (`calicoctl node run`, `node stop`)."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Mapping

from calico_plugin.errors import CalicoError
from calico_plugin.node import leftovers, lock, supervise
from calico_plugin.node.services import STARTED, console_script

LOG_NAME = "calico-node.log"
_LOG_BYTES = 10_000_000
_LOOK_SECONDS = 0.1
# calico-node itself takes up to about 10 s to end its parts.
STOP_SECONDS = 15.0


class Contained(CalicoError):
    """calico-node runs in a container: Docker would start again what we end; the text says what to type."""

    def __init__(self, managed: bool) -> None:
        self.managed = managed
        kind = "a managed plugin of Docker's" if managed else "a container"
        end = "docker plugin disable -f calico" if managed else "docker rm -f calico-node"
        super().__init__(f"calico-node runs as {kind} on this host; `{end}` ends it, and traffic goes on")


class State(Enum):
    """How a start ended, as far as it was waited for."""

    STARTED = "started"
    EXITED = "exited"
    STARTING = "starting"


@dataclass(frozen=True, slots=True)
class Outcome:
    """`lines` is what calico-node has written since its start, `status` its exit status when it has exited."""

    state: State
    log: Path
    lines: tuple[str, ...]
    status: int | None = None


def command() -> list[str]:
    """What runs in the background."""
    return [console_script("calico-node")]


def start(environment: Mapping[str, str], log_dir: Path, seconds: float) -> Outcome:
    """Start calico-node in a session of its own and wait for its start line, its end, or the time."""
    path = _log_file(log_dir)
    with path.open("ab") as log:
        offset = log.tell()
        process = subprocess.Popen(
            command(),
            env=dict(environment),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    over = time.monotonic() + seconds
    while time.monotonic() < over:
        status = process.poll()  # before the look at the log: the last words of one that ended must be seen
        lines = _lines(path, offset)
        if STARTED in lines:
            return Outcome(State.STARTED, path, lines)
        if status is not None:
            return Outcome(State.EXITED, path, lines, status)
        time.sleep(_LOOK_SECONDS)
    return Outcome(State.STARTING, path, _lines(path, offset))


def _log_file(log_dir: Path) -> Path:
    log_dir.mkdir(parents=True, exist_ok=True)
    path = log_dir / LOG_NAME
    if path.exists() and path.stat().st_size > _LOG_BYTES:
        os.replace(path, path.with_suffix(".log.1"))
    return path


def _lines(path: Path, offset: int) -> tuple[str, ...]:
    with path.open("rb") as log:
        log.seek(offset)
        return tuple(log.read().decode(errors="replace").splitlines())


def running(run_dir: Path) -> bool:
    """Whether a calico-node, or the parts that a killed one has left, run on this host."""
    return lock.holder(run_dir) is not None or bool(leftovers.find(run_dir))


def stop(run_dir: Path, graceful: bool = True) -> int | None:
    """End calico-node and all its parts, traffic goes on; the process id it had (0: only its parts were there).

    None when nothing ran. Raises Contained.
    """
    pid = lock.holder(run_dir)
    if pid is not None and leftovers.elsewhere(pid):
        raise Contained(managed=leftovers.environment(pid).get("CALICO_MANAGED_PLUGIN") == "true")
    if pid is not None and (process := leftovers.read(pid)) is not None:
        if not graceful:
            supervise.withdraw(run_dir)
        process.send(signal.SIGTERM)
        if not leftovers.wait(lambda: not process.alive(), STOP_SECONDS):
            process.send(signal.SIGKILL)
    ended = supervise.stop(run_dir, graceful)
    if pid is None:
        return 0 if ended else None
    return pid
