"""H2O's score, which several policies share: attention that a slot got from all queries."""

from __future__ import annotations

import torch
from pydantic import Field

from workers.kv_observation import LayerObservation
from workers.kv_policy import KvPolicy


class SumScore(KvPolicy):
    """A policy that scores by column sums; some of the queries stand for all.

    A kept slot's sum goes on growing from one compression to the next.
    """

    class Config(KvPolicy.Config):
        """Options of the score."""

        num_queries: int = Field(
            64,
            ge=16,
            le=2**20,
            description="Queries that are counted, evenly over what a compression takes in.",
        )

    config: Config

    def query_stride(self, num_tokens: int) -> int:
        """See KvPolicy."""
        return max(1, num_tokens // self.config.num_queries)

    def num_watched(self, num_tokens: int) -> int:
        """See KvPolicy: those of all tokens, for they are summed."""
        return num_tokens

    def score(self, seen: LayerObservation) -> torch.Tensor:
        """See KvPolicy."""
        return seen.column_sums
