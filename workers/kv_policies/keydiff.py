"""KeyDiff: keys unlike the mean, whatever is asked. Source: Park et al. 2025, arXiv:2504.15364."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from workers.kv_observation import LayerObservation
from workers.kv_policy import KV_POLICIES, KvPolicy


@KV_POLICIES.register("keydiff")
class KeyDiff(KvPolicy):
    """score = -cos(key, mean of the normalised keys)."""

    def score(self, seen: LayerObservation) -> torch.Tensor:
        """See KvPolicy."""
        directions = F.normalize(seen.keys.float(), dim=-1)
        return -F.cosine_similarity(directions, directions.mean(1, keepdim=True), dim=-1)
