"""Recursive least squares with forgetting: a linear law learnt one observation at a time.

Source: Haykin, Adaptive Filter Theory, chapter on RLS (exponentially weighted form).
"""

from __future__ import annotations

import numpy as np

FORGETTING = 0.998  # an observation's weight halves after some 350 steps
PRIOR_VARIANCE = 100.0


class OnlineLeastSquares:
    """y = w . x, starting from a prior guess of w."""

    def __init__(self, prior: list[float]) -> None:
        self.weights = np.array(prior, dtype=np.float64)
        self._covariance = np.eye(len(prior)) * PRIOR_VARIANCE
        self._error_mean = 0.0
        self.num_observations = 0

    def predict(self, x: list[float]) -> float:
        """The law's value at `x`."""
        return float(self.weights @ np.asarray(x))

    @property
    def error(self) -> float:
        """Running mean of the absolute error of predictions made before the fit."""
        return self._error_mean

    def observe(self, x: list[float], y: float) -> None:
        """Learn from one observation."""
        features = np.asarray(x)
        residual = y - float(self.weights @ features)
        spread = self._covariance @ features
        gain = spread / (FORGETTING + features @ spread)
        self.weights += gain * residual
        self._covariance = (self._covariance - np.outer(gain, spread)) / FORGETTING
        np.clip(self._covariance, -1e6, 1e6, out=self._covariance)
        self.num_observations += 1
        rate = max(0.02, 1 / self.num_observations)
        self._error_mean += rate * (abs(residual) - self._error_mean)
