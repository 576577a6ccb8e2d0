"""For a managed plugin: Docker's first question waits until Docker knows our plain names.

`docker plugin install` returns when that question is answered, and the next command may already use the plain names,
which calico-node is just making known (`node.plain_names`). It says so with a file. The wait is short and bounded: at
a boot Docker asks before its API can be asked for anything.
"""

from __future__ import annotations

import socket
import time
from pathlib import Path

KNOWN_FILE = "plain-names-known"
SECONDS = 2.0
_LOOK_SECONDS = 0.02


def wait_for_names(connection: socket.socket | None, host_folder: Path | None, run_dir: Path) -> None:
    """Only for a call on the plugin's own socket: those on the host's sockets are part of getting known."""
    if host_folder is None or connection is None or str(connection.getsockname()).startswith(f"{host_folder}/"):
        return
    over = time.monotonic() + SECONDS
    while not (run_dir / KNOWN_FILE).exists() and time.monotonic() < over:
        time.sleep(_LOOK_SECONDS)
