"""CMA-ES finds minima of functions that it only samples."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from workers.cma_es import CmaEs, Vector

if TYPE_CHECKING:
    from collections.abc import Callable


def sphere(x: Vector) -> float:
    return float(((x - 1) ** 2).sum())


def ellipse(x: Vector) -> float:
    return float((1e4 ** np.linspace(0, 1, len(x)) * (x - 1) ** 2).sum())


def rosenbrock(x: Vector) -> float:
    return float((100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum())


def run(cost: Callable[[Vector], float], n: int, generations: int, seed: int = 0) -> Vector:
    search = CmaEs(np.zeros(n), 0.5, seed)
    for _ in range(generations):
        search.tell(np.array([cost(x) for x in search.ask()]))
    return search.mean


@pytest.mark.parametrize(
    ("cost", "n", "generations"),
    [(sphere, 1, 60), (sphere, 20, 250), (ellipse, 6, 250), (rosenbrock, 4, 400)],
)
def test_it_finds_the_minimum(cost: Callable[[Vector], float], n: int, generations: int) -> None:
    assert run(cost, n, generations) == pytest.approx(np.ones(n), abs=1e-3)


def test_the_same_seed_takes_the_same_way() -> None:
    assert np.array_equal(run(sphere, 5, 10, seed=3), run(sphere, 5, 10, seed=3))
    assert not np.array_equal(run(sphere, 5, 10, seed=3), run(sphere, 5, 10, seed=4))


def test_a_cost_that_is_no_number_is_the_worst() -> None:
    def half_blind(x: Vector) -> float:
        return float("nan") if x[0] < 0 else sphere(x)

    assert run(half_blind, 3, 100) == pytest.approx(np.ones(3), abs=1e-3)
