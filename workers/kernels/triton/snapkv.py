"""How much the last queries of a prompt look at each key, as SnapKV votes.

Equals `reference.column_sums`: for each KV head, attention weights summed over a span's queries and
the query heads that share the head. Pooling and choice of keys are the policy's.

Source: Li et al. 2024, arXiv:2404.14469.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from workers.kernels.span_tiles import BLOCK_KEYS, LARGEST_TILE, HeadShape, KeyPlace, SpanTiles
from workers.kernels.triton.accumulator import accumulator
from workers.kernels.triton.attention import key_offsets, table_arguments, tile_sizes


def column_sums(
    q_THD: Tensor,
    lse_TH: Tensor,
    place: KeyPlace,
    batch: SpanTiles,
    most_keys: int,
    shape: HeadShape,
) -> Tensor:
    """Votes (S, K, most_keys), in the dtype of `lse`; 0 for keys that a span does not have.

    `lse_TH` is attention's own; the spans' queries are those that vote, the tiles are not read.
    """
    spans = len(batch.spans)
    votes = torch.zeros(spans, shape.kv_heads, most_keys, dtype=lse_TH.dtype, device=lse_TH.device)
    _column_sums[(spans, shape.kv_heads, triton.cdiv(most_keys, BLOCK_KEYS))](
        q_THD,
        lse_TH,
        place.keys,
        *table_arguments(place, batch)[:3],
        votes,
        shape.dim**-0.5,
        shape.window,
        q_THD.stride(0),
        q_THD.stride(1),
        place.page_stride,
        place.head_stride,
        place.token_stride,
        most_keys,
        PAGE=place.page_tokens,
        HAS_LENGTHS=place.lengths_SK is not None,
        BLOCK_N=BLOCK_KEYS,
        WIDE=accumulator(q_THD.dtype),
        **tile_sizes(max(1, LARGEST_TILE // shape.stacked), shape),
    )
    return votes


@triton.jit(do_not_specialize=["most_keys"])
def _column_sums(
    q,
    lse,
    keys,
    tables,
    lengths,
    spans,
    votes,
    scale,
    window,
    q_row,
    q_head,
    page_stride,
    head_stride,
    token_stride,
    most_keys,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    STACKED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGE: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WIDE: tl.constexpr,
):
    which, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    span = spans + 4 * which
    queries, first = tl.load(span + 1), tl.load(span + 3)
    if HAS_LENGTHS:
        num_keys = tl.load(lengths + which * KV_HEADS + head).to(tl.int64)
    else:
        num_keys = tl.load(span + 2) + queries
    slot = tl.program_id(2) * BLOCK_N + tl.arange(0, BLOCK_N)
    is_key = slot < num_keys
    place = tl.arange(0, BLOCK_D)
    is_dim = place < DIM
    offset = key_offsets(tables, first, slot, is_key, page_stride, token_stride, PAGE)
    offset = offset[:, None] + head.to(tl.int64) * head_stride + place[None, :]
    key = tl.load(keys + offset, mask=is_key[:, None] & is_dim[None, :], other=0.0)
    stacked = tl.arange(0, BLOCK_M)
    sums = tl.zeros((BLOCK_N,), WIDE)
    for begin in range(0, queries.to(tl.int32), BLOCK_M // STACKED):
        query, member = begin + stacked // STACKED, stacked % STACKED
        is_query = (query < queries) & (member < GROUP)
        row, query_head = tl.load(span) + query, head * GROUP + member
        source = q + row[:, None] * q_row + query_head[:, None] * q_head + place[None, :]
        query_rows = tl.load(source, mask=is_query[:, None] & is_dim[None, :], other=0.0)
        line = row * (KV_HEADS * GROUP) + query_head
        log_sums = tl.load(lse + line, mask=is_query, other=0.0)
        scores = tl.zeros((BLOCK_M, BLOCK_N), WIDE)
        scores = tl.dot(query_rows, tl.trans(key), scores, input_precision="ieee") * scale
        limit = (num_keys - queries + query + 1)[:, None]
        visible = is_query[:, None] & is_key[None, :] & (slot[None, :] < limit)
        if window > 0:
            visible = visible & (slot[None, :] >= limit - window)
        logs = tl.where(visible, scores - log_sums[:, None], float("-inf"))
        sums += tl.sum(tl.exp(logs), 0)
    target = votes + (which * KV_HEADS + head) * most_keys + slot
    tl.store(target, sums, mask=slot < most_keys)
