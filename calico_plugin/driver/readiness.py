"""Waiting until the agent has made an endpoint ready: policy and route in force.

The agent says so by a file per endpoint in `<run dir>/endpoint-status` (Felix's own form; existence means up). One
thread watches the directory for all waiting calls. The order that loses nothing: watch first, register, then look,
then wait; and while waiting look again twice a second, for a directory that was removed and made anew.

Whether the agent lives is asked of the kernel: the agent holds an exclusive flock on `<run dir>/agent.lock` as long
as it runs. The lock table is read instead of trying the lock, which could get in the way of an agent that just
starts.
"""

from __future__ import annotations

import ctypes
import os
import select
import struct
import threading
from pathlib import Path

from calico_plugin.deadline import Deadline
from calico_plugin.model import names

STATUS_DIRECTORY = "endpoint-status"
AGENT_LOCK = "agent.lock"

_EVENT = struct.Struct("=iIII")
_IN_MOVED_TO, _IN_CREATE, _IN_DELETE_SELF, _IN_MOVE_SELF, _IN_IGNORED = 0x80, 0x100, 0x400, 0x800, 0x8000
_IN_ONLYDIR = 0x01000000
_INTEREST = _IN_MOVED_TO | _IN_CREATE | _IN_DELETE_SELF | _IN_MOVE_SELF | _IN_ONLYDIR
_GONE = _IN_DELETE_SELF | _IN_MOVE_SELF | _IN_IGNORED
_LOOK_AGAIN = 0.5
_READ_BYTES = 1 << 16


class Readiness:
    """Watches one of the agent's directories of a file per endpoint; `wait` may be called by many threads."""

    def __init__(self, run_dir: Path, directory: str = STATUS_DIRECTORY) -> None:
        self._directory = run_dir / directory
        self._lock_file = run_dir / AGENT_LOCK
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._inotify = self._libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if self._inotify < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC)
        self._lock = threading.Lock()
        self._waiting: dict[str, list[threading.Event]] = {}
        self._watch: int | None = None
        self._thread = threading.Thread(target=self._run, name=directory, daemon=True)
        self._thread.start()

    def wait(self, endpoint: str, deadline: Deadline, content: bytes | None = None) -> bool:
        """True as soon as the endpoint's file is there (and says `content`, where that is given), False when the
        deadline passes first.
        """
        name = names.endpoint_status_file(endpoint)
        path = self._directory / name
        arrived = threading.Event()
        with self._lock:
            self._ensure_watch()
            self._waiting.setdefault(name, []).append(arrived)
        try:
            while not (path.exists() if content is None else _says(path, content)):
                left = deadline.left()
                if left <= 0:
                    return False
                if not arrived.wait(min(left, _LOOK_AGAIN)):
                    with self._lock:
                        self._ensure_watch()
                arrived.clear()
            return True
        finally:
            self._forget(name, arrived)

    def agent_alive(self) -> bool:
        return is_locked(self._lock_file)

    def close(self) -> None:
        os.write(self._wake_write, b"x")
        self._thread.join(2.0)
        for descriptor in (self._inotify, self._wake_read, self._wake_write):
            os.close(descriptor)

    def _forget(self, name: str, arrived: threading.Event) -> None:
        with self._lock:
            others = [event for event in self._waiting.get(name, []) if event is not arrived]
            if others:
                self._waiting[name] = others
            else:
                self._waiting.pop(name, None)

    def _ensure_watch(self) -> None:
        """Under the lock. The agent makes the directory; where it has not started yet, we do."""
        if self._watch is not None:
            return
        try:
            self._directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        except OSError:
            return
        watch = self._libc.inotify_add_watch(self._inotify, os.fsencode(self._directory), _INTEREST)
        self._watch = watch if watch >= 0 else None

    def _run(self) -> None:
        while True:
            readable, _, _ = select.select([self._inotify, self._wake_read], [], [])
            if self._wake_read in readable:
                return
            try:
                data = os.read(self._inotify, _READ_BYTES)
            except BlockingIOError:
                continue
            self._deliver(data)

    def _deliver(self, data: bytes) -> None:
        offset = 0
        with self._lock:
            while offset + _EVENT.size <= len(data):
                watch, mask, _, length = _EVENT.unpack_from(data, offset)
                offset += _EVENT.size
                name = os.fsdecode(data[offset : offset + length].rstrip(b"\0"))
                offset += length
                if mask & _GONE and watch == self._watch:
                    self._watch = None
                for arrived in self._waiting.get(name, ()):
                    arrived.set()


def _says(path: Path, content: bytes) -> bool:
    try:
        return path.read_bytes() == content
    except OSError:
        return False


def is_locked(path: Path, table: Path = Path("/proc/locks")) -> bool:
    """Whether some process holds a flock on the file."""
    try:
        status = path.stat()
        lines = table.read_text().splitlines()
    except OSError:
        return False
    wanted = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    return any(fields[1] == "FLOCK" and wanted in fields for fields in map(str.split, lines) if len(fields) > 5)
