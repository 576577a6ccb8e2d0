"""A thread of the agent that does one kind of slow work, apart from the loop, until it is told to stop."""

from __future__ import annotations

import threading
from typing import Callable

import structlog

from calico_plugin.errors import CalicoError
from calico_plugin.observe.log import bug


class Worker:
    """Runs `step` whenever it is woken, and `every` so many seconds after the last run at the latest.

    A step that raises CalicoError has told why: it is run again after a pause that doubles from `again` up to
    `longest` seconds.
    """

    def __init__(
        self,
        name: str,
        step: Callable[[], None],
        *,
        every: float | None = None,
        again: float = 1.0,
        longest: float = 30.0,
    ) -> None:
        self._name, self._step, self._every, self._again, self._longest = name, step, every, again, longest
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._log = structlog.get_logger(part=name)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def stopping(self) -> threading.Event:
        return self._stopping

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        self._wake.set()

    def stop(self) -> None:
        self._stopping.set()
        self._wake.set()

    def join(self, seconds: float) -> None:
        """Wait for its end, so long at most: a call to a part that hangs may hold it, and ends with the process."""
        if self._thread.is_alive():
            self._thread.join(seconds)

    def _run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            try:
                self._step()
                failures = 0
            except CalicoError as error:
                # A row of failures is told once.
                tell = self._log.debug if failures or self._stopping.is_set() else self._log.warning
                tell("failed, will be tried again", error=str(error))
                failures += 1
            except Exception:
                bug(self._log, "a step failed")
                failures += 1
            pause = min(self._longest, self._again * 2 ** min(failures - 1, 16)) if failures else self._every
            self._wake.wait(pause)
            self._wake.clear()
