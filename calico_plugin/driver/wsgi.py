"""Composition root of `calico-driver`: gunicorn on two unix sockets, one worker with many threads.

The sockets are bound before the worker starts, in place of stale ones, so that Docker's first call waits for the
worker instead of failing. Everything that has threads or connections (datastore client, watch, netlink) is built in
the worker, after the fork. One worker, because threads share what makes calls cheap: the view, and commits that many
callers use together. Connections are not kept alive: Docker repeats a request whose connection was closed under it
with an empty body (docker-plugin 1.7).

Nothing of Flask or gRPC is imported here at the top: the process that only supervises the worker stays small.
"""

from __future__ import annotations

import gc
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

from gunicorn.app.base import BaseApplication

from calico_plugin.config import Settings
from calico_plugin.driver import scope
from calico_plugin.errors import CalicoError
from calico_plugin.observe import log

if TYPE_CHECKING:
    from calico_plugin.driver.services import Services

NETWORK_SOCKET, IPAM_SOCKET = "calico.sock", "calico-ipam.sock"
THREADS = 64
# Longer than any call may take, so that a stop never breaks one off.
GRACEFUL_SECONDS = 25
# Only bounds how long the worker's main loop may hang, not calls.
WORKER_SECONDS = 60
_BACKLOG = 512


class DriverApplication(BaseApplication):
    """gunicorn's view of the driver."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._services: Services | None = None
        super().__init__()

    def load_config(self) -> None:
        for name, value in options(self._settings, self._close).items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        """Called by gunicorn in the worker."""
        from calico_plugin.datastore.etcd import connect
        from calico_plugin.driver.services import build
        from calico_plugin.policy import selector

        settings, store = self._settings, self._settings.datastore
        kv = connect(**asdict(store))
        self._services = build(
            kv,
            lambda text, labels: selector.parse(text).match(labels),
            node=settings.node_name,
            run_dir=settings.run_dir,
            lib_dir=settings.lib_dir,
            scope_setting=settings.scope,
            host_plugin_dir=settings.host_plugin_dir,
            interface_prefix=settings.interface_prefix,
            mtu=settings.veth_mtu,
            own_profiles=settings.create_profiles,
            label_endpoints=settings.label_endpoints,
        )
        # What is loaded now stays: the collector need not look at it again and again.
        gc.collect()
        gc.freeze()
        return self._services.app

    def _close(self) -> None:
        if self._services is not None:
            self._services.close()


def socket_paths(settings: Settings) -> tuple[Path, ...]:
    """Both names in our plugin folder; a managed plugin has them in the host's too, where plain names are looked up."""
    folders = [settings.plugin_dir, *([settings.host_plugin_dir] if settings.host_plugin_dir else [])]
    return tuple(folder / name for folder in folders for name in (NETWORK_SOCKET, IPAM_SOCKET))


def options(settings: Settings, close: Callable[[], None]) -> dict[str, Any]:
    """gunicorn's settings. `close` runs in the worker when it ends."""
    return {
        "bind": [f"unix:{path}" for path in socket_paths(settings)],
        "worker_class": "calico_plugin.driver.worker.PluginWorker",
        "workers": 1,
        "threads": THREADS,
        "worker_connections": 1000,
        "backlog": _BACKLOG,
        "keepalive": 0,
        "timeout": WORKER_SECONDS,
        "graceful_timeout": GRACEFUL_SECONDS,
        # Sockets are for dockerd, which is root.
        "umask": 0o077,
        "worker_tmp_dir": "/dev/shm" if os.path.isdir("/dev/shm") else None,
        "control_socket_disable": True,
        "loglevel": "warning",
        "errorlog": "-",
        "accesslog": None,
        "worker_exit": lambda arbiter, worker: close(),
    }


def main() -> int:
    try:
        settings = Settings.checked(os.environ)
        scope.check(settings.scope)
        log.setup("calico-driver", settings.log_level)
        settings.plugin_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
    except (CalicoError, OSError) as error:
        print(f"calico-driver: {error}", file=sys.stderr)
        return 1
    DriverApplication(settings).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
