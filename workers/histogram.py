"""Counts of measured values by size."""

from __future__ import annotations

from bisect import bisect_left

from scheduler.domain.engine_stats import HistogramTotals


class Histogram:
    """Buckets up to each bound, bounds included, and one for everything above."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self.bounds, value)] += 1
        self._total += value

    def totals(self) -> HistogramTotals:
        """Everything counted so far."""
        return HistogramTotals(bounds=self.bounds, counts=tuple(self._counts), total=self._total)
