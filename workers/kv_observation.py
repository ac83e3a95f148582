"""What a KV policy may look at: one layer's slots, its last queries, and its attention's sums."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from workers.device_copy import upload
from workers.kernels.cpu_compression import cpu_compression_for
from workers.kernels.device_kernels import gpu_kernels_for
from workers.layer_slots import LayerSlots

MAX_SCORES = 1 << 22  # attention weights that are held at once: 16 MiB
MAX_WAITING = 256  # queries of a layer that wait to be counted


@dataclass(frozen=True)
class LayerObservation(LayerSlots):
    """One layer of one sequence when it is compressed.

    Attributes:
        queries: the last w queries, rotated [num_heads, w, head_dim]; they see the last slot of
            their own token, and all before.
    """

    queries: torch.Tensor


class AttentionSums:
    """Last queries of one layer, and the attention that others gave, gathered chunk by chunk.

    A query that counts waits for the end of what is gathered, when keys are read once for all: one
    token at a time or a chunk at a time then give the same. Where many wait, keys are read before.

    Args:
        window: how many of the last queries are kept.
        query_stride: every so manieth query is counted, for all between; None: none is.
    """

    def __init__(self, window: int, query_stride: int | None = 1) -> None:
        self.window = window
        self.query_stride = query_stride
        self._last: list[torch.Tensor] = []
        self._num_last = 0
        self._waiting: list[torch.Tensor] = []
        self._positions: list[int] = []
        self._sums: torch.Tensor | None = None

    def see(self, queries: torch.Tensor, start: int) -> None:
        """Take in the queries [num_heads, n, D] of tokens start, start + 1, ..."""
        self._keep(queries[:, -self.window :].clone())
        if self.query_stride is None:
            return
        first = -start % self.query_stride
        counted = range(start + first, start + queries.shape[1], self.query_stride)
        if counted:
            self._waiting.append(queries[:, first :: self.query_stride].clone())
            self._positions += counted

    def take(self, query: torch.Tensor, token: int) -> None:
        """Take in one token's query [num_heads, 1, D], which is kept as it is."""
        self._keep(query)
        if self.query_stride is not None and token % self.query_stride == 0:
            self._waiting.append(query)
            self._positions.append(token)

    @property
    def is_full(self) -> bool:
        """Whether so many queries wait that they should be counted now."""
        return len(self._positions) >= MAX_WAITING

    def count(self, slots: LayerSlots) -> None:
        """Count the queries that wait; `slots` are all that the last of them sees, or more."""
        if not self._positions:
            return
        assert self.query_stride is not None
        shift = slots.num_slots - slots.num_tokens
        index = upload(self._positions, torch.int64, slots.keys.device) + shift
        queries = torch.cat(self._waiting, dim=1)
        sums = column_sums(queries, slots.keys, index, slots.log_counts)
        sums = self.query_stride * group_mean(sums, len(slots.keys))
        self._sums = sums if self._sums is None else sums + _widened(self._sums, slots)
        self._waiting, self._positions = [], []

    def observe(self, slots: LayerSlots) -> LayerObservation:
        """What was seen of `slots`; at least one chunk was."""
        assert self._last
        self.count(slots)
        sums = slots.column_sums
        if self._sums is not None:
            sums = sums + _widened(self._sums, slots)
        return LayerObservation(
            slots.keys,
            slots.values,
            slots.positions,
            slots.log_counts,
            sums,
            slots.num_tokens,
            torch.cat(self._last, dim=1)[:, -self.window :],
        )

    def _keep(self, last: torch.Tensor) -> None:
        """Remember queries, and forget those that are not among the last any more."""
        self._last.append(last)
        self._num_last += last.shape[1]
        while self._num_last - self._last[0].shape[1] >= self.window:
            self._num_last -= self._last.pop(0).shape[1]


def _widened(sums: torch.Tensor, slots: LayerSlots) -> torch.Tensor:
    """Sums of the first slots, and zeros for those that came after."""
    return F.pad(sums, (0, slots.num_slots - sums.shape[1]))


def column_sums(
    queries: torch.Tensor,
    keys: torch.Tensor,
    places: torch.Tensor | None = None,
    log_counts: torch.Tensor | None = None,
) -> torch.Tensor:
    """Causal attention that each key gets from n queries, summed: [num_heads, N], in float32.

    Args:
        queries: [num_heads, n, head_dim].
        keys: [num_kv_heads, N, head_dim].
        places: the last key that each query sees [n]; None: they are those of the last keys.
        log_counts: what is added to the logits of each key [num_kv_heads, N]; None: nothing.
    """
    num_heads, num_queries, num_keys = len(queries), queries.shape[1], keys.shape[1]
    if places is None:
        places = torch.arange(num_keys - num_queries, num_keys)
    kernels = cpu_compression_for(keys) or gpu_kernels_for(keys)
    if kernels is not None:
        return kernels.column_sums(queries, keys, places, log_counts)
    sums = keys.new_zeros(num_heads, num_keys, dtype=torch.float32)
    for part in torch.arange(num_queries).split(max(1, MAX_SCORES // (num_heads * num_keys))):
        sums += attention(queries[:, part], keys, places[part], log_counts).sum(1)
    return sums


def attention(
    queries: torch.Tensor,
    keys: torch.Tensor,
    places: torch.Tensor,
    log_counts: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of queries over the keys up to their places [num_heads, n, N], in float32."""
    num_heads, num_queries, head_dim = queries.shape
    num_kv_heads, num_keys = keys.shape[:2]
    stacked = queries.float().reshape(num_kv_heads, num_heads // num_kv_heads * num_queries, -1)
    logits = stacked @ keys.float().mT / math.sqrt(head_dim)
    if log_counts is not None:
        logits += log_counts[:, None]
    logits = logits.view(num_heads, num_queries, num_keys)
    hidden = torch.arange(num_keys) > places[:, None]
    return logits.masked_fill_(hidden, -torch.inf).softmax(-1)


def window_scores(seen: LayerObservation, pooling: str, kernel_size: int) -> torch.Tensor:
    """Attention from the last queries, pooled over neighbours, mean over a KV head's queries.

    As published, pooling sees the tokens before the window only, and averages count its padding.

    Returns:
        [num_kv_heads, N], zero within the window.
    """
    window = seen.queries.shape[1]
    sums = column_sums(seen.queries, seen.keys, log_counts=seen.log_counts)
    sums = sums[:, : seen.num_slots - window]
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
