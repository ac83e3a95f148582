"""SnapKV: the tokens that the last queries look at. Source: Li et al. 2024, arXiv:2404.14469."""

from __future__ import annotations

from workers.kv_policy import KV_POLICIES
from workers.snap_score import SnapScore


@KV_POLICIES.register("snapkv")
class SnapKv(SnapScore):
    """The same number of tokens for every head of every layer."""
