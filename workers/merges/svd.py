"""The weighted sum of updates, cut to a rank by SVD; peft's `svd`, without a dense update."""

from __future__ import annotations

import torch
from pydantic import Field

from workers.lora_factors import Factors, concatenated, truncated_factors
from workers.merge import MERGES, SiteMerge


@MERGES.register("svd")
class Svd(SiteMerge):
    """The closest adapter of the wanted rank to the weighted sum."""

    class Config(SiteMerge.Config):
        """Options of the SVD merge."""

        rank: int | None = Field(
            None, ge=1, le=256, description="Rank of the result; left out, the largest given."
        )
        clamp: float | None = Field(
            None, gt=0, le=1, description="Quantile of the factors' entries that bounds them all."
        )

    config: Config

    def combine_site(self, site: str, factors: list[Factors], weights: list[float]) -> Factors:
        """See SiteMerge."""
        del site
        rank = self.config.rank or max(f.rank for f in factors)
        cut = truncated_factors(concatenated(factors, weights), rank)
        if self.config.clamp is None:
            return cut
        entries = torch.cat((cut.b_OR.flatten(), cut.a_RI.flatten()))
        bound = float(torch.quantile(entries, self.config.clamp))
        return Factors(cut.a_RI.clamp(-bound, bound), cut.b_OR.clamp(-bound, bound))
