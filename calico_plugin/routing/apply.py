"""Brings a rendered configuration to BIRD: checked before it replaces the old file, loaded only when it changed.

When BIRD refuses the new text, file and running configuration stay as they are, and RoutingError carries BIRD's words.
When BIRD does not run, the file is put in place for its start (its own parser judged it, if `bird` can be run).
"""

from __future__ import annotations

import os
import re
import subprocess
from enum import Enum
from pathlib import Path

from calico_plugin.errors import RoutingError
from calico_plugin.routing.birdc import BirdClient

CONF_NAME, SOCKET_NAME, PID_NAME = "bird.conf", "bird.ctl", "bird.pid"
CHECK_SECONDS = 10


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


def load(text: str, run_dir: Path, client: BirdClient | None = None, *, force: bool = False) -> Outcome:
    """Make `text` BIRD's configuration in `run_dir`. `force` loads an unchanged file again (after a load that failed).

    Raises Refused, or RoutingError when BIRD does not answer in time; the next call tries again.
    """
    path = run_dir / CONF_NAME
    client = client or BirdClient(run_dir / SOCKET_NAME)
    if not force and _content(path) == text:
        return Outcome.UNCHANGED
    fresh = path.with_suffix(".new")
    _write(fresh, text)
    try:
        running = _check(fresh, client)
        before = _content(path)
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)
    if not running:
        return Outcome.WRITTEN
    try:
        client.configure(path)
    except RoutingError:
        # The file must not look loaded, or the next call would take it for unchanged.
        _restore(path, before)
        raise
    return Outcome.LOADED


def _content(path: Path) -> str | None:
    try:
        return path.read_text()
    except FileNotFoundError:
        return None


def _write(path: Path, text: str) -> None:
    # Passwords of sessions are in it.
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)


def _restore(path: Path, before: str | None) -> None:
    if before is None:
        path.unlink(missing_ok=True)
    else:
        _write(path, before)


def _check(path: Path, client: BirdClient) -> bool:
    """Whether BIRD runs; raises RoutingError when it (or its parser) refuses the file."""
    try:
        client.status()
    except RoutingError:
        check_without_daemon(path)
        return False
    try:
        client.check(path)
    except RoutingError as error:
        # An answer, not silence.
        raise (Refused(str(error)) if "refused" in str(error) else error) from error
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
