"""TIES: trim small entries, elect a sign for each place, average those that agree with it.

peft's `ties` and `ties_svd`.  Source: Yadav et al. 2023, arXiv:2306.01708.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from workers.merge import MERGES, TensorMerge, elected_mean, kept_by_magnitude


@MERGES.register("ties")
class Ties(TensorMerge):
    """Entries of opposite signs do not cancel each other."""

    class Config(TensorMerge.Config):
        """Options of TIES."""

        density: float = Field(0.5, gt=0, le=1, description="Share of the entries that is kept.")
        majority_sign: Literal["total", "frequency"] = Field(
            "total", description="Elect by the sum of entries, or by how many have each sign."
        )

    config: Config

    def combine_tensors(self, place: str, tensors: list[Tensor], weights: list[float]) -> Tensor:
        """See TensorMerge."""
        del place
        kept = [kept_by_magnitude(tensor, self.config.density) for tensor in tensors]
        return elected_mean(kept, weights, self.config.majority_sign)
