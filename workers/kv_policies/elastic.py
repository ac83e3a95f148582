"""Elastic Cache: what goes joins its neighbour. Source: Liu et al. 2024, arXiv:2407.18121.

The paper drops at a fixed distance while it decodes; here a later compression merges as the first
one does, and a slot that holds a mean counts as one token.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from workers.kv_observation import LayerObservation
from workers.kv_policy import KV_POLICIES, KeptHead
from workers.sum_score import SumScore


@KV_POLICIES.register("elastic")
class Elastic(SumScore):
    """Column sums choose; each other token joins the kept one next to it, the earlier of two."""

    def keep_head(self, seen: LayerObservation, head: int, slots: torch.Tensor) -> KeptHead:
        """See KvPolicy."""
        kept = super().keep_head(seen, head, slots)
        distance = (seen.positions[head][:, None] - kept.positions).abs()
        nearest = distance.argmin(1)
        return replace(
            kept,
            keys=_mean_by_slot(seen.keys[head], nearest, len(slots)),
            values=_mean_by_slot(seen.values[head], nearest, len(slots)),
        )


def _mean_by_slot(rows: torch.Tensor, slot: torch.Tensor, num_slots: int) -> torch.Tensor:
    sums = torch.zeros(num_slots, rows.shape[1]).index_add_(0, slot, rows.float())
    return (sums / torch.bincount(slot, minlength=num_slots)[:, None]).to(rows.dtype)
