"""Heads of a fused qkv output in one pass: normalised, turned, K and V stored; and the way back.

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
    _rotate_store[(rows, triton.cdiv(shape.turned + shape.kv_heads, BLOCK_HEADS))](
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


def place_heads_backward(
    grad_THD: Tensor,
    sums: tuple[Tensor, Tensor],
    shape: QkvShape,
    norms: HeadNorms | None,
    turn: tuple[Tensor, Tensor],
    heads_TND: Tensor | None,
) -> Tensor:
    """Gradient of a qkv output, (T, F), from those of its placed heads.

    Shapes:
        grad_THD: of the queries, contiguous.
        sums: of keys and values, (T, K, D) each, contiguous.
        heads_TND: query and key heads before their norms, (T, H + K, D); None without norms.
    """
    rows, half = len(grad_THD), shape.dim // 2
    block = triton.next_power_of_2(half)
    width = (shape.turned + shape.kv_heads) * shape.dim
    result = torch.empty(rows, width, dtype=grad_THD.dtype, device=grad_THD.device)
    heads = result if heads_TND is None else heads_TND.contiguous()
    weights = (heads, heads, 0.0) if norms is None else (norms.query, norms.key, norms.eps)
    _rotate_backward[(rows, triton.cdiv(shape.turned + shape.kv_heads, BLOCK_HEADS))](
        grad_THD,
        *sums,
        heads,
        *(part.contiguous() for part in turn),
        *weights,
        result,
        HEADS=shape.heads,
        KV_HEADS=shape.kv_heads,
        HALF=half,
        NORMED=norms is not None,
        WIDE=accumulator(grad_THD.dtype),
        BLOCK_H=BLOCK_HEADS,
        BLOCK_D=block,
        num_warps=max(1, BLOCK_HEADS * block // NUMBERS_PER_WARP),
    )
    return result


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
def _rotate_store(
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
def _rotate_backward(
    grad,
    sums_k,
    sums_v,
    heads,
    cos,
    sin,
    q_norm,
    k_norm,
    eps,
    result,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    NORMED: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    turned: tl.constexpr = HEADS + KV_HEADS
    row = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H))[:, None]
    place = tl.arange(0, BLOCK_D)[None, :]
    inside = (head < turned + KV_HEADS) & (place < HALF)
    is_query, is_value = inside & (head < HEADS), head >= turned
    first = tl.zeros((BLOCK_H, BLOCK_D), WIDE)
    second = tl.zeros((BLOCK_H, BLOCK_D), WIDE)
    source = grad + (row * HEADS + head) * (2 * HALF) + place
    first += tl.load(source, mask=is_query, other=0.0)
    second += tl.load(source + HALF, mask=is_query, other=0.0)
    source = sums_k + (row * KV_HEADS + head - HEADS) * (2 * HALF) + place
    is_key = inside & (head >= HEADS) & (head < turned)
    first += tl.load(source, mask=is_key, other=0.0)
    second += tl.load(source + HALF, mask=is_key, other=0.0)
    source = sums_v + (row * KV_HEADS + head - turned) * (2 * HALF) + place
    first += tl.load(source, mask=inside & is_value, other=0.0)
    second += tl.load(source + HALF, mask=inside & is_value, other=0.0)

    angle = row * HALF + place + 0 * head
    cosine = tl.load(cos + angle, mask=inside, other=0.0).to(WIDE)
    sine = tl.load(sin + angle, mask=inside, other=0.0).to(WIDE)
    left, right = first * cosine + second * sine, second * cosine - first * sine
    if NORMED:
        source = heads + (row * turned + head) * (2 * HALF) + place
        is_turned = inside & (head < turned)
        x_left = tl.load(source, mask=is_turned, other=0.0).to(WIDE)
        x_right = tl.load(source + HALF, mask=is_turned, other=0.0).to(WIDE)
        squares = tl.sum(x_left * x_left + x_right * x_right, 1)
        rstd = (1.0 / tl.sqrt(squares / (2 * HALF) + eps))[:, None]
        x_left *= rstd
        x_right *= rstd
        left *= _gains(q_norm, k_norm, head, place, inside, HEADS, WIDE)
        right *= _gains(q_norm + HALF, k_norm + HALF, head, place, inside, HEADS, WIDE)
        mean = (tl.sum(left * x_left + right * x_right, 1) / (2 * HALF))[:, None]
        left = (left - x_left * mean) * rstd
        right = (right - x_right * mean) * rstd
    target = result + (row * (turned + KV_HEADS) + head) * (2 * HALF) + place
    first = tl.where(is_value, first, left).to(result.dtype.element_ty)
    second = tl.where(is_value, second, right).to(result.dtype.element_ty)
    tl.store(target, first, mask=inside)
    tl.store(target + HALF, second, mask=inside)


@triton.jit
def _gains(q_norm, k_norm, head, place, inside, HEADS: tl.constexpr, WIDE: tl.constexpr):
    """Norm weights of query and key heads."""
    query = tl.load(q_norm + place + 0 * head, mask=inside & (head < HEADS), other=0.0)
    key = tl.load(k_norm + place + 0 * head, mask=inside & (head >= HEADS), other=0.0)
    return (query + key).to(WIDE)
