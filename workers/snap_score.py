"""SnapKV's score, which several policies share: what the last queries look at, pooled."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, field_validator

from workers.kv_observation import LayerObservation, window_scores
from workers.kv_policy import KvPolicy


class SnapScore(KvPolicy):
    """A policy that scores as SnapKV does; the observed queries are the window's."""

    class Config(KvPolicy.Config):
        """Options of the score."""

        num_sinks: int = Field(0, ge=0, le=64, description="First tokens, which always stay.")
        pooling: Literal["mean", "max"] = Field("mean", description="How neighbours are pooled.")
        kernel_size: int = Field(5, ge=1, le=63, description="Neighbours pooled; an odd number.")

        @field_validator("kernel_size")
        @classmethod
        def _is_odd(cls, size: int) -> int:
            if size % 2 == 0:
                raise ValueError("kernel_size must be odd")
            return size

    config: Config

    def score(self, seen: LayerObservation) -> torch.Tensor:
        """See KvPolicy."""
        return window_scores(seen, self.config.pooling, self.config.kernel_size)
