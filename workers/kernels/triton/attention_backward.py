"""Gradients of attention over the windows of a training pack, from recomputed weights.

    P = exp(scores - lse);  dV = P^T dO;  dS = P * (dO V^T - rowsum(dO * O))
    dQ = scale * dS K;  dK = scale * dS^T Q

One kernel walks keys for each tile of queries, the other queries for each tile of keys: every sum
has one owner, so there are no atomics and the same bits every time.

Source: Dao 2023, arXiv:2307.08691, section 2.3.1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from workers.kernels.span_tiles import BLOCK_KEYS, LARGEST_TILE, HeadShape, KeyPlace, SpanTiles
from workers.kernels.triton.accumulator import accumulator
from workers.kernels.triton.attention import key_offsets, tile_sizes


@dataclass(frozen=True, slots=True)
class AttentionSaved:
    """What backward reads: q, out and its gradient (T, H, D), contiguous; lse (T, H)."""

    q: Tensor
    out: Tensor
    lse: Tensor
    grad: Tensor


def attend_backward(
    saved: AttentionSaved,
    place: KeyPlace,
    batch: SpanTiles,
    key_tiles: Tensor,
    shape: HeadShape,
    grad_q: Tensor,
    grad_kv: tuple[Tensor, Tensor],
) -> None:
    """Write the gradient of the queries, add to those of keys and values.

    Shapes:
        key_tiles: (m, 2) int64: span, first key; no two spans share a key.
        grad_kv: (keys, K, D) each, contiguous and wide, indexed as the keys are.
    """
    wide = torch.promote_types(saved.q.dtype, torch.float32)
    delta = torch.empty(saved.lse.shape, dtype=wide, device=saved.q.device)
    sizes = tile_sizes(batch.queries, shape)
    dtype = accumulator(saved.q.dtype)
    _delta[(delta.numel(),)](
        saved.grad, saved.out, delta, DIM=shape.dim, BLOCK_D=sizes["BLOCK_D"], WIDE=dtype
    )
    arguments = (
        saved.q,
        place.keys,
        place.values,
        saved.grad,
        saved.lse,
        delta,
        batch.spans if place.tables is None else place.tables,
        batch.spans,
    )
    strides = (place.page_stride, place.head_stride, place.token_stride)
    numbers = (shape.dim**-0.5, shape.window, *strides)
    _grad_queries[(len(batch.tiles), shape.kv_heads)](
        *arguments,
        batch.tiles,
        grad_q,
        *numbers,
        PAGE=place.page_tokens,
        BLOCK_N=BLOCK_KEYS,
        WIDE=dtype,
        **sizes,
    )
    _grad_keys[(len(key_tiles), shape.kv_heads)](
        *arguments,
        key_tiles,
        *grad_kv,
        *numbers,
        PAGE=place.page_tokens,
        BLOCK_N=BLOCK_KEYS,
        WIDE=dtype,
        **tile_sizes(max(1, LARGEST_TILE // shape.stacked), shape),
    )


@triton.jit
def _delta(grad, out, delta, DIM: tl.constexpr, BLOCK_D: tl.constexpr, WIDE: tl.constexpr):
    line = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK_D)
    inside = place < DIM
    left = tl.load(grad + line * DIM + place, mask=inside, other=0.0).to(WIDE)
    right = tl.load(out + line * DIM + place, mask=inside, other=0.0).to(WIDE)
    tl.store(delta + line, tl.sum(left * right, 0))


@triton.jit
def _grad_scores(
    query_rows,
    grad_rows,
    log_sums,
    deltas,
    key,
    value,
    visible,
    scale,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Attention weights, and the gradient of the scaled scores: (BLOCK_M, BLOCK_N) each."""
    scores = tl.zeros((BLOCK_M, BLOCK_N), WIDE)
    scores = tl.dot(query_rows, tl.trans(key), scores, input_precision="ieee") * scale
    weights = tl.exp(tl.where(visible, scores - log_sums[:, None], float("-inf")))
    grad_weights = tl.zeros((BLOCK_M, BLOCK_N), WIDE)
    grad_weights = tl.dot(grad_rows, tl.trans(value), grad_weights, input_precision="ieee")
    return weights, weights * (grad_weights - deltas[:, None])


