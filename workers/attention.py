"""Attention over spans of mixed lengths: padded into one grouped batch, forward and backward.

A step's spans fall into a few groups; a group gathers its queries and keys once per layer and runs
two batched GEMMs over (span, KV head). Queries that share a KV head are stacked, so grouped-query
attention copies no keys. Long spans run in tiles of queries, which bounds the score matrix.

Shape suffixes: S spans of a group, M padded queries, N padded keys, K KV heads, G query heads per
KV head, H = K * G query heads, D head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

MAX_SCORES = 1 << 22  # score elements of one tile: 16 MiB in float32, inside a large cache's reach


@dataclass(slots=True)
class Extent:
    """One span's place: `num_queries` tokens at positions start, start+1, ... after their keys.

    Attributes:
        row: first row of the queries in the packed batch.
        start: position of the first query; the span sees keys 0 .. start + num_queries - 1.
    """

    row: int
    num_queries: int
    start: int

    @property
    def num_keys(self) -> int:
        """Keys that the last query of the span sees."""
        return self.start + self.num_queries


@dataclass(slots=True)
class SpanGroup:
    """Spans that run in one padded batch.

    Attributes:
        query_rows_SM: row of each padded query; padding repeats the span's first row.
        query_mask_SM: which of them are real.
        position_SM: position of each padded query.
        num_keys_S: real keys of each span.
        biases: attention bias (S, M, N) by window, made on first use.
    """

    query_rows_SM: Tensor
    query_mask_SM: Tensor
    position_SM: Tensor
    num_keys_S: Tensor
    max_keys: int
    is_dense: bool
    biases: dict[int | None, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, extents: list[Extent], device: torch.device) -> SpanGroup:
        """Pad `extents` to their longest."""
        counts = torch.tensor([e.num_queries for e in extents], device=device)
        rows = torch.tensor([e.row for e in extents], device=device)
        starts = torch.tensor([e.start for e in extents], device=device)
        steps = torch.arange(max(e.num_queries for e in extents), device=device)
        mask = steps < counts[:, None]
        steps = torch.where(mask, steps, 0)
        return cls(
            query_rows_SM=rows[:, None] + steps,
            query_mask_SM=mask,
            position_SM=starts[:, None] + steps,
            num_keys_S=starts + counts,
            max_keys=max(e.num_keys for e in extents),
            is_dense=len({e.num_queries for e in extents}) == 1,
        )

    def bias(self, window: int | None, num_keys: int, dtype: torch.dtype) -> Tensor:
        """0 where a query sees a key, -inf elsewhere: (S, M, num_keys)."""
        if window not in self.biases:
            self.biases[window] = self._make_bias(window, num_keys, dtype)
        return self.biases[window]

    def _make_bias(self, window: int | None, num_keys: int, dtype: torch.dtype) -> Tensor:
        keys = torch.arange(num_keys, device=self.position_SM.device)
        positions = self.position_SM[..., None]
        visible = keys <= positions
        if window is not None:
            visible &= keys > positions - window
        bias = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
        return bias.masked_fill_(~visible, float("-inf"))

    def gather(self, rows: Tensor) -> Tensor:
        """(rows, ...) -> (S, M, ...)."""
        return rows[self.query_rows_SM]

    def scatter(self, padded: Tensor, rows: Tensor) -> None:
        """Write (S, M, ...) back into its rows; padding is dropped."""
        if self.is_dense:
            rows[self.query_rows_SM] = padded
        else:
            rows[self.query_rows_SM[self.query_mask_SM]] = padded[self.query_mask_SM]


@dataclass(slots=True)
class Sinks:
    """Where attention writes: output (T, H, D), and log-sum-exps (T, H) for training rows."""

    out: Tensor
    lse: Tensor
    wants_lse: bool


@dataclass(slots=True)
class SavedAttention:
    """What attention's backward reads of some rows: q, out, grad (T, H, D) and lse (T, H)."""

    q: Tensor
    out: Tensor
    lse: Tensor
    grad: Tensor


class Attends(Protocol):
    """Spans of a batch that attend together."""

    def run(
        self, layer: int, window: int | None, qkv: tuple[Tensor, Tensor, Tensor], sinks: Sinks
    ) -> None:
        """Attend for one layer; write output rows, and log-sum-exps where wanted."""


class AttendsBack(Attends, Protocol):
    """Spans of a training pack."""

    def backward(
        self,
        layer: int,
        window: int | None,
        saved: SavedAttention,
        grad_q: Tensor,
        grad_kv: tuple[Tensor, Tensor],
    ) -> None:
        """Fill the spans' rows of `grad_q`, and add to the pack's key and value gradients."""


def split_by_size(extents: list[Extent], max_waste: float = 0.5) -> list[list[int]]:
    """Indices of `extents` in groups whose padded queries waste at most `max_waste`."""
    order = sorted(range(len(extents)), key=lambda i: extents[i].num_queries)
    groups: list[list[int]] = []
    real = 0
    for i in order:
        size = extents[i].num_queries
        if groups and real + size >= (1 - max_waste) * size * (len(groups[-1]) + 1):
            groups[-1].append(i)
            real += size
        else:
            groups.append([i])
            real = size
    return groups


