"""Causal attention of spans of any kind: decode, chunks of a prompt, windows of a training pack.

Keys lie in pages or side by side, strided as they may be. The query heads of one KV head are
stacked, so grouped-query attention reads each key once; a tile is some queries of one span with
all their stacked heads. Tiles of few queries cut their keys into splits, so that a single long
sequence fills the card; a second kernel joins the splits by their log-sum-exps.

Equals `reference.attention`.

Shape suffixes: T rows, H query heads, K KV heads, D head_dim, S spans.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from workers.kernels.span_tiles import (
    BLOCK_KEYS,
    LARGEST_TILE,
    SMALLEST_TILE,
    HeadShape,
    KeyPlace,
    SpanTiles,
)
from workers.kernels.triton.accumulator import accumulator

LOG2_E = tl.constexpr(1.4426950408889634)


def attend(
    q_THD: Tensor, place: KeyPlace, batch: SpanTiles, shape: HeadShape, out: Tensor, lse: Tensor
) -> None:
    """Write the spans' rows of the output (T, H, D) and of the log-sum-exps (T, H)."""
    wide = torch.promote_types(q_THD.dtype, torch.float32)
    splits = batch.splits
    if splits == 1:
        parts, part_lse = out, lse
    else:
        parts = torch.empty(splits, *out.shape, dtype=wide, device=out.device)
        part_lse = torch.empty(splits, *lse.shape, dtype=wide, device=out.device)
    sizes = tile_sizes(batch.queries, shape)
    _attend[(len(batch.tiles), shape.kv_heads, splits)](
        q_THD,
        place.keys,
        place.values,
        batch.spans if place.tables is None else place.tables,
        *head_arguments(place, batch.spans),
        batch.spans,
        batch.tiles,
        parts,
        part_lse,
        shape.dim**-0.5 * LOG2_E.value,
        q_THD.stride(0),
        q_THD.stride(1),
        place.page_stride,
        place.head_stride,
        place.token_stride,
        out.numel(),
        lse.numel(),
        splits,
        PAGE=place.page_tokens,
        HAS_HEADS=place.heads is not None,
        WINDOW=shape.window,
        BLOCK_N=BLOCK_KEYS,
        WIDE=accumulator(q_THD.dtype),
        **sizes,
    )
    if splits > 1:
        _join[(len(batch.tiles), shape.kv_heads)](
            parts,
            part_lse,
            out,
            lse,
            batch.spans,
            batch.tiles,
            out.numel(),
            lse.numel(),
            splits=splits,
            WIDE=accumulator(q_THD.dtype),
            **sizes,
        )


def tile_sizes(queries: int, shape: HeadShape) -> dict[str, int]:
    """Constants of a tile that every kernel of attention takes, and the warps that share it."""
    rows = max(SMALLEST_TILE, queries * shape.stacked)
    return {
        "KV_HEADS": shape.kv_heads,
        "GROUP": shape.group,
        "STACKED": shape.stacked,
        "BLOCK_M": rows,
        "DIM": shape.dim,
        "BLOCK_D": max(SMALLEST_TILE, triton.next_power_of_2(shape.dim)),
        "num_warps": 8 if rows >= LARGEST_TILE else 4,
    }


def head_arguments(place: KeyPlace, absent: Tensor) -> tuple[Tensor, int, int]:
    """Lines, layer and block stride of heads with tables; what is absent is never read."""
    heads = place.heads
    return (absent, 0, 0) if heads is None else (heads.lines_S5, heads.layer, heads.block_stride)


