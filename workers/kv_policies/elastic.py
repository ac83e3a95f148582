"""Elastic Cache: what goes joins its neighbour. Source: Liu et al. 2024, arXiv:2407.18121."""

from __future__ import annotations

import torch

from workers.kv_observation import LayerObservation
from workers.kv_policy import KV_POLICIES, KeptHead
from workers.sum_score import SumScore


@KV_POLICIES.register("elastic")
class Elastic(SumScore):
    """Column sums choose; each other token joins the kept one next to it, the earlier of two."""

    def keep_head(self, seen: LayerObservation, head: int, tokens: torch.Tensor) -> KeptHead:
        """See KvPolicy."""
        count = len(tokens)
        distance = (torch.arange(seen.num_tokens)[:, None] - tokens).abs()
        slot = distance.argmin(1)
        keys = _mean_by_slot(seen.keys[head], slot, count)
        values = _mean_by_slot(seen.values[head], slot, count)
        return KeptHead(tokens, keys, values, torch.zeros(count))


def _mean_by_slot(rows: torch.Tensor, slot: torch.Tensor, num_slots: int) -> torch.Tensor:
    sums = torch.zeros(num_slots, rows.shape[1]).index_add_(0, slot, rows.float())
    return (sums / torch.bincount(slot, minlength=num_slots)[:, None]).to(rows.dtype)
