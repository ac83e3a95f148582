"""PyramidKV: early layers keep more than late ones. Source: Cai et al. 2024, arXiv:2406.02069."""

from __future__ import annotations

import torch
from pydantic import Field

from workers.kv_policy import KV_POLICIES, LayeredPolicy
from workers.snap_score import SnapScore


@KV_POLICIES.register("pyramid")
class Pyramid(SnapScore, LayeredPolicy):
    """Budgets fall in a straight line from 2 * budget - budget / beta to budget / beta."""

    class Config(SnapScore.Config):
        """Options of PyramidKV."""

        beta: float = Field(
            20, ge=1, le=1000, description="How much less than average the last layer keeps."
        )

    config: Config

    def layer_budgets(self, scores: list[torch.Tensor], num_free: list[int]) -> list[int]:
        """See LayeredPolicy: the line, rounded down, no flatter than the longest layer demands."""
        steps, longest = max(1, len(scores) - 1), max(score.shape[1] for score in scores)
        budgets = []
        for layer, mean in enumerate(num_free):
            reach = min(mean - mean / self.config.beta, longest - mean)
            slope = 1 - 2 * layer / steps if len(scores) > 1 else 0
            budgets.append(int(mean + slope * reach + 1e-9))
        return budgets