@triton.jit
def _grad_queries(
    q,
    keys,
    values,
    grad,
    lse,
    delta,
    tables,
    spans,
    tiles,
    grad_q,
    scale,
    window,
    page_stride,
    head_stride,
    token_stride,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    STACKED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WIDE: tl.constexpr,
):
    tile, head = tl.program_id(0), tl.program_id(1)
    span, first_query = spans + 4 * tl.load(tiles + 2 * tile), tl.load(tiles + 2 * tile + 1)
    queries, start, first = tl.load(span + 1), tl.load(span + 2), tl.load(span + 3)
    stacked = tl.arange(0, BLOCK_M)
    query, member = first_query + stacked // STACKED, stacked % STACKED
    is_query = (query < queries) & (member < GROUP)
    limit = start + query + 1
    low = tl.zeros((), tl.int64)
    if window > 0:
        low = tl.maximum(start + first_query + 1 - window, 0)
    high = start + tl.minimum(queries, first_query + BLOCK_M // STACKED)

    heads: tl.constexpr = KV_HEADS * GROUP
    line = (tl.load(span) + query) * heads + head * GROUP + member
    place = tl.arange(0, BLOCK_D)
    is_dim = place < DIM
    inside_q = is_query[:, None] & is_dim[None, :]
    target = line[:, None] * DIM + place[None, :]
    query_rows = tl.load(q + target, mask=inside_q, other=0.0)
    grad_rows = tl.load(grad + target, mask=inside_q, other=0.0)
    log_sums = tl.load(lse + line, mask=is_query, other=0.0)
    deltas = tl.load(delta + line, mask=is_query, other=0.0)
    sums = tl.zeros((BLOCK_M, BLOCK_D), WIDE)
    for begin in range(low.to(tl.int32), high.to(tl.int32), BLOCK_N):
        slot = begin + tl.arange(0, BLOCK_N)
        is_key = slot < high
        offset = key_offsets(tables, first, slot, is_key, page_stride, token_stride, PAGE)
        offset = offset[:, None] + head.to(tl.int64) * head_stride + place[None, :]
        inside = is_key[:, None] & is_dim[None, :]
        key = tl.load(keys + offset, mask=inside, other=0.0)
        value = tl.load(values + offset, mask=inside, other=0.0)
        visible = is_query[:, None] & (slot[None, :] < limit[:, None])
        if window > 0:
            visible = visible & (slot[None, :] >= limit[:, None] - window)
        _, grad_scores = _grad_scores(
            query_rows,
            grad_rows,
            log_sums,
            deltas,
            key,
            value,
            visible,
            scale,
            BLOCK_M,
            BLOCK_N,
            WIDE,
        )
        sums = tl.dot(grad_scores.to(key.dtype), key, sums, input_precision="ieee")
    tl.store(grad_q + target, (sums * scale).to(grad_q.dtype.element_ty), mask=inside_q)


@triton.jit
def _grad_keys(
    q,
    keys,
    values,
    grad,
    lse,
    delta,
    tables,
    spans,
    tiles,
    grad_k,
    grad_v,
    scale,
    window,
    page_stride,
    head_stride,
    token_stride,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    STACKED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WIDE: tl.constexpr,
):
    tile, head = tl.program_id(0), tl.program_id(1)
    span, first_key = spans + 4 * tl.load(tiles + 2 * tile), tl.load(tiles + 2 * tile + 1)
    queries, start, first = tl.load(span + 1), tl.load(span + 2), tl.load(span + 3)
    slot = first_key + tl.arange(0, BLOCK_N)
    is_key = slot < start + queries
    place = tl.arange(0, BLOCK_D)
    is_dim = place < DIM
    offset = key_offsets(tables, first, slot, is_key, page_stride, token_stride, PAGE)
    offset = offset[:, None] + head.to(tl.int64) * head_stride + place[None, :]
    inside = is_key[:, None] & is_dim[None, :]
    key = tl.load(keys + offset, mask=inside, other=0.0)
    value = tl.load(values + offset, mask=inside, other=0.0)
    # Queries that see a key of this tile: from the first key's own, to the last in its window.
    low = tl.maximum(first_key - start, 0)
    high = queries
    if window > 0:
        high = tl.minimum(queries, first_key + BLOCK_N - 1 + window - start)

    heads: tl.constexpr = KV_HEADS * GROUP
    stacked = tl.arange(0, BLOCK_M)
    sums_k = tl.zeros((BLOCK_N, BLOCK_D), WIDE)
    sums_v = tl.zeros((BLOCK_N, BLOCK_D), WIDE)
    for begin in range(low.to(tl.int32), high.to(tl.int32), BLOCK_M // STACKED):
        query, member = begin + stacked // STACKED, stacked % STACKED
        is_query = (query < queries) & (member < GROUP)
        limit = start + query + 1
        line = (tl.load(span) + query) * heads + head * GROUP + member
        source = line[:, None] * DIM + place[None, :]
        inside_q = is_query[:, None] & is_dim[None, :]
        query_rows = tl.load(q + source, mask=inside_q, other=0.0)
        grad_rows = tl.load(grad + source, mask=inside_q, other=0.0)
        log_sums = tl.load(lse + line, mask=is_query, other=0.0)
        deltas = tl.load(delta + line, mask=is_query, other=0.0)
        visible = is_key[None, :] & is_query[:, None] & (slot[None, :] < limit[:, None])
        if window > 0:
            visible = visible & (slot[None, :] >= limit[:, None] - window)
        weights, grad_scores = _grad_scores(
            query_rows,
            grad_rows,
            log_sums,
            deltas,
            key,
            value,
            visible,
            scale,
            BLOCK_M,
            BLOCK_N,
            WIDE,
        )
        weights = tl.trans(weights.to(grad_rows.dtype))
        sums_v = tl.dot(weights, grad_rows, sums_v, input_precision="ieee")
        grad_scores = tl.trans(grad_scores.to(query_rows.dtype))
        sums_k = tl.dot(grad_scores, query_rows, sums_k, input_precision="ieee")
    target = ((first + slot) * KV_HEADS + head)[:, None] * DIM + place[None, :]
    sums_k = sums_k * scale + tl.load(grad_k + target, mask=inside, other=0.0)
    sums_v += tl.load(grad_v + target, mask=inside, other=0.0)
    tl.store(grad_k + target, sums_k, mask=inside)
    tl.store(grad_v + target, sums_v, mask=inside)
