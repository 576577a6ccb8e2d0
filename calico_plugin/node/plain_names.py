"""For a managed plugin: makes Docker know our drivers by the names that users write.

Docker knows a managed plugin by a name with a tag, `calico:latest`. Our sockets in the host's plugin folder have the
plain names, `calico` and `calico-ipam`. But where the plugin's own name is `calico:latest`, Docker takes `calico` for
that plugin, and then misses a driver registered as `calico` (docker-plugin 8.3). It does not look the plugin up when
such a driver is registered already, and it registers all sockets of the folder when volumes are listed: it asks each of
them whether it is a volume driver too. So volumes are listed once at every start of Docker or of ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from calico_plugin.config import Settings
from calico_plugin.node.ready import PLUGIN_SOCKETS, ask

log: Any = structlog.get_logger(part="names")

# In the run directory; the driver waits for it (`driver.introduction`), for a moment.
KNOWN_NAME = "plain-names-known"
# In the lib directory: whether Docker has a cluster store, for a driver that cannot see dockerd (`driver.scope`).
SCOPE_NAME = "docker-scope"
_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Files:
    """The host's plugin folder, and the two files that tell the driver."""

    folder: Path
    known: Path
    scope: Path


def files(settings: Settings) -> Files | None:
    """None when we are no managed plugin."""
    if settings.host_plugin_dir is None:
        return None
    return Files(settings.host_plugin_dir, settings.run_dir / KNOWN_NAME, settings.lib_dir / SCOPE_NAME)


def make_known(own: Files, docker: Path) -> None:
    """Raises OSError, HTTPException or ValueError while the driver or Docker's API does not answer."""
    for name in PLUGIN_SOCKETS:
        ask(own.folder / name, "POST", "/Plugin.Activate", _SECONDS)
    # The scope first: Docker asks for it while it makes the drivers known.
    own.scope.write_text("global" if ask(docker, "GET", "/info", _SECONDS).get("ClusterStore") else "local")
    ask(docker, "GET", "/volumes", _SECONDS)
    own.known.touch()
    log.info("Docker knows the drivers by their plain names")
