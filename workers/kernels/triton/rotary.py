"""RoPE of all heads of a row, and its way back: one program a row.

Equals `reference.rotate`: element j turns with element j + D/2.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from workers.kernels.triton.accumulator import accumulator


def rotate(x_THD: Tensor, cos: Tensor, sin: Tensor, direction: float = 1.0) -> Tensor:
    """Rotate by cos and sin (T, 1, D/2), contiguous; direction -1 turns back."""
    rows, heads, dim = x_THD.shape
    if x_THD.stride(2) != 1:
        x_THD = x_THD.contiguous()
    y = torch.empty(rows, heads, dim, dtype=x_THD.dtype, device=x_THD.device)
    _rotate[(rows,)](
        x_THD,
        cos.contiguous(),
        sin.contiguous(),
        y,
        x_THD.stride(0),
        x_THD.stride(1),
        HEADS=heads,
        HALF=dim // 2,
        BACK=direction < 0,
        WIDE=accumulator(x_THD.dtype),
        BLOCK_H=triton.next_power_of_2(heads),
        BLOCK_D=triton.next_power_of_2(dim // 2),
    )
    return y


@triton.jit
def _rotate(
    x,
    cos,
    sin,
    y,
    row_stride,
    head_stride,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BACK: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, BLOCK_H)[:, None]
    place = tl.arange(0, BLOCK_D)[None, :]
    inside = (head < HEADS) & (place < HALF)
    source = x + row * row_stride + head * head_stride + place
    first = tl.load(source, mask=inside, other=0.0).to(WIDE)
    second = tl.load(source + HALF, mask=inside, other=0.0).to(WIDE)
    cosine = tl.load(cos + row * HALF + place, mask=place < HALF, other=0.0).to(WIDE)
    sine = tl.load(sin + row * HALF + place, mask=place < HALF, other=0.0).to(WIDE)
    if BACK:
        sine = -sine
    target = y + row * (HEADS * 2 * HALF) + head * (2 * HALF) + place
    tl.store(target, (first * cosine - second * sine).to(y.dtype.element_ty), mask=inside)
    tl.store(target + HALF, (second * cosine + first * sine).to(y.dtype.element_ty), mask=inside)
