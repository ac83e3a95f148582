"""Heads of a fused qkv output in one pass: normalised, turned, and K and V stored in their pages.

A program takes a few heads of a row, of whatever kind they are. Numbers are rounded once, on their
way out. Equals `reference.rms_norm`, then `reference.rotate`, then a copy.

Shape suffixes: T rows, F qkv features, H query heads, K KV heads, D head_dim.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from workers.kernels.qkv_rows import HeadNorms, PageRows, QkvShape
from workers.kernels.triton.accumulator import accumulator

BLOCK_HEADS = 8
NUMBERS_PER_WARP = 256  # eight of 16 bits, read at once, for each thread


def place_heads(
    qkv_TF: Tensor,
    shape: QkvShape,
    norms: HeadNorms | None,
    turn: tuple[Tensor, Tensor],
    pages: PageRows | None,
) -> Tensor:
    """Query and key heads, (T, H + K, D); K and V of the rows that have pages are stored there.

    Shapes:
        qkv_TF: features side by side, rows strided as they may be.
        turn: cos and sin, (T, 1, D / 2).
    """
    rows, half = len(qkv_TF), shape.dim // 2
    block = triton.next_power_of_2(half)
    heads = torch.empty(rows, shape.turned, shape.dim, dtype=qkv_TF.dtype, device=qkv_TF.device)
    weights = (heads, heads, 0.0) if norms is None else (norms.query, norms.key, norms.eps)
    _place[(rows, triton.cdiv(shape.turned + shape.kv_heads, BLOCK_HEADS))](
        qkv_TF,
        *(part.contiguous() for part in turn),
        *weights,
        heads,
        *_page_arguments(pages, heads),
        qkv_TF.stride(0),
        HEADS=shape.heads,
        KV_HEADS=shape.kv_heads,
        HALF=half,
        NORMED=norms is not None,
        STORES=pages is not None,
        WIDE=accumulator(qkv_TF.dtype),
        BLOCK_H=BLOCK_HEADS,
        BLOCK_D=block,
        num_warps=max(1, BLOCK_HEADS * block // NUMBERS_PER_WARP),
    )
    return heads


def _page_arguments(pages: PageRows | None, absent: Tensor) -> tuple[object, ...]:
    """Pages, places and strides; what is absent is never read."""
    if pages is None:
        return absent, absent, absent, absent, 0, 0, 0, 0, 0
    keys, values = pages.keys_BKPD, pages.values_BKPD
    assert keys.stride() == values.stride()
    rows = pages.rows
    places = (keys, values, pages.blocks_T, pages.offsets_T)
    return *places, *keys.stride()[:3], rows.start, rows.stop


@triton.jit(do_not_specialize=["first_row", "stop_row"])
def _place(
    qkv,
    cos,
    sin,
    q_norm,
    k_norm,
    eps,
    heads,
    keys,
    values,
    blocks,
    offsets,
    page_stride,
    head_stride,
    token_stride,
    first_row,
    stop_row,
    qkv_stride,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    NORMED: tl.constexpr,
    STORES: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    turned: tl.constexpr = HEADS + KV_HEADS
    row = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H))[:, None]
    place = tl.arange(0, BLOCK_D)[None, :]
    inside = (head < turned + KV_HEADS) & (place < HALF)
    source = qkv + row * qkv_stride + head * (2 * HALF) + place
    first = tl.load(source, mask=inside, other=0.0).to(WIDE)
    second = tl.load(source + HALF, mask=inside, other=0.0).to(WIDE)
    left, right = first, second
    if NORMED:
        squares = tl.sum(first * first + second * second, 1)
        rstd = (1.0 / tl.sqrt(squares / (2 * HALF) + eps))[:, None]
        left *= rstd * _gains(q_norm, k_norm, head, place, inside, HEADS, WIDE)
        right *= rstd * _gains(q_norm + HALF, k_norm + HALF, head, place, inside, HEADS, WIDE)
    angle = row * HALF + place + 0 * head  # read as the heads are: no exchange between threads
    cosine = tl.load(cos + angle, mask=inside, other=0.0).to(WIDE)
    sine = tl.load(sin + angle, mask=inside, other=0.0).to(WIDE)
    is_value = head >= turned
    first = tl.where(is_value, first, left * cosine - right * sine).to(heads.dtype.element_ty)
    second = tl.where(is_value, second, right * cosine + left * sine).to(heads.dtype.element_ty)
    target = heads + row * (turned * 2 * HALF) + head * (2 * HALF) + place
    tl.store(target, first, mask=inside & (head < turned))
    tl.store(target + HALF, second, mask=inside & (head < turned))
    if STORES:
        stored = row - first_row
        is_stored = (row >= first_row) & (row < stop_row)
        block = tl.load(blocks + stored, mask=is_stored, other=-1).to(tl.int64)
        offset = tl.load(offsets + stored, mask=is_stored, other=0).to(tl.int64)
        if block >= 0:
            page = block * page_stride + offset * token_stride + place
            target = keys + page + (head - HEADS) * head_stride
            is_key = inside & (head >= HEADS) & (head < turned)
            tl.store(target, first, mask=is_key)
            tl.store(target + HALF, second, mask=is_key)
            target = values + page + (head - turned) * head_stride
            tl.store(target, first, mask=inside & is_value)
            tl.store(target + HALF, second, mask=inside & is_value)


@triton.jit
def _gains(q_norm, k_norm, head, place, inside, HEADS: tl.constexpr, WIDE: tl.constexpr):
    """Norm weights of query and key heads."""
    query = tl.load(q_norm + place + 0 * head, mask=inside & (head < HEADS), other=0.0)
    key = tl.load(k_norm + place + 0 * head, mask=inside & (head >= HEADS), other=0.0)
    return (query + key).to(WIDE)
