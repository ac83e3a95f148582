"""What a KV policy may look at: one layer's cache, its last queries, and its attention's sums."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from workers.kernels.cpu_compression import cpu_compression_for

MAX_SCORES = 1 << 22  # attention weights that are held at once: 16 MiB


@dataclass(frozen=True)
class LayerObservation:
    """One layer of one sequence of T tokens, after its last chunk.

    Attributes:
        keys, values: the cache [num_kv_heads, T, head_dim], keys rotated.
        queries: the last w queries, rotated [num_heads, w, head_dim].
        column_sums: attention that each token got from all queries [num_kv_heads, T], mean over a
            KV head's query heads; zeros for a policy that does not read them.
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
    """Column sums and last queries of one layer, gathered chunk by chunk.

    Args:
        window: how many of the last queries are kept.
        query_stride: every so manieth query is counted, for all between; None: no sums.
    """

    def __init__(self, window: int, query_stride: int | None = 1) -> None:
        self.window = window
        self.query_stride = query_stride
        self._queries: torch.Tensor | None = None
        self._sums: torch.Tensor | None = None

    def keep(self, queries: torch.Tensor) -> None:
        """Remember the last of a chunk's queries [num_heads, n, D]."""
        last = queries[:, -self.window :]
        if self._queries is not None:
            last = torch.cat([self._queries, last], dim=1)[:, -self.window :]
        self._queries = last.clone()

    def add(self, queries: torch.Tensor, keys: torch.Tensor) -> None:
        """Count a chunk: `queries` [num_heads, n, D] are the last n of the T of `keys`."""
        assert self.query_stride is not None
        self.keep(queries)
        first = keys.shape[1] - queries.shape[1]
        every = torch.arange(queries.shape[1])
        counted = every[(first + every) % self.query_stride == 0]
        sums = keys.new_zeros(keys.shape[:2], dtype=torch.float32)
        if self._sums is not None:
            sums[:, : self._sums.shape[1]] = self._sums
        added = column_sums(queries[:, counted], keys, first + counted)
        self._sums = sums + self.query_stride * group_mean(added, len(keys))

    def observe(self, keys: torch.Tensor, values: torch.Tensor) -> LayerObservation:
        """What was seen; at least one chunk was."""
        assert self._queries is not None
        sums = keys.new_zeros(keys.shape[:2]) if self._sums is None else self._sums
        return LayerObservation(keys, values, self._queries, sums)


def column_sums(
    queries: torch.Tensor, keys: torch.Tensor, positions: torch.Tensor | None = None
) -> torch.Tensor:
    """Causal attention that each key gets from n queries, summed: [num_heads, T], in float32.

    Args:
        queries: [num_heads, n, head_dim].
        keys: [num_kv_heads, T, head_dim].
        positions: of the queries [n]; None: they are the last.
    """
    num_heads, num_queries, num_tokens = len(queries), queries.shape[1], keys.shape[1]
    if positions is None:
        positions = torch.arange(num_tokens - num_queries, num_tokens)
    kernels = cpu_compression_for(keys)
    if kernels is not None:
        return kernels.column_sums(queries, keys, positions)
    sums = keys.new_zeros(num_heads, num_tokens, dtype=torch.float32)
    for part in torch.arange(num_queries).split(max(1, MAX_SCORES // (num_heads * num_tokens))):
        sums += attention(queries[:, part], keys, positions[part]).sum(1)
    return sums


def attention(queries: torch.Tensor, keys: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Causal attention of queries at `positions` over all T keys [num_heads, n, T], in float32."""
    num_heads, num_queries, head_dim = queries.shape
    num_tokens = keys.shape[1]
    stacked = queries.float().reshape(len(keys), num_heads // len(keys) * num_queries, head_dim)
    logits = stacked @ keys.float().mT / math.sqrt(head_dim)
    logits = logits.view(num_heads, num_queries, num_tokens)
    hidden = torch.arange(num_tokens) > positions[:, None]
    return logits.masked_fill_(hidden, -torch.inf).softmax(-1)


def window_scores(seen: LayerObservation, pooling: str, kernel_size: int) -> torch.Tensor:
    """Attention from the last queries, pooled over neighbours, mean over a KV head's queries.

    As published, pooling sees the tokens before the window only, and averages count its padding.

    Returns:
        [num_kv_heads, T], zero within the window.
    """
    window = seen.queries.shape[1]
    sums = column_sums(seen.queries, seen.keys)[:, : seen.num_tokens - window]
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
