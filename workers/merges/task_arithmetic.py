"""Task arithmetic: one coefficient times the weighted sum of updates.

Exact at the sum of the ranks; or cut to a wanted rank. A negative weight subtracts a task.

Source: Ilharco et al. 2022, arXiv:2212.04089.
"""

from __future__ import annotations

from pydantic import Field

from workers.lora_factors import Factors, concatenated, truncated_factors
from workers.merge import MERGES, SiteMerge


@MERGES.register("task_arithmetic")
class TaskArithmetic(SiteMerge):
    """Updates are added as vectors."""

    class Config(SiteMerge.Config):
        """Options of task arithmetic."""

        coefficient: float = Field(1.0, gt=0, le=10, description="Factor on the whole sum.")
        rank: int | None = Field(
            None, ge=1, le=256, description="Cut to this rank; left out, ranks add up."
        )

    config: Config

    def combine_site(self, site: str, factors: list[Factors], weights: list[float]) -> Factors:
        """See SiteMerge."""
        del site
        exact = concatenated(factors, [self.config.coefficient * weight for weight in weights])
        if self.config.rank is None or exact.rank <= self.config.rank:
            return exact
        return truncated_factors(exact, self.config.rank)
