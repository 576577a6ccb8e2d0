"""Becomes BIRD once there is a configuration for it: ``python -m calico_plugin.node.launch_bird RUN_DIR``.

The agent writes bird.conf after its first look at the datastore. One that an earlier run left is good enough to start
with, so that sessions come back at once after a restart; the agent loads a newer one as soon as it has it.
BIRD gets `-R` only when it has routes in the kernel: at a boot there is nothing to recover, and waiting would only hold
back new routes (node-and-cli 2.12.6).
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Callable, NoReturn

from calico_plugin.node.interfaces import has_bird_routes
from calico_plugin.routing.apply import CONF_NAME, PID_NAME, SOCKET_NAME

_LOOK_SECONDS = 0.1


def command(run_dir: Path, recover: bool) -> list[str]:
    """BIRD in the foreground, its log on standard error."""
    words = ["bird", "-f", "-c", str(run_dir / CONF_NAME), "-s", str(run_dir / SOCKET_NAME)]
    return [*words, "-P", str(run_dir / PID_NAME), *(["-R"] if recover else [])]


def wait_for_configuration(path: Path, sleep: Callable[[float], None] = time.sleep) -> None:
    """Return when the file is there. s6 ends us when nobody wants BIRD any more."""
    if not path.exists():
        print(f"waiting until calico-agent has written {path}", file=sys.stderr, flush=True)
    while not path.exists():
        sleep(_LOOK_SECONDS)


def main() -> NoReturn:
    run_dir = Path(sys.argv[1])
    wait_for_configuration(run_dir / CONF_NAME)
    words = command(run_dir, has_bird_routes())
    os.execvp(words[0], words)


if __name__ == "__main__":
    main()
