"""What Docker has already forgotten and etcd has not heard yet: deletes that failed, one small file each, in the lib
directory.

Docker logs a warning and forgets when DeleteEndpoint or ReleaseAddress fails, so nobody would ask again. The files
survive a restart of the driver and of the host; the janitor works them off as soon as etcd answers.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

DIRECTORY = "driver-pending"
ENDPOINT, ADDRESS = "endpoint", "address"


@dataclass(frozen=True, slots=True)
class Entry:
    """`kind` is ENDPOINT (name: endpoint id) or ADDRESS (name: bare address); `since` is Unix time in seconds."""

    kind: str
    name: str
    since: float


class Journal:
    """Files called `<kind> <name>`. `pending` is set while there is something to do."""

    def __init__(self, lib_dir: Path) -> None:
        self._directory = lib_dir / DIRECTORY
        self._lock = threading.Lock()
        self.pending = threading.Event()
        if self.entries():
            self.pending.set()

    def add(self, kind: str, name: str) -> None:
        """Again for the same is no change: the first time counts."""
        with self._lock:
            self._directory.mkdir(mode=0o755, parents=True, exist_ok=True)
            os.close(os.open(self._path(kind, name), os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
        self.pending.set()

    def remove(self, kind: str, name: str) -> None:
        if self.pending.is_set():
            with self._lock:
                self._path(kind, name).unlink(missing_ok=True)

    def has(self, kind: str, name: str) -> bool:
        return self.pending.is_set() and self._path(kind, name).exists()

    def entries(self) -> tuple[Entry, ...]:
        """Endpoints first: an address must not be given back while its endpoint still stands."""
        found = []
        for path in sorted(self._directory.glob("* *"), reverse=True) if self._directory.is_dir() else ():
            kind, _, name = path.name.partition(" ")
            try:
                found.append(Entry(kind, unquote(name), path.stat().st_mtime))
            except FileNotFoundError:
                continue
        return tuple(found)

    def settle(self) -> None:
        """Nothing is pending any more, if that is so."""
        with self._lock:
            self.pending.clear()
        if self.entries():
            self.pending.set()

    def _path(self, kind: str, name: str) -> Path:
        return self._directory / f"{kind} {quote(name, safe='')}"
