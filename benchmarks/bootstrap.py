"""Confidence intervals of means over texts that several models were asked, by resampling texts.

All policies are resampled alike, so their differences are paired. Each model's texts are drawn
among themselves, and every model counts the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Figures = Sequence[Sequence[float]]  # by model, by text

NUM_RESAMPLES = 10_000
INTERVAL = (2.5, 97.5)


class Interval(NamedTuple):
    """A mean, and where 95 % of the drawings' means lie."""

    mean: float
    low: float
    high: float


class Resamples:
    """NUM_RESAMPLES drawings of texts, with replacement.

    Args:
        counts: texts of each model.
        seed: of the drawings.
    """

    def __init__(self, counts: Sequence[int], seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self._weights = [
            rng.multinomial(count, np.full(count, 1 / count), NUM_RESAMPLES) / count
            for count in counts
        ]

    def means(self, figures: Figures) -> NDArray[np.float64]:
        """The mean over models of their means, in every drawing."""
        pairs = zip(self._weights, figures, strict=True)
        by_model = [weights @ np.asarray(texts) for weights, texts in pairs]
        means: NDArray[np.float64] = np.mean(by_model, axis=0)
        return means

    def interval(self, figures: Figures) -> Interval:
        """The mean, and where 95 % of the drawings' means lie."""
        low, high = np.percentile(self.means(figures), INTERVAL)
        return Interval(mean(figures), float(low), float(high))

    def difference(self, figures: Figures, others: Figures) -> Interval:
        """The same of the difference between two policies."""
        low, high = np.percentile(self.means(figures) - self.means(others), INTERVAL)
        return Interval(mean(figures) - mean(others), float(low), float(high))


def mean(figures: Figures) -> float:
    """The mean over models of their means."""
    return float(np.mean([np.mean(texts) for texts in figures]))
