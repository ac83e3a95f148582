"""Robust least squares with forgetting: a linear law learnt one observation at a time.

Plain Python: with a handful of features it beats a call into a linear-algebra library, and it
starts no threads beside the engine's own.

What was observed is kept as sums that fade, beside a ridge that does not: it ties weights that
nothing has been said about lately to their prior, where the covariance form of the same recursion
lets them, and then everything, run away. The weights are solved for anew every few observations.

Residuals count relative to what was observed: a decode step of 15 ms is as much worth being right
about as a prompt of 150, which would otherwise decide alone what both should take.

A step that another process stopped for 50 ms says nothing about steps: what an observation may
teach is bounded by a few times the usual error. Where everything has become slower for good, the
usual error grows, and with it what is believed.

Source: Haykin, Adaptive Filter Theory, chapter on RLS (exponentially weighted, regularized); Huber
1964 (residuals bounded at a multiple of their scale); Aitken 1936 (weights that make residuals of
unequal scale comparable).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

FORGETTING = 0.985  # an observation's weight halves after some 46 steps
RIDGE = 1e-5  # of one observation on a term that explains all of it
MAX_SURPRISE = 3.0  # times the usual error: the rest of a residual is an accident
LEAST_ERROR = 0.01  # of a prediction, that is never a surprise
LEAST_VALUE = 0.01  # what is smaller is not told apart
SOLVE_EVERY = 4  # observations, once SETTLED are there
SETTLED = 100
ERROR_RATE = 0.02  # how fast the usual error follows


def dot(a: Sequence[float], b: Sequence[float]) -> float:
    """Inner product."""
    return sum(x * y for x, y in zip(a, b, strict=True))


class OnlineLeastSquares:
    """y = w . x, starting from a prior guess of w."""

    def __init__(self, prior: list[float]) -> None:
        self.weights = list(prior)
        size = len(prior)
        self._prior = prior
        self._squares = [[0.0] * (i + 1) for i in range(size)]  # lower triangle
        self._products = [0.0] * size
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
        predicted = dot(self.weights, x)
        believed = predicted + self._believed(predicted, y)
        self._add(x, believed, 1 / max(predicted, y, LEAST_VALUE))
        self.num_observations += 1
        if self.num_observations <= SETTLED or self.num_observations % SOLVE_EVERY == 0:
            step = solve(self._squares, self._products, RIDGE)
            self.weights = [w + d for w, d in zip(self._prior, step, strict=True)]
        informed = self.num_observations - len(self.weights)
        if informed > 0:  # before, the residual is the prior's, not the law's
            rate = max(ERROR_RATE, 1 / informed)
            error = min(abs(y - predicted), abs(predicted))  # a stall of seconds is no usual error
            self._error_mean += rate * (error - self._error_mean)
            relative = error / max(abs(predicted), 1e-9)
            self._relative_error_mean += rate * (relative - self._relative_error_mean)

    def _believed(self, predicted: float, y: float) -> float:
        """What the residual of `y` may teach; something even where nothing was expected."""
        residual = y - predicted
        if self.num_observations <= 2 * len(self.weights):
            return residual
        usual = max(LEAST_ERROR, self._relative_error_mean) * max(abs(predicted), y / 4)
        return max(-MAX_SURPRISE * usual, min(MAX_SURPRISE * usual, residual))

    def _add(self, x: list[float], y: float, scale: float) -> None:
        """Fade the sums, and add a scaled observation of what the prior does not explain."""
        rest = (y - dot(self._prior, x)) * scale
        x = [v * scale for v in x]
        for i, row in enumerate(self._squares):
            row[:] = [FORGETTING * s + x[i] * v for s, v in zip(row, x, strict=False)]
        self._products = [FORGETTING * p + rest * v for p, v in zip(self._products, x, strict=True)]


def solve(lower: list[list[float]], right: list[float], ridge: float) -> list[float]:
    """Solve (A + ridge I) z = right by Cholesky factors; `lower` is the lower half of A >= 0."""
    factor: list[list[float]] = []
    forward: list[float] = []
    for i, row in enumerate(lower):
        mine: list[float] = []
        for j, above in enumerate(factor):
            mine.append((row[j] - dot(mine, above[:j])) / above[j])
        pivot = sqrt(max(ridge, row[i] + ridge - dot(mine, mine)))
        forward.append((right[i] - dot(mine, forward)) / pivot)
        factor.append([*mine, pivot])
    z = forward
    for i in reversed(range(len(z))):
        z[i] /= factor[i][i]
        for j in range(i):
            z[j] -= factor[i][j] * z[i]
    return z
