"""Names of containers on all hosts: what this host tells (`naming`), hears, and answers (`responder`)."""

from __future__ import annotations

import threading
from pathlib import Path

import structlog

from calico_plugin.agent.naming import OFF, Naming
from calico_plugin.agent.responder import Responder, prefixes
from calico_plugin.agent.worker import Worker
from calico_plugin.datastore.kv import KV
from calico_plugin.datastore.store import Store
from calico_plugin.datastore.watch import Broken, Watch
from calico_plugin.observe.log import bug
from calico_plugin.observe.metrics import Metrics
from calico_plugin.observe.problems import Problems


class Names:
    """`setting`: auto, true or false; with false, what an earlier agent left is taken away."""

    def __init__(self, setting: str, docker_host: str, kv: KV, node: str, run_dir: Path, metrics: Metrics) -> None:
        self._enabled = setting != OFF
        self._responder = Responder(node, metrics, Problems(run_dir), self._enabled)
        asking = self._responder.put if self._enabled else lambda asking: None
        self._naming = Naming(docker_host, setting, Store(kv), node, asking)
        self._watch = Watch(kv, prefixes())

    @property
    def workers(self) -> tuple[Worker, ...]:
        return self._responder.worker, self._naming.worker, self._naming.listener

    @property
    def transactions(self) -> int:
        """How many nftables transactions were ours."""
        return self._responder.transactions

    def start(self) -> None:
        """Beside the workers."""
        if self._enabled:
            threading.Thread(target=self._follow, name="names-watch", daemon=True).start()

    def stop(self) -> None:
        self._watch.close()
        self._naming.stop()
        self._responder.stop()

    def _follow(self) -> None:
        """A broken stream changes nothing: names stay as they are."""
        try:
            for event in self._watch:
                if not isinstance(event, Broken):
                    self._responder.put(event)
        except Exception:
            bug(structlog.get_logger(part="names"), "the watch of names ended")
