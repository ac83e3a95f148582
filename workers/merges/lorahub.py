"""LoraHub: a hub's adapters composed with weights that a few examples choose, without gradients.

    A = sum w_i A_i,   B = sum w_i B_i,   weights minimise -score(A, B) + penalty * mean |w_i|

Source: Huang et al. 2023, arXiv:2307.13269, sections 3.2 and 3.3: weights start at zero, within
+-1.5, 40 trials. Its optimiser is Shiwa from a library; ours is CMA-ES.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from pydantic import Field

from workers.adapter_file import LoadedAdapter
from workers.cma_es import CmaEs, Vector
from workers.lora_factors import Factors
from workers.merge import (
    MERGES,
    Composition,
    Score,
    SiteMerge,
    check_equal_ranks,
    weighted_sum,
)


@MERGES.register("lorahub")
class LoraHub(SiteMerge):
    """`merge` composes with given weights; `learn` finds them."""

    class Config(SiteMerge.Config):
        """Options of LoraHub."""

        trials: int = Field(40, ge=1, le=10_000, description="Adapters scored while learning.")
        bound: float = Field(1.5, gt=0, le=10, description="No weight is larger than this.")
        penalty: float = Field(0.05, ge=0, le=10, description="Cost of a mean weight of one.")
        seed: int = Field(0, ge=0, lt=2**31, description="Seed of the search.")

    config: Config
    learns_weights = True

    def combine_site(self, site: str, factors: list[Factors], weights: list[float]) -> Factors:
        """See SiteMerge. The scale's root goes to each factor, so that 1 is the adapter itself."""
        del site
        check_equal_ranks(factors)
        scaled = [w * f.scale**0.5 for f, w in zip(factors, weights, strict=True)]
        return Factors(
            weighted_sum([f.a_RI for f in factors], scaled),
            weighted_sum([f.b_OR for f in factors], scaled),
        )

    def learn(self, adapters: Sequence[LoadedAdapter], score: Score) -> Composition:
        """See Merge. The best score, less a penalty on large weights."""
        c = self.config
        search = CmaEs(np.zeros(len(adapters)), c.bound / 3, c.seed)
        best: tuple[float, Composition] | None = None
        left = c.trials
        while left > 0:
            points = np.clip(search.ask(), -c.bound, c.bound)
            tried = [self._try(adapters, point, score) for point in points[:left]]
            left -= len(tried)
            for cost, composition in tried:
                if best is None or cost < best[0]:
                    best = cost, composition
            if len(tried) == search.population:
                search.tell(np.array([cost for cost, _ in tried]))
        assert best is not None
        return best[1]

    def _try(
        self, adapters: Sequence[LoadedAdapter], point: Vector, score: Score
    ) -> tuple[float, Composition]:
        """(cost, what was tried)."""
        weights = tuple(float(w) for w in point)
        adapter = self.merge(adapters, weights)
        reached = score(adapter)
        cost = self.config.penalty * float(np.abs(point).mean()) - reached
        return math.inf if math.isnan(cost) else cost, Composition(adapter, weights, reached)
