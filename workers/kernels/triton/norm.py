"""RMSNorm of rows, and the gradient of its input: one program a row.

Equals `reference.rms_norm`; sums are float32 or wider.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from workers.kernels.triton.accumulator import accumulator

VALUES_PER_WARP = 512
MAX_WARPS = 16


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Weight * x / rms(x) over the last dimension."""
    rows = x.reshape(-1, x.shape[-1])
    y = torch.empty_like(rows)
    block = triton.next_power_of_2(rows.shape[1])
    _forward[(len(rows),)](
        rows,
        weight,
        y,
        rows.stride(0),
        rows.shape[1],
        eps,
        WIDE=accumulator(x.dtype),
        BLOCK=block,
        num_warps=_warps(block),
    )
    return y.view(x.shape)


def rms_norm_backward(
    grad: Tensor, x: Tensor, weight: Tensor, eps: float, into: Tensor | None = None
) -> Tensor:
    """Gradient of rms_norm's input, added to `into`, in place, where given."""
    grads, rows = grad.reshape(-1, x.shape[-1]), x.reshape(-1, x.shape[-1])
    total = torch.empty_like(rows) if into is None else into.view(rows.shape)
    block = triton.next_power_of_2(rows.shape[1])
    _backward[(len(rows),)](
        grads,
        rows,
        weight,
        total,
        grads.stride(0),
        rows.stride(0),
        total.stride(0),
        rows.shape[1],
        eps,
        ADDS=into is not None,
        WIDE=accumulator(x.dtype),
        BLOCK=block,
        num_warps=_warps(block),
    )
    return total.view(x.shape) if into is None else into


def _warps(block: int) -> int:
    return min(MAX_WARPS, max(1, block // VALUES_PER_WARP))


@triton.jit
def _forward(x, weight, y, x_stride, width, eps, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    values = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(WIDE)
    gains = tl.load(weight + column, mask=inside, other=0.0).to(WIDE)
    rstd = 1.0 / tl.sqrt(tl.sum(values * values, 0) / width + eps)
    result = values * rstd * gains
    tl.store(y + row * width + column, result.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _backward(
    grad,
    x,
    weight,
    total,
    grad_stride,
    x_stride,
    total_stride,
    width,
    eps,
    ADDS: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    values = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(WIDE)
    gains = tl.load(weight + column, mask=inside, other=0.0).to(WIDE)
    scaled = tl.load(grad + row * grad_stride + column, mask=inside, other=0.0).to(WIDE) * gains
    rstd = 1.0 / tl.sqrt(tl.sum(values * values, 0) / width + eps)
    normed = values * rstd
    mean = tl.sum(scaled * normed, 0) / width
    result = (scaled - normed * mean) * rstd
    place = total + row * total_stride + column
    if ADDS:
        result += tl.load(place, mask=inside, other=0.0).to(WIDE)
    tl.store(place, result.to(total.dtype.element_ty), mask=inside)
