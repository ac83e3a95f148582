"""Writes the keys and values of compressed sequences into their pages: one program a row.

Equals `KVCache.write_slots`: each head's page table says where a row goes.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from workers.kernels.span_tiles import KeyPlace
from workers.kernels.triton.attention import head_arguments, head_pages


def store_heads(
    place: KeyPlace, spans_S4: Tensor, most_queries: int, k_TKD: Tensor, v_TKD: Tensor
) -> None:
    """Store the rows of spans of up to so many queries, none where a page is of the null block."""
    heads, dim = k_TKD.shape[1:]
    _store_heads[(len(spans_S4), most_queries)](
        k_TKD,
        v_TKD,
        place.keys,
        place.values,
        place.tables,
        *head_arguments(place, spans_S4),
        spans_S4,
        k_TKD.stride(0),
        k_TKD.stride(1),
        v_TKD.stride(0),
        v_TKD.stride(1),
        place.page_stride,
        place.token_stride,
        KV_HEADS=heads,
        DIM=dim,
        PAGE=place.page_tokens,
        BLOCK_H=triton.next_power_of_2(heads),
        BLOCK_D=triton.next_power_of_2(dim),
    )


@triton.jit(do_not_specialize=["layer"])
def _store_heads(
    k,
    v,
    keys,
    values,
    tables,
    head_lines,
    layer,
    block_stride,
    spans,
    k_row,
    k_head,
    v_row,
    v_head,
    page_stride,
    token_stride,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    which, step = tl.program_id(0), tl.program_id(1)
    span, line = spans + 4 * which, head_lines + 5 * which
    if step < tl.load(span + 1):
        head = tl.minimum(tl.arange(0, BLOCK_H), KV_HEADS - 1)  # the last may be stored twice
        entries, stride, offset, shift = head_pages(
            tables, tl.load(span + 3), line, layer, head, page_stride, block_stride, KV_HEADS
        )
        slot = tl.load(span + 2) + step + shift
        page = tl.load(entries + slot // PAGE).to(tl.int64) * stride + offset
        place = tl.arange(0, BLOCK_D)[None, :]
        inside = (page >= block_stride)[:, None] & (place < DIM)
        target = (page + (slot % PAGE) * token_stride)[:, None] + place
        row, head = tl.load(span) + step, head[:, None]
        key = tl.load(k + row * k_row + head * k_head + place, mask=inside, other=0.0)
        value = tl.load(v + row * v_row + head * v_head + place, mask=inside, other=0.0)
        tl.store(keys + target, key, mask=inside)
        tl.store(values + target, value, mask=inside)
