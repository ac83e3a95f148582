"""DARE, then a weighted sum; peft's `dare_linear` and `dare_linear_svd`."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from workers.dropped import dropped
from workers.merge import MERGES, TensorMerge, weighted_sum


@MERGES.register("dare_linear")
class DareLinear(TensorMerge):
    """Adapters that keep few entries each rarely meet."""

    class Config(TensorMerge.Config):
        """Options of DARE."""

        density: float = Field(0.5, gt=0, le=1, description="Odds of keeping an entry.")
        seed: int = Field(0, ge=0, lt=2**31, description="Seed of the choice.")

    config: Config

    def combine_tensors(self, place: str, tensors: list[Tensor], weights: list[float]) -> Tensor:
        """See TensorMerge."""
        kept = dropped(tensors, self.config.density, self.config.seed, place)
        return weighted_sum(kept, weights)
