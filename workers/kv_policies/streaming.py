"""StreamingLLM: the first tokens and the last ones. Source: Xiao et al. 2023, arXiv:2309.17453."""

from __future__ import annotations

import torch

from workers.kv_observation import LayerObservation
from workers.kv_policy import KV_POLICIES, KvPolicy


@KV_POLICIES.register("streaming")
class Streaming(KvPolicy):
    """Later tokens are worth more; positions stay as they were."""

    def score(self, seen: LayerObservation) -> torch.Tensor:
        """See KvPolicy."""
        return seen.positions.float()
