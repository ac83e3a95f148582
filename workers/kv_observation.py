"""What a KV policy may look at: one layer's cache, its last queries, and its attention's sums."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class LayerObservation:
    """One layer of one sequence of T tokens, after its last chunk.

    Attributes:
        keys, values: the cache [num_kv_heads, T, head_dim], keys rotated.
        queries: the last w queries, rotated [num_heads, w, head_dim].
        column_sums: attention that each token got from all queries [num_kv_heads, T], mean over a
            KV head's query heads.
    """

    keys: torch.Tensor
    values: torch.Tensor
    queries: torch.Tensor
    column_sums: torch.Tensor

    @property
    def num_tokens(self) -> int:
        """T."""
        return self.keys.shape[1]


class AttentionSums:
    """Column sums and last queries of one layer, gathered chunk by chunk."""

    def __init__(self, window: int) -> None:
        self.window = window
        self._queries: torch.Tensor | None = None
        self._sums: torch.Tensor | None = None

    def add(self, queries: torch.Tensor, keys: torch.Tensor) -> None:
        """Count a chunk: `queries` [num_heads, n, D] are the last n of the T of `keys`."""
        chunk = group_mean(attention(queries, keys).sum(1), len(keys))
        if self._queries is None or self._sums is None:
            self._queries, self._sums = queries, chunk
        else:
            grown = F.pad(self._sums, (0, chunk.shape[1] - self._sums.shape[1]))
            self._sums = grown + chunk
            self._queries = torch.cat([self._queries, queries], dim=1)
        self._queries = self._queries[:, -self.window :]

    def observe(self, keys: torch.Tensor, values: torch.Tensor) -> LayerObservation:
        """What was seen; at least one chunk was added."""
        assert self._queries is not None
        assert self._sums is not None
        return LayerObservation(keys, values, self._queries, self._sums)


def attention(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Causal attention of the last n queries over all T keys [num_heads, n, T], in float32."""
    num_queries, num_tokens = queries.shape[1], keys.shape[1]
    shared = keys.float().repeat_interleave(len(queries) // len(keys), dim=0)
    logits = queries.float() @ shared.mT / math.sqrt(keys.shape[2])
    visible = torch.ones(num_queries, num_tokens, dtype=torch.bool)
    visible = visible.tril(num_tokens - num_queries)
    return logits.masked_fill(~visible, -torch.inf).softmax(-1)


def window_scores(seen: LayerObservation, pooling: str, kernel_size: int) -> torch.Tensor:
    """Attention from the last queries, pooled over neighbours, mean over a KV head's queries.

    As published, pooling sees the tokens before the window only, and averages count its padding.

    Returns:
        [num_kv_heads, T], zero within the window.
    """
    window = seen.queries.shape[1]
    sums = attention(seen.queries, seen.keys).sum(1)[:, : seen.num_tokens - window]
    if sums.shape[1]:
        sums = pool(sums, pooling, kernel_size)
    return F.pad(group_mean(sums, len(seen.keys)), (0, window))


def pool(scores: torch.Tensor, pooling: str, kernel_size: int) -> torch.Tensor:
    """Mean or maximum of each score and its neighbours, along the last axis."""
    padding = kernel_size // 2
    if pooling == "max":
        pooled: torch.Tensor = F.max_pool1d(scores, kernel_size, stride=1, padding=padding)
        return pooled
    return F.avg_pool1d(scores, kernel_size, stride=1, padding=padding)


def group_mean(per_head: torch.Tensor, num_kv_heads: int) -> torch.Tensor:
    """Mean over the query heads of each KV head."""
    group = len(per_head) // num_kv_heads
    return per_head.reshape(num_kv_heads, group, per_head.shape[1]).mean(1)
