"""Which scope to report to Docker: `global` where its networks live in a cluster store, `local` everywhere else.

Docker 20.10 and older with `--cluster-store` carries a global network to all hosts by itself. Every other Docker
keeps networks to itself (our agents replicate them), and without a cluster store refuses or misplaces a global one.
`auto` can know this without a call to Docker, which would dead-lock while Docker waits for our answer: the process at
the other end of the unix socket is dockerd itself, so its command line and its configuration file say whether it has
a cluster store. When that process cannot be seen (another pid namespace), a managed plugin has what calico-node has
asked Docker's API (`node.plain_names`); else the answer is `local`, unless CALICO_LIBNETWORK_SCOPE says otherwise.
"""

from __future__ import annotations

import json
import socket
import struct
from pathlib import Path
from typing import Sequence

from calico_plugin.errors import InvalidInput

GLOBAL, LOCAL, AUTO = "global", "local", "auto"
# In the lib directory: it must be there at a boot, before Docker's API answers.
HINT_FILE = "docker-scope"
_STORE_FLAG, _CONFIG_FLAG = "--cluster-store", "--config-file"
_STORE_MEMBER = "cluster-store"
_DEFAULT_CONFIG = "/etc/docker/daemon.json"
_PEER = struct.Struct("=iII")


def check(setting: str) -> str:
    """The setting itself when it is one of the known words. Raises InvalidInput."""
    if setting not in (GLOBAL, LOCAL, AUTO):
        raise InvalidInput("CALICO_LIBNETWORK_SCOPE", setting, "must be auto, global or local")
    return setting


def of_caller(
    setting: str, connection: socket.socket | None, proc: Path = Path("/proc"), hint: Path | None = None
) -> str:
    """Scope for the dockerd at the other end of `connection`, unless the setting is fixed.

    `hint` is a file with the answer for a dockerd that cannot be seen.
    """
    if setting != AUTO:
        return setting
    pid = _peer(connection)
    return of_process(pid, proc) if pid else _hinted(hint)


def _hinted(path: Path | None) -> str:
    try:
        return GLOBAL if path is not None and path.read_text().strip() == GLOBAL else LOCAL
    except OSError:
        return LOCAL


def of_process(pid: int, proc: Path = Path("/proc")) -> str:
    """Scope that fits the dockerd with that process id; `local` when it cannot be seen."""
    home = proc / str(pid)
    try:
        arguments = [part.decode(errors="replace") for part in (home / "cmdline").read_bytes().split(b"\0")]
    except OSError:
        return LOCAL
    if flag(arguments, _STORE_FLAG):
        return GLOBAL
    return GLOBAL if _store_in(home, flag(arguments, _CONFIG_FLAG) or _DEFAULT_CONFIG) else LOCAL


def flag(arguments: Sequence[str], name: str) -> str:
    """Value of `--name value` or `--name=value`, the last one if it is repeated; empty when absent."""
    found = ""
    for position, argument in enumerate(arguments):
        if argument.startswith(f"{name}="):
            found = argument.partition("=")[2]
        elif argument == name and position + 1 < len(arguments):
            found = arguments[position + 1]
    return found


def _store_in(home: Path, config: str) -> bool:
    """Whether dockerd's configuration file, seen from dockerd's own root, names a cluster store."""
    path = home / "root" / config.lstrip("/") if config.startswith("/") else home / "cwd" / config
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and bool(content.get(_STORE_MEMBER))


def _peer(connection: socket.socket | None) -> int:
    """Process id at the other end of a unix socket; 0 when unknown."""
    if connection is None or connection.family != socket.AF_UNIX:
        return 0
    try:
        pid: int = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))[0]
        return pid
    except OSError:
        return 0
