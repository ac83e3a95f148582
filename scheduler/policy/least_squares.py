"""Recursive least squares with forgetting: a linear law learnt one observation at a time.

Plain Python: with a handful of features it beats a call into a linear-algebra library, and it
starts no threads beside the engine's own.

Source: Haykin, Adaptive Filter Theory, chapter on RLS (exponentially weighted form).
"""

from __future__ import annotations

from collections.abc import Sequence

FORGETTING = 0.998  # an observation's weight halves after some 350 steps
PRIOR_VARIANCE = 100.0
MAX_VARIANCE = 1e6  # keeps directions that are never observed from growing without bound


def dot(a: Sequence[float], b: Sequence[float]) -> float:
    """Inner product."""
    return sum(x * y for x, y in zip(a, b, strict=True))


class OnlineLeastSquares:
    """y = w . x, starting from a prior guess of w."""

    def __init__(self, prior: list[float]) -> None:
        self.weights = list(prior)
        size = len(prior)
        self._covariance = [[PRIOR_VARIANCE * (i == j) for j in range(size)] for i in range(size)]
        self._error_mean = 0.0
        self.num_observations = 0

    def predict(self, x: list[float]) -> float:
        """The law's value at `x`."""
        return dot(self.weights, x)

    @property
    def error(self) -> float:
        """Running mean of the absolute error of predictions made before the fit."""
        return self._error_mean

    def observe(self, x: list[float], y: float) -> None:
        """Learn from one observation."""
        residual = y - dot(self.weights, x)
        spread = [dot(row, x) for row in self._covariance]
        norm = FORGETTING + dot(x, spread)
        gain = [s / norm for s in spread]
        self.weights = [w + g * residual for w, g in zip(self.weights, gain, strict=True)]
        self._covariance = [
            [
                max(-MAX_VARIANCE, min(MAX_VARIANCE, (p - g * s) / FORGETTING))
                for p, s in zip(row, spread, strict=True)
            ]
            for row, g in zip(self._covariance, gain, strict=True)
        ]
        self.num_observations += 1
        informed = self.num_observations - len(self.weights)
        if informed > 0:  # before, the residual is the prior's, not the law's
            self._error_mean += max(0.02, 1 / informed) * (abs(residual) - self._error_mean)
