"""CMA-ES: minimise a function of a few dozen numbers by sampling, without gradients.

Each generation is drawn from a normal distribution; its better half moves the mean, and the path
of the means shapes the covariance and the step.

Source: Hansen 2016, "The CMA Evolution Strategy: A Tutorial", arXiv:1604.00772, with its constants.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]


class CmaEs:
    """A search over `len(start)` numbers: ask for points, tell their costs, repeat."""

    def __init__(
        self, start: Vector, step: float, seed: int, population: int | None = None
    ) -> None:
        n = len(start)
        self.mean, self.step = start.astype(np.float64), step
        self.population = population or 5 + int(3 * math.log(n))
        self._rng = np.random.default_rng(seed)
        half = self.population // 2
        raw = math.log((self.population + 1) / 2) - np.log(np.arange(1, half + 1))
        self._shares = raw / raw.sum()
        self._mass = 1 / float((self._shares**2).sum())
        mass = self._mass
        self._c_step = (mass + 2) / (n + mass + 5)
        self._damping = 1 + 2 * max(0.0, math.sqrt((mass - 1) / (n + 1)) - 1) + self._c_step
        self._c_path = (4 + mass / n) / (n + 4 + 2 * mass / n)
        self._c_one = 2 / ((n + 1.3) ** 2 + mass)
        self._c_many = min(1 - self._c_one, 2 * (mass - 2 + 1 / mass) / ((n + 2) ** 2 + mass))
        self._normal_length = math.sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n**2))
        self._path, self._step_path = np.zeros(n), np.zeros(n)
        self._covariance = np.eye(n)
        self._generation = 0

    def ask(self) -> Vector:
        """(population, n) points to try."""
        values, axes = np.linalg.eigh(self._covariance)
        self._lengths, self._axes = np.sqrt(np.maximum(values, 1e-20)), axes
        draws = self._rng.standard_normal((self.population, len(self.mean)))
        self._moves = (draws * self._lengths) @ self._axes.T
        points: Vector = self.mean + self.step * self._moves
        return points

    def tell(self, costs: Vector) -> None:
        """Costs of the points last asked for; NaN counts as the worst."""
        order = np.argsort(np.where(np.isnan(costs), np.inf, costs), kind="stable")
        best = self._moves[order[: len(self._shares)]]
        move = self._shares @ best
        self.mean = self.mean + self.step * move
        self._generation += 1
        is_moving = self._turn_paths(move)
        spread = (best.T * self._shares) @ best
        stalled = (1 - is_moving) * self._c_path * (2 - self._c_path)
        self._covariance = (
            (1 - self._c_one - self._c_many) * self._covariance
            + self._c_one * (np.outer(self._path, self._path) + stalled * self._covariance)
            + self._c_many * spread
        )

    def _turn_paths(self, move: Vector) -> bool:
        """Follow the mean; False while the step grows too fast for its path to count."""
        n, c = len(self.mean), self._c_step
        white = self._axes @ ((self._axes.T @ move) / self._lengths)
        self._step_path = (1 - c) * self._step_path + math.sqrt(c * (2 - c) * self._mass) * white
        length = float(np.linalg.norm(self._step_path))
        self.step *= math.exp(c / self._damping * (length / self._normal_length - 1))
        settled = math.sqrt(1 - (1 - c) ** (2 * self._generation))
        is_moving = length / settled < (1.4 + 2 / (n + 1)) * self._normal_length
        c = self._c_path
        self._path = (1 - c) * self._path + is_moving * math.sqrt(c * (2 - c) * self._mass) * move
        return is_moving
