"""H2O's score, which several policies share: attention that a token got from all queries."""

from __future__ import annotations

import torch
from pydantic import Field

from workers.kv_observation import LayerObservation
from workers.kv_policy import KvPolicy


class SumScore(KvPolicy):
    """A policy that scores by column sums; some of the queries stand for all."""

    class Config(KvPolicy.Config):
        """Options of the score."""

        query_stride: int = Field(
            16, ge=1, le=1024, description="One of so many queries is counted; 1: all of them."
        )

    config: Config

    @property
    def query_stride(self) -> int:
        """See KvPolicy."""
        return self.config.query_stride

    def score(self, seen: LayerObservation) -> torch.Tensor:
        """See KvPolicy."""
        return seen.column_sums
