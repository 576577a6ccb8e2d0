"""Endpoint-status files: one exists exactly while an endpoint's policy, link and routes are in force (policy 6).

The driver's Join waits for them, so they are written by rename: a reader never sees half a file. Names and content
are Felix's.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import msgspec

from calico_plugin.dataplane.delta import Delta

DIRECTORY = "endpoint-status"


@dataclass(frozen=True, slots=True)
class FileError:
    """A status file that could not be written or removed."""

    name: str
    why: str


def content(interface: str, mac: str, addresses: tuple[str, ...]) -> bytes:
    """What a file says; `addresses` without prefix length. Empty members are left out."""
    members = {
        "ifaceName": interface,
        "mac": mac,
        "ipv4Nets": [f"{address}/32" for address in addresses if ":" not in address],
        "ipv6Nets": [f"{address}/128" for address in addresses if ":" in address],
    }
    return msgspec.json.encode({name: value for name, value in members.items() if value})


class StatusFiles:
    """A directory of small files, `<run_dir>/endpoint-status` unless another is named: file name -> content."""

    def __init__(self, run_dir: Path, directory: str = DIRECTORY) -> None:
        self.directory = run_dir / directory
        # Beside the directory, so that who watches it sees finished files only.
        self._fresh = run_dir / f".{directory}.new"
        self._delta: Delta[str, bytes] = Delta()

    def want(self, name: str, data: bytes) -> None:
        self._delta.want(name, data)

    def unwant(self, name: str) -> None:
        self._delta.unwant(name)

    def read(self) -> None:
        """Read the directory anew (it is made when absent)."""
        self.directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        actual = {}
        with os.scandir(self.directory) as entries:
            for entry in entries:
                try:
                    actual[entry.name] = Path(entry.path).read_bytes()
                except OSError:
                    actual[entry.name] = b""
        self._delta.replace_actual(actual)

    def remove(self) -> list[FileError]:
        """Remove the files that should not be."""
        errors = []
        for name in self._delta.removals():
            try:
                (self.directory / name).unlink(missing_ok=True)
                self._delta.lost(name)
            except OSError as error:
                errors.append(FileError(name, str(error)))
        return errors

    def write(self) -> list[FileError]:
        """Write the files that are missing or different."""
        errors = []
        for name, data in self._delta.updates().items():
            try:
                self._fresh.write_bytes(data)
                os.replace(self._fresh, self.directory / name)
                self._delta.saw(name, data)
            except OSError as error:
                errors.append(FileError(name, str(error)))
        return errors