@triton.jit
def key_offsets(tables, first, slot, inside, page_stride, token_stride, PAGE: tl.constexpr):
    """Offsets of a span's key slots, in elements from its head's first number."""
    if PAGE > 0:
        page = tl.load(tables + first + slot // PAGE, mask=inside, other=0).to(tl.int64)
        return page * page_stride + (slot % PAGE) * token_stride
    else:
        return (first + slot) * token_stride


@triton.jit
def head_pages(tables, first, line, layer, head, page_stride, block_stride, KV_HEADS: tl.constexpr):
    """How KV heads of one span find their pages: a page is entry * stride + offset.

    Returns:
        First entry of each table, stride, offset, and how many more slots than tokens there are.
    """
    table, width = tl.load(line), tl.load(line + 1)
    is_uniform = table == 0
    place = layer * KV_HEADS + head
    own = (table + 4 * place * width).to(tl.pointer_type(tl.int32))
    entries = tl.where(is_uniform, tables + first, own)
    stride = tl.where(is_uniform, block_stride, page_stride)
    offset = tl.where(is_uniform, (2 * layer * KV_HEADS + head).to(tl.int64) * page_stride, 0)
    shifts = tl.load(line + 2).to(tl.pointer_type(tl.int32)) + place
    shift = tl.load(tl.where(is_uniform, tables + first, shifts)).to(tl.int64)
    return entries, stride, offset, tl.where(is_uniform, 0, shift)


@triton.jit
def head_counts(line, layer, head, KV_HEADS: tl.constexpr):
    """What is added to the logits of one KV head's first slots, and how many these are."""
    counts, width = tl.load(line + 3), tl.load(line + 4)
    own = counts + 4 * (layer * KV_HEADS + head) * width
    return own.to(tl.pointer_type(tl.float32)), width


@triton.jit
def _walk(
    state,
    begin,
    end,
    query_rows,
    limit,
    high,
    keys,
    values,
    table,
    biases,
    scale,
    token_stride,
    BLOCK_N: tl.constexpr,
    DIM: tl.constexpr,
    PAGE: tl.constexpr,
    HAS_HEADS: tl.constexpr,
    WINDOW: tl.constexpr,
    IS_WHOLE: tl.constexpr,
):
    """Take in blocks of keys from `begin` on; all queries see all of them where IS_WHOLE.

    The state is each query's peak, and its sums of weights and of values; `scale` is that of the
    scores as exponents of two, and so are the peaks.
    """
    peak, total, sums = state
    entries, first, page, offset_of_head = table
    counts, num_counts = biases
    place = tl.arange(0, sums.shape[1])
    is_dim = (place < DIM)[None, :]
    for start in range(begin.to(tl.int32), end.to(tl.int32), BLOCK_N):
        slot = start + tl.arange(0, BLOCK_N)
        is_key = slot < high
        offset = key_offsets(entries, first, slot, is_key, page, token_stride, PAGE)
        offset = offset[:, None] + offset_of_head + place[None, :]
        inside = is_dim if IS_WHOLE else is_dim & is_key[:, None]
        key = tl.load(keys + offset, mask=inside, other=0.0)
        scores = tl.zeros((query_rows.shape[0], BLOCK_N), total.dtype)
        scores = tl.dot(query_rows, tl.trans(key), scores, "ieee", out_dtype=total.dtype)
        if HAS_HEADS:
            bias = tl.load(counts + slot, mask=slot < num_counts, other=0.0)
            scores += bias.to(total.dtype)[None, :] * (LOG2_E / scale)
        if not IS_WHOLE:
            visible = slot[None, :] < limit[:, None]
            if WINDOW > 0:
                visible = visible & (slot[None, :] >= limit[:, None] - WINDOW)
            scores = tl.where(visible, scores, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, 1) * scale)
        level = higher if IS_WHOLE else tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(scores * scale - level[:, None])
        shrunk = tl.exp2(peak - level)
        total = total * shrunk + tl.sum(weights, 1)
        value = tl.load(values + offset, mask=inside, other=0.0)
        sums = sums * shrunk[:, None]
        sums = tl.dot(weights.to(value.dtype), value, sums, "ieee", out_dtype=total.dtype)
        peak = higher
    return peak, total, sums


