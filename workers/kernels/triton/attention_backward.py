"""Gradients of attention over the windows of a training pack, from recomputed weights.

    P = exp(scores - lse);  dV = P^T dO;  dS = P * (dO V^T - rowsum(dO * O))
    dQ = scale * dS K;  dK = scale * dS^T Q

One kernel walks keys for each tile of queries, the other queries for each tile of keys: every sum
has one owner, so there are no atomics and the same bits every time. Tiles that lie whole before
the diagonal are not masked, and a query that pads a tile is zero, so that it adds nothing.

Source: Dao 2023, arXiv:2307.08691, section 2.3.1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from workers.kernels.span_tiles import BLOCK_KEYS, GRAD_KEYS, HeadShape, KeyPlace, SpanTiles
from workers.kernels.triton.accumulator import accumulator
from workers.kernels.triton.attention import LOG2_E, tile_sizes

GRAD_NUMBERS = 4096  # of a tile of queries beside the sums of a tile of keys: all in registers


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
        place: keys that lie side by side.
        key_tiles: (m, 2) int64: span, first key; no two spans share a key.
        grad_kv: (keys, K, D) each, contiguous and wide, indexed as the keys are.
    """
    assert place.tables is None
    wide = torch.promote_types(saved.q.dtype, torch.float32)
    delta = torch.empty(saved.lse.shape, dtype=wide, device=saved.q.device)
    rows = (saved.q, place.keys, place.values, saved.grad, saved.lse, delta, batch.spans)
    strides = (place.head_stride, place.token_stride)
    numbers = (shape.dim**-0.5, shape.window, *strides)
    constants = {"WINDOWED": shape.window > 0, "WIDE": accumulator(saved.q.dtype)}
    _grad_queries[(shape.kv_heads, len(batch.tiles))](
        *rows,
        batch.tiles,
        saved.out,
        grad_q,
        *numbers,
        BLOCK_N=BLOCK_KEYS,
        **constants,
        **tile_sizes(batch.queries, shape),
    )
    stacked = GRAD_NUMBERS // triton.next_power_of_2(shape.dim)
    _grad_keys[(shape.kv_heads, len(key_tiles))](
        *rows,
        key_tiles,
        *grad_kv,
        *numbers,
        BLOCK_N=GRAD_KEYS,
        **constants,
        **tile_sizes(max(1, stacked // shape.stacked), shape) | {"num_warps": 8},
    )


@triton.jit
def _walk_keys(
    sums,
    query_rows,
    grad_rows,
    log_sums,
    deltas,
    limit,
    keys,
    values,
    token_stride,
    low,
    high,
    window,
    scale,
    MASKED: tl.constexpr,
    WINDOWED: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Sums of dS K over the keys [low, high)."""
    near, place = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    offset = near[:, None] * token_stride + place[None, :]
    for begin in range(low.to(tl.int32), high.to(tl.int32), BLOCK_N):
        slot = begin + near
        inside = (place < DIM)[None, :]
        if MASKED:
            inside = inside & (slot < high)[:, None]
        first = begin * token_stride.to(tl.int64)
        key = tl.load(keys + first + offset, mask=inside, other=0.0)
        value = tl.load(values + first + offset, mask=inside, other=0.0)
        scores = tl.zeros((query_rows.shape[0], BLOCK_N), WIDE)
        scores = tl.dot(query_rows, tl.trans(key), scores, "ieee", out_dtype=WIDE)
        weights = tl.exp2(scores * (scale * LOG2_E) - log_sums[:, None])
        if MASKED:
            visible = slot[None, :] < limit[:, None]
            if WINDOWED:
                visible = visible & (slot[None, :] >= limit[:, None] - window)
            weights = tl.where(visible, weights, 0.0)
        grad_weights = tl.zeros((query_rows.shape[0], BLOCK_N), WIDE)
        grad_weights = tl.dot(grad_rows, tl.trans(value), grad_weights, "ieee", out_dtype=WIDE)
        grad_scores = weights * (grad_weights - deltas[:, None])
        sums = tl.dot(grad_scores.to(key.dtype), key, sums, "ieee", out_dtype=WIDE)
    return sums


@triton.jit
def _grad_queries(
    q,
    keys,
    values,
    grad,
    lse,
    delta,
    spans,
    tiles,
    out,
    grad_q,
    scale,
    window,
    head_stride,
    token_stride,
    WINDOWED: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    STACKED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WIDE: tl.constexpr,
):
    head, tile = tl.program_id(0), tl.program_id(1)
    span, first_query = spans + 4 * tl.load(tiles + 2 * tile), tl.load(tiles + 2 * tile + 1)
    row, queries = tl.load(span) + first_query, tl.load(span + 1) - first_query
    start, first = tl.load(span + 2) + first_query, tl.load(span + 3)
    stacked = tl.arange(0, BLOCK_M)
    query, member = stacked // STACKED, stacked % STACKED
    is_query = (query < queries) & (member < GROUP)
    limit = (start + query + 1).to(tl.int32)  # keys before this slot are seen
    heads: tl.constexpr = KV_HEADS * GROUP
    corner = row * heads + head * GROUP
    line = query * heads + member
    place = tl.arange(0, BLOCK_D)
    target = line[:, None] * DIM + place[None, :]
    inside = is_query[:, None] & (place < DIM)[None, :]
    query_rows = tl.load(q + corner * DIM + target, mask=inside, other=0.0)
    grad_rows = tl.load(grad + corner * DIM + target, mask=inside, other=0.0)
    out_rows = tl.load(out + corner * DIM + target, mask=inside, other=0.0)
    deltas = tl.sum(grad_rows.to(WIDE) * out_rows.to(WIDE), 1)
    tl.store(delta + corner + line, deltas, mask=is_query)
    log_sums = tl.load(lse + corner + line, mask=is_query, other=0.0) * LOG2_E

    low = tl.zeros((), tl.int64)
    high = start + tl.minimum(queries, BLOCK_M // STACKED)
    keys += first * token_stride + head * head_stride
    values += first * token_stride + head * head_stride
    sums = tl.zeros((BLOCK_M, BLOCK_D), WIDE)
    if WINDOWED:
        low = tl.maximum(start + 1 - window, 0)
    else:
        whole = (start + 1) // BLOCK_N * BLOCK_N  # before it, every query sees every key
        sums = _walk_keys(
            sums,
            query_rows,
            grad_rows,
            log_sums,
            deltas,
            limit,
            keys,
            values,
            token_stride,
            low,
            whole,
            window,
            scale,
            MASKED=False,
            WINDOWED=False,
            DIM=DIM,
            BLOCK_D=BLOCK_D,
            BLOCK_N=BLOCK_N,
            WIDE=WIDE,
        )
        low = whole
    sums = _walk_keys(
        sums,
        query_rows,
        grad_rows,
        log_sums,
        deltas,
        limit,
        keys,
        values,
        token_stride,
        low,
        high,
        window,
        scale,
        MASKED=True,
        WINDOWED=WINDOWED,
        DIM=DIM,
        BLOCK_D=BLOCK_D,
        BLOCK_N=BLOCK_N,
        WIDE=WIDE,
    )
    tl.store(
        grad_q + corner * DIM + target, (sums * scale).to(grad_q.dtype.element_ty), mask=inside
    )


@triton.jit
def _walk_queries(
    sums_k,
    sums_v,
    key,
    value,
    ahead,
    q,
    grad,
    lse,
    delta,
    low,
    high,
    window,
    scale,
    MASKED: tl.constexpr,
    WINDOWED: tl.constexpr,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    STACKED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Sums of dS^T Q and P^T dO over the queries [low, high); scores lie (keys, queries)."""
    stacked, place = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    near, member = stacked // STACKED, stacked % STACKED
    line = near * HEADS + member
    offset = line[:, None] * DIM + place[None, :]
    slot = tl.arange(0, BLOCK_N)
    for begin in range(low, high, BLOCK_M // STACKED):
        query = begin + near
        is_query = (query < high) & (member < GROUP)
        inside = is_query[:, None] & (place < DIM)[None, :]
        corner = begin * tl.full((), HEADS, tl.int64)
        query_rows = tl.load(q + corner * DIM + offset, mask=inside, other=0.0)
        grad_rows = tl.load(grad + corner * DIM + offset, mask=inside, other=0.0)
        log_sums = tl.load(lse + corner + line, mask=is_query, other=0.0) * LOG2_E
        deltas = tl.load(delta + corner + line, mask=is_query, other=0.0)
        scores = tl.zeros((BLOCK_N, BLOCK_M), WIDE)
        scores = tl.dot(key, tl.trans(query_rows), scores, "ieee", out_dtype=WIDE)
        weights = tl.exp2(scores * (scale * LOG2_E) - log_sums[None, :])
        if MASKED:
            last = ahead + query  # the last key of the tile that each query sees
            visible = slot[:, None] <= last[None, :]
            if WINDOWED:
                visible = visible & (slot[:, None] > last[None, :] - window)
            weights = tl.where(visible, weights, 0.0)
        sums_v = tl.dot(weights.to(grad_rows.dtype), grad_rows, sums_v, "ieee", out_dtype=WIDE)
        grad_weights = tl.zeros((BLOCK_N, BLOCK_M), WIDE)
        grad_weights = tl.dot(value, tl.trans(grad_rows), grad_weights, "ieee", out_dtype=WIDE)
        grad_scores = weights * (grad_weights - deltas[None, :])
        sums_k = tl.dot(
            grad_scores.to(query_rows.dtype), query_rows, sums_k, "ieee", out_dtype=WIDE
        )
    return sums_k, sums_v


@triton.jit
def _grad_keys(
    q,
    keys,
    values,
    grad,
    lse,
    delta,
    spans,
    tiles,
    grad_k,
    grad_v,
    scale,
    window,
    head_stride,
    token_stride,
    WINDOWED: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    STACKED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WIDE: tl.constexpr,
):
    head, tile = tl.program_id(0), tl.program_id(1)
    span, first_key = spans + 4 * tl.load(tiles + 2 * tile), tl.load(tiles + 2 * tile + 1)
    queries, start = tl.load(span + 1), tl.load(span + 2)
    near, place = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    inside = (first_key + near < start + queries)[:, None] & (place < DIM)[None, :]
    slot = tl.load(span + 3) + first_key
    source = slot * token_stride + head * head_stride
    offset = near[:, None] * token_stride + place[None, :]
    key = tl.load(keys + source + offset, mask=inside, other=0.0)
    value = tl.load(values + source + offset, mask=inside, other=0.0)

    heads: tl.constexpr = KV_HEADS * GROUP
    step: tl.constexpr = BLOCK_M // STACKED
    corner = tl.load(span) * heads + head * GROUP
    q += corner * DIM
    grad += corner * DIM
    lse += corner
    delta += corner
    # Queries that see a key of this tile: from the first key's own, to the last in its window.
    ahead = (start - first_key).to(tl.int32)
    low = tl.maximum(-ahead, 0)
    high = queries.to(tl.int32)
    if WINDOWED:
        high = tl.minimum(high, BLOCK_N - 1 + window - ahead)
        masked = high
    else:
        after = tl.maximum(BLOCK_N - 1 - ahead - low, 0)  # from then on every key is seen
        masked = tl.minimum(low + tl.cdiv(after, step) * step, high)
    sums_k = tl.zeros((BLOCK_N, BLOCK_D), WIDE)
    sums_v = tl.zeros((BLOCK_N, BLOCK_D), WIDE)
    sums_k, sums_v = _walk_queries(
        sums_k,
        sums_v,
        key,
        value,
        ahead,
        q,
        grad,
        lse,
        delta,
        low,
        masked,
        window,
        scale,
        MASKED=True,
        WINDOWED=WINDOWED,
        HEADS=heads,
        GROUP=GROUP,
        STACKED=STACKED,
        BLOCK_M=BLOCK_M,
        DIM=DIM,
        BLOCK_D=BLOCK_D,
        BLOCK_N=BLOCK_N,
        WIDE=WIDE,
    )
    if not WINDOWED:
        sums_k, sums_v = _walk_queries(
            sums_k,
            sums_v,
            key,
            value,
            ahead,
            q,
            grad,
            lse,
            delta,
            masked,
            high,
            window,
            scale,
            MASKED=False,
            WINDOWED=False,
            HEADS=heads,
            GROUP=GROUP,
            STACKED=STACKED,
            BLOCK_M=BLOCK_M,
            DIM=DIM,
            BLOCK_D=BLOCK_D,
            BLOCK_N=BLOCK_N,
            WIDE=WIDE,
        )
    target = (slot * KV_HEADS + head) * DIM
    offset = near[:, None] * (KV_HEADS * DIM) + place[None, :]
    sums_k = sums_k * scale + tl.load(grad_k + target + offset, mask=inside, other=0.0)
    tl.store(grad_k + target + offset, sums_k, mask=inside)
    sums_v += tl.load(grad_v + target + offset, mask=inside, other=0.0)
    tl.store(grad_v + target + offset, sums_v, mask=inside)
