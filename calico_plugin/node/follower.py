"""What calico-node keeps right while it runs: one thread follows etcd, and wakes another that does the work."""

from __future__ import annotations

import threading

from calico_plugin.datastore.watch import Watch


class Follower:
    """`_follow` reads the watch and sets `_wake`; `_work` waits for it until `_closing`. Both threads bear `name`."""

    def __init__(self, watch: Watch, name: str) -> None:
        self._watch, self._name = watch, name
        self._wake, self._closing = threading.Event(), threading.Event()

    def start(self) -> None:
        for work, name in ((self._work, self._name), (self._follow, f"{self._name}-watch")):
            threading.Thread(target=work, name=name, daemon=True).start()

    def close(self) -> None:
        self._closing.set()
        self._watch.close()
        self._wake.set()

    def _work(self) -> None:
        raise NotImplementedError

    def _follow(self) -> None:
        raise NotImplementedError