@triton.jit(do_not_specialize=["layer", "out_split", "lse_split", "splits"])
def _attend(
    q,
    keys,
    values,
    tables,
    head_lines,
    layer,
    block_stride,
    spans,
    tiles,
    out,
    lse,
    scale,
    q_row,
    q_head,
    page_stride,
    head_stride,
    token_stride,
    out_split,
    lse_split,
    splits,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    STACKED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGE: tl.constexpr,
    HAS_HEADS: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WIDE: tl.constexpr,
):
    tile, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    which, first_query = tl.load(tiles + 2 * tile), tl.load(tiles + 2 * tile + 1)
    span = spans + 4 * which
    queries, first = tl.load(span + 1), tl.load(span + 3)
    num_keys = tl.load(span + 2) + queries
    table = (tables, first, page_stride, head.to(tl.int64) * head_stride)
    biases = (tables, 0)
    if HAS_HEADS:
        line = head_lines + 5 * which
        entries, page, offset_of_head, shift = head_pages(
            tables, first, line, layer, head, page_stride, block_stride, KV_HEADS
        )
        table = (entries, 0, page, offset_of_head)
        biases = head_counts(line, layer, head, KV_HEADS)
        num_keys += shift
    stacked = tl.arange(0, BLOCK_M)
    query, member = first_query + stacked // STACKED, stacked % STACKED
    is_query = (query < queries) & (member < GROUP)
    row, query_head = tl.load(span) + query, head * GROUP + member
    before = num_keys - queries + first_query  # keys before the tile's first query
    limit = tl.where(is_query, before + 1 + stacked // STACKED, 0)  # keys before it are seen
    last = tl.minimum(num_keys, before + BLOCK_M // STACKED)
    low = tl.zeros((), tl.int64)
    if WINDOW > 0:
        low = tl.maximum(before + 1 - WINDOW, 0)
    share = tl.cdiv(tl.cdiv(last - low, splits), BLOCK_N) * BLOCK_N
    low += split * share
    high = tl.minimum(low + share, last)
    hidden = tl.maximum(last - WINDOW - low, 0) if WINDOW > 0 else tl.zeros((), tl.int64)
    seen = tl.maximum(tl.minimum(before + 1, high) - low, 0)
    whole_from = low + tl.cdiv(hidden, BLOCK_N) * BLOCK_N  # all queries see all keys from here on
    whole_to = tl.maximum(low + seen // BLOCK_N * BLOCK_N, whole_from)

    place = tl.arange(0, BLOCK_D)
    inside_q = is_query[:, None] & (place < DIM)[None, :]
    source = q + row[:, None] * q_row + query_head[:, None] * q_head + place[None, :]
    query_rows = tl.load(source, mask=inside_q, other=0.0)
    state = (
        tl.full((BLOCK_M,), float("-inf"), WIDE),
        tl.zeros((BLOCK_M,), WIDE),
        tl.zeros((BLOCK_M, BLOCK_D), WIDE),
    )
    if WINDOW > 0:
        state = _walk(
            state, low, tl.minimum(whole_from, high), query_rows, limit, high, keys, values, table,
            biases, scale, token_stride, BLOCK_N, DIM, PAGE, HAS_HEADS, WINDOW, False,
        )  # fmt: skip
    state = _walk(
        state, whole_from, whole_to, query_rows, limit, high, keys, values, table,
        biases, scale, token_stride, BLOCK_N, DIM, PAGE, HAS_HEADS, WINDOW, True,
    )  # fmt: skip
    peak, total, sums = _walk(
        state, whole_to, high, query_rows, limit, high, keys, values, table,
        biases, scale, token_stride, BLOCK_N, DIM, PAGE, HAS_HEADS, WINDOW, False,
    )  # fmt: skip
    has_keys = total > 0
    divisor = tl.where(has_keys, total, 1.0)
    sums = sums / divisor[:, None]
    log_sum = tl.where(has_keys, peak / LOG2_E + tl.log(divisor), float("-inf"))
    heads: tl.constexpr = KV_HEADS * GROUP
    target = split * out_split + (row * heads + query_head)[:, None] * DIM + place[None, :]
    tl.store(out + target, sums.to(out.dtype.element_ty), mask=inside_q)
    tl.store(lse + split * lse_split + row * heads + query_head, log_sum, mask=is_query)


@triton.jit(do_not_specialize=["out_split", "lse_split", "splits"])
def _join(
    parts,
    part_lse,
    out,
    lse,
    spans,
    tiles,
    out_split,
    lse_split,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    STACKED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    splits,
    WIDE: tl.constexpr,
):
    tile, head = tl.program_id(0), tl.program_id(1)
    span = spans + 4 * tl.load(tiles + 2 * tile)
    stacked = tl.arange(0, BLOCK_M)
    query = tl.load(tiles + 2 * tile + 1) + stacked // STACKED
    is_query = (query < tl.load(span + 1)) & (stacked % STACKED < GROUP)
    heads: tl.constexpr = KV_HEADS * GROUP
    line = (tl.load(span) + query) * heads + head * GROUP + stacked % STACKED
    place = tl.arange(0, BLOCK_D)
    inside = is_query[:, None] & (place < DIM)[None, :]
    target = line[:, None] * DIM + place[None, :]
    peak = tl.full((BLOCK_M,), float("-inf"), WIDE)
    for split in range(splits):
        logs = tl.load(part_lse + split * lse_split + line, mask=is_query, other=0.0)
        peak = tl.maximum(peak, logs)
    total = tl.zeros((BLOCK_M,), WIDE)
    sums = tl.zeros((BLOCK_M, BLOCK_D), WIDE)
    for split in range(splits):
        logs = tl.load(part_lse + split * lse_split + line, mask=is_query, other=0.0)
        weight = tl.exp(logs - peak)
        total += weight
        sums += weight[:, None] * tl.load(
            parts + split * out_split + target, mask=inside, other=0.0
        )
    tl.store(out + target, (sums / total[:, None]).to(out.dtype.element_ty), mask=inside)
    tl.store(lse + line, peak + tl.log(total), mask=is_query)
