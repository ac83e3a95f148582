"""PrefixKV: layers keep equal shares of attention. Source: Wang et al. 2024, arXiv:2412.03409.

The paper averages the layers' shares over samples beforehand; here each prompt finds its own.
"""

from __future__ import annotations

import torch

from workers.kv_policy import KV_POLICIES, LayeredPolicy
from workers.sum_score import SumScore

BISECTIONS = 40


@KV_POLICIES.register("prefixkv")
class PrefixKv(SumScore, LayeredPolicy):
    """Column sums choose the tokens; one threshold on their sum chooses how many."""

    def layer_budgets(self, scores: list[torch.Tensor], num_free: list[int]) -> list[int]:
        """See LayeredPolicy: tokens that reach the largest share which fits, found by bisection."""
        reached = [_reached(score.double().mean(0)) for score in scores]
        low, high, total = 0.0, 1.0, sum(num_free)
        for _ in range(BISECTIONS):
            share = (low + high) / 2
            fits = sum(_needed(layer, share) for layer in reached) <= total
            low, high = (share, high) if fits else (low, share)
        budgets = [_needed(layer, low) for layer in reached]
        return _fill(budgets, [len(layer) for layer in reached], total)


def _reached(importance: torch.Tensor) -> torch.Tensor:
    sums = importance.sort(descending=True).values.cumsum(0)
    return sums / sums[-1:]


def _needed(reached: torch.Tensor, share: float) -> int:
    return min(len(reached), int((reached < share).sum()) + 1) if share else 0


def _fill(budgets: list[int], rooms: list[int], total: int) -> list[int]:
    """Give what ties and rounding left over to the first layers that have room."""
    left = total - sum(budgets)
    filled = []
    for budget, room in zip(budgets, rooms, strict=True):
        more = min(left, room - budget)
        filled.append(budget + more)
        left -= more
    return filled
