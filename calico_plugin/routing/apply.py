"""Brings a rendered configuration to BIRD: checked before it replaces the old file, loaded when BIRD runs on another.

Each file ends with a constant that names its text, so BIRD itself tells which one it runs on. When BIRD refuses the new
text, file and running configuration stay as they are, and Refused carries its words. When BIRD does not run, the
file is put in place for its start (its own parser judged it, if `bird` can be run).
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import time
from enum import Enum
from pathlib import Path

from calico_plugin.errors import RoutingError
from calico_plugin.routing.birdc import BirdClient, CommandRefused

CONF_NAME, SOCKET_NAME, PID_NAME = "bird.conf", "bird.ctl", "bird.pid"
CHECK_SECONDS = 10
_MARK = "CALICO_CONFIGURATION"
_TAKEN_SECONDS = 2.0
_LOOK_SECONDS = 0.02


class Refused(RoutingError):
    """BIRD's parser refused the text: at `line` (from 1; 0 when it does not say), for the reason `why`."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        found = re.search(r":(\d+):\d+ (.+)", message)
        self.line, self.why = (int(found[1]), found[2]) if found else (0, message)


class Outcome(Enum):
    """What `load` did."""

    UNCHANGED = "unchanged"
    LOADED = "loaded"
    WRITTEN = "written; BIRD is not running"


def load(text: str, run_dir: Path, client: BirdClient | None = None) -> Outcome:
    """Make `text` BIRD's configuration in `run_dir`.

    Raises Refused, or RoutingError when BIRD does not answer in time; the next call tries again.
    """
    path = run_dir / CONF_NAME
    client = client or BirdClient(run_dir / SOCKET_NAME)
    whole = f'{text}define {_MARK} = "{_name(text)}";\n'
    if _content(path) == whole and not runs_another(text, client):
        return Outcome.UNCHANGED
    fresh = path.with_suffix(".new")
    _write(fresh, whole)
    try:
        running = _check(fresh, client)
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)
    if not running:
        return Outcome.WRITTEN
    client.configure(path)
    _await(text, client)
    return Outcome.LOADED


def runs_another(text: str, client: BirdClient) -> bool:
    """Whether BIRD runs, and on another configuration than this one."""
    try:
        return client.evaluate(_MARK) != _name(text)
    except CommandRefused:
        return True  # it knows no such constant: the configuration is none that we have loaded
    except RoutingError:
        return False


def _await(text: str, client: BirdClient) -> None:
    """BIRD answers `configure` before it has carried it out."""
    until = time.monotonic() + _TAKEN_SECONDS
    while runs_another(text, client):
        if time.monotonic() > until:
            raise RoutingError("BIRD took the configuration, but still runs on another one")
        time.sleep(_LOOK_SECONDS)


def _name(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _content(path: Path) -> str | None:
    try:
        return path.read_text()
    except FileNotFoundError:
        return None


def _write(path: Path, text: str) -> None:
    # Passwords of sessions are in it.
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)


def _check(path: Path, client: BirdClient) -> bool:
    """Whether BIRD runs; raises RoutingError when it (or its parser) refuses the file."""
    try:
        client.status()
    except RoutingError:
        check_without_daemon(path)
        return False
    try:
        client.check(path)
    except CommandRefused as error:
        raise Refused(str(error)) from error
    return True


def check_without_daemon(path: Path) -> None:
    """Ask BIRD's parser; a missing `bird` is no refusal. Raises RoutingError."""
    try:
        done = subprocess.run(
            ["bird", "-p", "-c", str(path)], capture_output=True, text=True, timeout=CHECK_SECONDS, check=False
        )
    except FileNotFoundError:
        return
    except subprocess.TimeoutExpired as error:
        raise RoutingError(f"bird -p did not answer within {CHECK_SECONDS} s") from error
    if done.returncode != 0:
        raise Refused(f"BIRD refused the configuration: {(done.stderr or done.stdout).strip()}")
