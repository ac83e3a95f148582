"""DARE, then TIES' election and mean; peft's `dare_ties` and `dare_ties_svd`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from workers.dropped import dropped
from workers.merge import MERGES, TensorMerge, elected_mean


@MERGES.register("dare_ties")
class DareTies(TensorMerge):
    """Entries are dropped at random in place of the small ones."""

    class Config(TensorMerge.Config):
        """Options of DARE with TIES."""

        density: float = Field(0.5, gt=0, le=1, description="Odds of keeping an entry.")
        seed: int = Field(0, ge=0, lt=2**31, description="Seed of the choice.")
        majority_sign: Literal["total", "frequency"] = Field(
            "total", description="Elect by the sum of entries, or by how many have each sign."
        )

    config: Config

    def combine_tensors(self, place: str, tensors: list[Tensor], weights: list[float]) -> Tensor:
        """See TensorMerge."""
        kept = dropped(tensors, self.config.density, self.config.seed, place)
        return elected_mean(kept, weights, self.config.majority_sign)
