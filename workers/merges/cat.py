"""The weighted sum of updates, exactly, at the sum of the ranks; peft's `cat`."""

from __future__ import annotations

from workers.lora_factors import Factors, concatenated
from workers.merge import MERGES, SiteMerge


@MERGES.register("cat")
class Concatenation(SiteMerge):
    """A factors one below the other, B factors side by side."""

    def combine_site(self, site: str, factors: list[Factors], weights: list[float]) -> Factors:
        """See SiteMerge."""
        del site
        return concatenated(factors, weights)
