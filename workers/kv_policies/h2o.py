"""H2O: what got most attention from all queries. Source: Zhang et al. 2023, arXiv:2306.14048."""

from __future__ import annotations

import torch

from workers.kv_observation import LayerObservation
from workers.kv_policy import KV_POLICIES, KvPolicy


@KV_POLICIES.register("h2o")
class H2o(KvPolicy):
    """Heavy hitters beside the window."""

    def score(self, seen: LayerObservation) -> torch.Tensor:
        """See KvPolicy."""
        return seen.column_sums
