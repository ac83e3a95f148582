"""H2O: what got most attention from all queries. Source: Zhang et al. 2023, arXiv:2306.14048."""

from __future__ import annotations

from workers.kv_policy import KV_POLICIES
from workers.sum_score import SumScore


@KV_POLICIES.register("h2o")
class H2o(SumScore):
    """Heavy hitters beside the window."""
