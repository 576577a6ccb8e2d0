"""Passwords of BGP sessions on a host without Kubernetes: secret `name`, key `key` is the file `FOLDER/name/key`."""

from __future__ import annotations

from pathlib import Path

from calico_plugin.routing.sessions import Secret

FOLDER = Path("/etc/calico/secrets")


def from_folder(folder: Path = FOLDER) -> Secret:
    """A reader of one folder; what is absent, unreadable or has a path in its name is None."""

    def read(name: str, key: str) -> str | None:
        if not name or not key or {"/", "\0"} & {*name, *key} or {".", ".."} & {name, key}:
            return None
        try:
            return (folder / name / key).read_text().rstrip("\n")
        except OSError:
            return None

    return read