def attend(
    q_SMHD: Tensor, k_SKND: Tensor, v_SKND: Tensor, bias_SMN: Tensor
) -> tuple[Tensor, Tensor]:
    """Softmax attention of every span, with the log-sum-exp of its scores.

    Returns:
        Output (S, M, H, D) in the dtype of q, and log-sum-exp (S, M, H) in float32 or wider.
    """
    spans, queries, heads, _ = q_SMHD.shape
    tile = max(1, MAX_SCORES // (spans * heads * k_SKND.shape[2]))
    parts = [
        _attend_tile(q_SMHD[:, i : i + tile], k_SKND, v_SKND, bias_SMN[:, i : i + tile])
        for i in range(0, queries, tile)
    ]
    if len(parts) == 1:
        return parts[0]
    return torch.cat([p[0] for p in parts], 1), torch.cat([p[1] for p in parts], 1)


def _stack_groups(x_SMHD: Tensor, num_kv_heads: int) -> Tensor:
    """(S, M, H, D) -> (S, K, G * M, D): the queries of one KV head, stacked."""
    spans, queries, heads, head_dim = x_SMHD.shape
    group = heads // num_kv_heads
    x = x_SMHD.view(spans, queries, num_kv_heads, group, head_dim).permute(0, 2, 3, 1, 4)
    return x.reshape(spans, num_kv_heads, group * queries, head_dim)


def _unstack_groups(x_SKRD: Tensor, queries: int) -> Tensor:
    """(S, K, G * M, D) -> (S, M, H, D)."""
    spans, kv_heads, rows, head_dim = x_SKRD.shape
    x = x_SKRD.view(spans, kv_heads, rows // queries, queries, head_dim).permute(0, 3, 1, 2, 4)
    return x.reshape(spans, queries, kv_heads * (rows // queries), head_dim)


def _scores(q_SKRD: Tensor, k_SKND: Tensor, bias_SMN: Tensor) -> Tensor:
    """Scaled, biased scores (S, K, G, M, N) in float32 or wider."""
    spans, kv_heads, rows, head_dim = q_SKRD.shape
    queries = bias_SMN.shape[1]
    scores = torch.matmul(q_SKRD * head_dim**-0.5, k_SKND.transpose(-1, -2))
    scores = scores.to(bias_SMN.dtype)
    scores = scores.view(spans, kv_heads, rows // queries, queries, -1)
    return scores.add_(bias_SMN[:, None, None])


def _attend_tile(
    q_SMHD: Tensor, k_SKND: Tensor, v_SKND: Tensor, bias_SMN: Tensor
) -> tuple[Tensor, Tensor]:
    spans, queries, heads, _ = q_SMHD.shape
    q = _stack_groups(q_SMHD, k_SKND.shape[1])
    scores = _scores(q, k_SKND, bias_SMN)
    lse = torch.logsumexp(scores, dim=-1)
    weights = scores.sub_(lse[..., None]).exp_()
    weights = weights.view(spans, k_SKND.shape[1], -1, k_SKND.shape[2]).to(v_SKND.dtype)
    out = _unstack_groups(torch.matmul(weights, v_SKND), queries)
    return out, lse.permute(0, 3, 1, 2).reshape(spans, queries, heads)


def attend_backward(
    grad_SMHD: Tensor,
    q_SMHD: Tensor,
    k_SKND: Tensor,
    v_SKND: Tensor,
    out_SMHD: Tensor,
    lse_SMH: Tensor,
    bias_SMN: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q (S, M, H, D), k and v (S, K, N, D), from recomputed weights.

    Semantics:
        P = exp(scores - lse);  dV = P^T dO;  dS = P * (dO V^T - rowsum(dO * O))
        dQ = scale * dS K;  dK = scale * dS^T Q

    Source: Dao 2023, arXiv:2307.08691, section 2.3.1.
    """
    spans, queries, heads, _ = q_SMHD.shape
    tile = max(1, MAX_SCORES // (spans * heads * k_SKND.shape[2]))
    grad_k = torch.zeros_like(k_SKND, dtype=bias_SMN.dtype)
    grad_v = torch.zeros_like(v_SKND, dtype=bias_SMN.dtype)
    grad_q = torch.empty_like(q_SMHD)
    for i in range(0, queries, tile):
        part = slice(i, i + tile)
        grad_q[:, part] = _attend_backward_tile(
            grad_SMHD[:, part],
            q_SMHD[:, part],
            k_SKND,
            v_SKND,
            (grad_SMHD[:, part] * out_SMHD[:, part]).sum(-1, dtype=bias_SMN.dtype),
            lse_SMH[:, part],
            bias_SMN[:, part],
            (grad_k, grad_v),
        )
    return grad_q, grad_k, grad_v


def _attend_backward_tile(
    grad_SMHD: Tensor,
    q_SMHD: Tensor,
    k_SKND: Tensor,
    v_SKND: Tensor,
    delta_SMH: Tensor,
    lse_SMH: Tensor,
    bias_SMN: Tensor,
    sums: tuple[Tensor, Tensor],
) -> Tensor:
    """Gradient of a tile's queries; adds the tile's share to the key and value sums."""
    queries, kv_heads = q_SMHD.shape[1], k_SKND.shape[1]
    scale = q_SMHD.shape[-1] ** -0.5
    q, grad = _stack_groups(q_SMHD, kv_heads), _stack_groups(grad_SMHD, kv_heads)
    lse = _stack_groups(lse_SMH[..., None], kv_heads)
    delta = _stack_groups(delta_SMH[..., None], kv_heads)
    scores = _scores(q, k_SKND, bias_SMN).flatten(2, 3)
    weights = scores.sub_(lse).exp_()
    grad_weights = torch.matmul(grad, v_SKND.transpose(-1, -2)).to(weights.dtype)
    grad_scores = grad_weights.sub_(delta).mul_(weights).to(q.dtype)
    weights = weights.to(q.dtype)
    sums[1].add_(torch.matmul(weights.transpose(-1, -2), grad))
    sums[0].add_(torch.matmul(grad_scores.transpose(-1, -2), q), alpha=scale)
    return _unstack_groups(torch.matmul(grad_scores, k_SKND).mul_(scale), queries)
