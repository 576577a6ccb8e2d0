"""Summaries with quantiles, as Felix's dashboards read them; the Python client's have a sum and a count only."""

from __future__ import annotations

import time
from collections import deque
from typing import Any, Callable, Iterable

from prometheus_client import Summary
from prometheus_client.samples import Sample

# Those of Felix's summaries.
QUANTILES = (0.5, 0.9, 0.99)
# As of the Go client's: what is older does not count. At most so many are kept.
_AGE_SECONDS = 600.0
_KEPT = 1024


class Quantiles(Summary):
    """Of the last ten minutes; nan while nothing was seen in them."""

    # The client's way to tell a class's own attributes from labels.
    _clock: Callable[[], float] = staticmethod(time.monotonic)

    def _metric_init(self) -> None:
        super()._metric_init()
        self._recent: deque[tuple[float, float]] = deque(maxlen=_KEPT)

    def observe(self, amount: float) -> None:
        super().observe(amount)
        self._recent.append((self._clock(), amount))

    def _child_samples(self) -> Iterable[Sample]:
        oldest = self._clock() - _AGE_SECONDS
        # A copy at once: another thread observes.
        values = sorted(value for at, value in tuple(self._recent) if at >= oldest)
        named: list[Any] = [
            Sample("", {"quantile": str(quantile)}, _at(values, quantile), None, None) for quantile in QUANTILES]
        return (*named, *super()._child_samples())


def _at(values: list[float], quantile: float) -> float:
    return values[min(len(values) - 1, int(quantile * len(values)))] if values else float("nan")
