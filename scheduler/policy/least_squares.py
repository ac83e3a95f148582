"""Robust recursive least squares with forgetting: a linear law learnt one observation at a time.

Plain Python: with a handful of features it beats a call into a linear-algebra library, and it
starts no threads beside the engine's own.

A step that another process stopped for 50 ms says nothing about steps: what an observation may
teach is bounded by a few times the usual error. Where everything has become slower for good, the
usual error grows, and with it what is believed.

Source: Haykin, Adaptive Filter Theory, chapter on RLS (exponentially weighted form); Huber 1964
(residuals bounded at a multiple of their scale).
"""

from __future__ import annotations

from collections.abc import Sequence

FORGETTING = 0.998  # an observation's weight halves after some 350 steps
PRIOR_VARIANCE = 100.0
MAX_VARIANCE = 1e3  # keeps directions that are never observed from growing without bound
MAX_SURPRISE = 3.0  # times the usual error: the rest of a residual is an accident
LEAST_ERROR = 0.01  # of a prediction, that is never a surprise
ERROR_RATE = 0.02  # how fast the usual error follows


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
        self._relative_error_mean = 0.0
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
        predicted = self.predict(x)
        self._follow(x, self._believed(predicted, y - predicted))
        self.num_observations += 1
        informed = self.num_observations - len(self.weights)
        if informed > 0:  # before, the residual is the prior's, not the law's
            rate = max(ERROR_RATE, 1 / informed)
            error = abs(y - predicted)
            self._error_mean += rate * (error - self._error_mean)
            relative = min(1.0, error / max(abs(predicted), 1e-9))
            self._relative_error_mean += rate * (relative - self._relative_error_mean)

    def _believed(self, predicted: float, residual: float) -> float:
        """What a residual may teach."""
        if self.num_observations <= 2 * len(self.weights):
            return residual
        usual = max(LEAST_ERROR, self._relative_error_mean) * abs(predicted)
        return max(-MAX_SURPRISE * usual, min(MAX_SURPRISE * usual, residual))

    def _follow(self, x: list[float], residual: float) -> None:
        """Move the weights by the gain of RLS, and forget a little."""
        spread = [dot(row, x) for row in self._covariance]
        norm = FORGETTING + dot(x, spread)
        gain = [s / norm for s in spread]
        self.weights = [w + g * residual for w, g in zip(self.weights, gain, strict=True)]
        after = [
            [(p - g * s) / FORGETTING for p, s in zip(row, spread, strict=True)]
            for row, g in zip(self._covariance, gain, strict=True)
        ]
        excess = max(1.0, max(row[i] for i, row in enumerate(after)) / MAX_VARIANCE)
        self._covariance = [[p / excess for p in row] for row in after]
