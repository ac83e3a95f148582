"""silu(gate) * up, and the gradient of both.

Equals `reference.silu_mul`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from workers.kernels.triton.accumulator import accumulator

BLOCK = 1024


def silu_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up, (T, I) from (T, 2 I)."""
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    y = torch.empty(rows, width, dtype=gate_up.dtype, device=gate_up.device)
    _forward[(rows, triton.cdiv(width, BLOCK))](
        gate_up, y, gate_up.stride(0), width, WIDE=accumulator(gate_up.dtype), BLOCK=BLOCK
    )
    return y


def silu_mul_backward(grad: Tensor, gate_up: Tensor) -> Tensor:
    """Gradient of silu_mul's input, (T, 2 I), from that of its output."""
    rows, width = grad.shape
    result = torch.empty(rows, 2 * width, dtype=gate_up.dtype, device=gate_up.device)
    _backward[(rows, triton.cdiv(width, BLOCK))](
        grad,
        gate_up,
        result,
        grad.stride(0),
        gate_up.stride(0),
        width,
        WIDE=accumulator(gate_up.dtype),
        BLOCK=BLOCK,
    )
    return result


@triton.jit
def _forward(gate_up, y, stride, width, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    source = gate_up + row * stride + column
    gate = tl.load(source, mask=inside, other=0.0).to(WIDE)
    up = tl.load(source + width, mask=inside, other=0.0).to(WIDE)
    result = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(y + row * width + column, result.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _backward(
    grad, gate_up, result, grad_stride, stride, width, WIDE: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    source = gate_up + row * stride + column
    gate = tl.load(source, mask=inside, other=0.0).to(WIDE)
    up = tl.load(source + width, mask=inside, other=0.0).to(WIDE)
    outer = tl.load(grad + row * grad_stride + column, mask=inside, other=0.0).to(WIDE)
    sigmoid = 1.0 / (1.0 + tl.exp(-gate))
    silu = gate * sigmoid
    target = result + row * (2 * width) + column
    grad_gate = outer * up * (sigmoid + silu * (1.0 - sigmoid))
    tl.store(target, grad_gate.to(result.dtype.element_ty), mask=inside)
    tl.store(target + width, (outer * silu).to(result.dtype.element_ty), mask=inside)
