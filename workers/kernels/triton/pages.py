"""Writes the keys and values of inference rows into their pages: one program a row.

Equals `KVCache.write`. Pages may be strided; only a head's numbers lie side by side.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


def store_pages(
    keys_BKPD: Tensor,
    values_BKPD: Tensor,
    blocks_T: Tensor,
    offsets_T: Tensor,
    k_TKD: Tensor,
    v_TKD: Tensor,
) -> None:
    """Store rows at (block, offset), none at a negative block; keys and values lie alike."""
    assert keys_BKPD.stride() == values_BKPD.stride()
    rows, heads, dim = k_TKD.shape
    page, head, token, _ = keys_BKPD.stride()
    _store[(rows,)](
        k_TKD,
        v_TKD,
        keys_BKPD,
        values_BKPD,
        blocks_T,
        offsets_T,
        k_TKD.stride(0),
        k_TKD.stride(1),
        v_TKD.stride(0),
        v_TKD.stride(1),
        page,
        head,
        token,
        HEADS=heads,
        DIM=dim,
        BLOCK_H=triton.next_power_of_2(heads),
        BLOCK_D=triton.next_power_of_2(dim),
    )


@triton.jit
def _store(
    k,
    v,
    keys,
    values,
    blocks,
    offsets,
    k_row,
    k_head,
    v_row,
    v_head,
    page_stride,
    head_stride,
    token_stride,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, BLOCK_H)[:, None]
    place = tl.arange(0, BLOCK_D)[None, :]
    inside = (head < HEADS) & (place < DIM)
    block = tl.load(blocks + row).to(tl.int64)
    if block >= 0:
        target = block * page_stride + tl.load(offsets + row) * token_stride
        target = target + head * head_stride + place
        key = tl.load(k + row * k_row + head * k_head + place, mask=inside, other=0.0)
        value = tl.load(v + row * v_row + head * v_head + place, mask=inside, other=0.0)
        tl.store(keys + target, key, mask=inside)
        tl.store(values + target, value, mask=inside)
