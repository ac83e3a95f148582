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
        """Round down(count * (1 - floor) + floor * budget); what is left goes to most rounded.

        When an answer is compressed again a head may hold less than it is due; it keeps all then.
        """
        num_heads, num_slots = scores.shape
        best = scores.flatten().argsort(descending=True, stable=True)[: num_heads * budget]
        counts = torch.zeros(num_heads, dtype=torch.long)
        if num_slots:
            counts = torch.bincount(best // num_slots, minlength=num_heads)
        shares = (counts.double() * (1 - self.config.floor) + self.config.floor * budget).tolist()
        return _rounded(shares, scores.isfinite().sum(1).tolist(), num_heads * budget)


def _rounded(shares: list[float], rooms: list[int], total: int) -> list[int]:
    """Shares rounded down within rooms; the rest, one by one, goes to whom most is missing."""
    counts = [min(int(share + 1e-9), room) for share, room in zip(shares, rooms, strict=True)]
    for _ in range(min(total, sum(rooms)) - sum(counts)):
        roomy = (head for head, count in enumerate(counts) if count < rooms[head])
        counts[max(roomy, key=lambda head: shares[head] - counts[head])] += 1
    return counts
