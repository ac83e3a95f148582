"""AdaKV: heads of a layer share one budget. Source: Feng et al. 2024, arXiv:2407.11550."""

from __future__ import annotations

import torch
from pydantic import Field

from workers.kv_policy import KV_POLICIES
from workers.snap_score import SnapScore


@KV_POLICIES.register("adakv")
class AdaKv(SnapScore):
    """A head gets as many tokens as it has among the layer's best, and never less than a floor."""

    class Config(SnapScore.Config):
        """Options of AdaKV."""

        floor: float = Field(
            0.2, ge=0, le=1, description="Share of an equal budget that every head gets."
        )

    config: Config

    def head_budgets(self, scores: torch.Tensor, budget: int) -> list[int]:
        """Round down(count * (1 - floor) + floor * budget); what is left goes to most rounded."""
        num_heads, num_tokens = scores.shape
        best = scores.flatten().argsort(descending=True, stable=True)[: num_heads * budget]
        counts = torch.zeros(num_heads, dtype=torch.long)
        if num_tokens:
            counts = torch.bincount(best // num_tokens, minlength=num_heads)
        shares = counts.double() * (1 - self.config.floor) + self.config.floor * budget
        budgets = (shares + 1e-9).floor()
        left = num_heads * budget - int(budgets.sum())
        budgets[(shares - budgets).argsort(descending=True, stable=True)[:left]] += 1
        return [int(each) for each in budgets]
