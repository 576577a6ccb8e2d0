"""What is left of an operation's time. One deadline is made at the door and handed down; each step spends of it."""

from __future__ import annotations

import time
from typing import Callable

from calico_plugin.errors import DeadlineExceeded

Clock = Callable[[], float]


class Deadline:
    """A point in time that all steps of one operation share; the clock is a parameter for tests."""

    __slots__ = ("_at", "_clock")

    def __init__(self, seconds: float, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._at = clock() + seconds

    def left(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self._at - self._clock())

    def expired(self) -> bool:
        return self._clock() >= self._at

    def check(self, waiting_for: str) -> float:
        """Return the seconds left, or raise DeadlineExceeded that names what was waited for."""
        left = self.left()
        if left <= 0.0:
            raise DeadlineExceeded(f"time is over while waiting for {waiting_for}")
        return left

    def sooner(self, seconds: float) -> Deadline:
        """A deadline at most `seconds` from now and never later than this one."""
        return Deadline(min(seconds, self.left()), self._clock)
