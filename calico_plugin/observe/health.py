"""Alive and ready are different questions, and each part answers for itself (node-and-cli 5.1).

A part registers once with the time within which it promises to report; it is bad when it says so or when it falls
silent.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace
from typing import Callable

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Part:
    """What a part said last. `timeout` in seconds, None: what it said holds for ever."""

    name: str
    timeout: float | None
    live: bool
    ready: bool
    detail: str
    at: float

    def timely(self, now: float) -> bool:
        return self.timeout is None or now - self.at <= self.timeout


@dataclass(frozen=True, slots=True)
class Answer:
    """`good`, and a table that says why."""

    good: bool
    text: str


class Health:
    """Used by all threads."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._parts: dict[str, Part] = {}

    def register(self, name: str, timeout: float | None, detail: str = "starting") -> None:
        """From now on the part counts: alive, not ready."""
        with self._lock:
            self._parts[name] = Part(name, timeout, True, False, detail, self._clock())

    def report(self, name: str, *, live: bool = True, ready: bool = True, detail: str = "") -> None:
        with self._lock:
            known = self._parts[name]
            self._parts[name] = replace(known, live=live, ready=ready, detail=detail, at=self._clock())

    def liveness(self) -> Answer:
        return self._answer(lambda part, now: part.live and part.timely(now))

    def readiness(self) -> Answer:
        return self._answer(lambda part, now: part.ready and part.timely(now))

    def _answer(self, good: Callable[[Part, float], bool]) -> Answer:
        now = self._clock()
        with self._lock:
            parts = sorted(self._parts.values(), key=lambda part: part.name)
        return Answer(all(good(part, now) for part in parts), _table(parts, now))


def _table(parts: list[Part], now: float) -> str:
    rows = [("COMPONENT", "TIMEOUT", "LIVENESS", "READINESS", "DETAIL")]
    for part in parts:
        late = "" if part.timely(now) else "timed out"
        live = late or ("reporting live" if part.live else "reporting non-live")
        ready = late or ("reporting ready" if part.ready else "reporting non-ready")
        rows.append((part.name, "-" if part.timeout is None else f"{part.timeout:g}s", live, ready, part.detail))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "".join(
        " | ".join([*(text.ljust(width) for text, width in zip(row, widths)), row[4]]).rstrip() + "\n" for row in rows
    )
