"""Keep each tensor's largest entries, then add; peft's `magnitude_prune` and `_svd`."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from workers.merge import MERGES, TensorMerge, kept_by_magnitude, weighted_sum


@MERGES.register("magnitude_prune")
class MagnitudePrune(TensorMerge):
    """Small entries are noise that adds up."""

    class Config(TensorMerge.Config):
        """Options of magnitude pruning."""

        density: float = Field(0.5, gt=0, le=1, description="Share of the entries that is kept.")

    config: Config

    def combine_tensors(self, place: str, tensors: list[Tensor], weights: list[float]) -> Tensor:
        """See TensorMerge."""
        del place
        kept = [kept_by_magnitude(tensor, self.config.density) for tensor in tensors]
        return weighted_sum(kept, weights)
