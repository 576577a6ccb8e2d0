"""What the loop does at times: repeated jobs, and jobs once after a pause (asked for several times, done once)."""

from __future__ import annotations

from typing import Callable

Job = Callable[[], None]


class Timers:
    """The clock is a parameter; nothing runs by itself, the loop asks for what is due."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._repeated: list[tuple[float, Job]] = []
        self._next: list[float] = []
        self._once: dict[str, tuple[float, Job]] = {}

    def every(self, seconds: float, job: Job) -> None:
        self._repeated.append((seconds, job))
        self._next.append(self._clock() + seconds)

    def once(self, name: str, seconds: float, job: Job) -> None:
        """Another request of that name that waits already stands."""
        self._once.setdefault(name, (self._clock() + seconds, job))

    def left(self) -> float | None:
        """Seconds until something is due; None: nothing is planned."""
        times = [*self._next, *(at for at, _ in self._once.values())]
        return max(0.0, min(times) - self._clock()) if times else None

    def due(self) -> list[Job]:
        """What is due now; it is planned anew or taken out."""
        now = self._clock()
        jobs = []
        for index, (seconds, job) in enumerate(self._repeated):
            if self._next[index] <= now:
                self._next[index] = now + seconds
                jobs.append(job)
        for name in [name for name, (at, _) in self._once.items() if at <= now]:
            jobs.append(self._once.pop(name)[1])
        return jobs
