"""Weighted sums of the A factors and of the B factors; peft's `linear`.

The update is the product of the sums, so it holds every pair of adapters' cross terms.
"""

from __future__ import annotations

from workers.lora_factors import Factors
from workers.merge import MERGES, SiteMerge, divided, weighted_sum


@MERGES.register("linear")
class Linear(SiteMerge):
    """A and B apart; the sum of updates themselves is `svd` or `task_arithmetic`."""

    def combine_site(self, site: str, factors: list[Factors], weights: list[float]) -> Factors:
        """See SiteMerge."""
        del site
        for_a, for_b = divided(factors, weights)
        return Factors(
            weighted_sum([f.a_RI for f in factors], for_a),
            weighted_sum([f.b_OR for f in factors], for_b),
        )
