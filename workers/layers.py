"""Elementwise pieces of a decoder layer, each with its hand-written backward.

Each runs as one kernel where the machine has it, and as the torch code below elsewhere. The frozen
weights get no gradient: a backward returns only the gradient of the activations.
Shape suffixes: T rows, I features, H heads, D head_dim.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.kernels.cpu_kernels import cpu_kernels_for
from workers.kernels.device_kernels import kernels_for


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Weight * x / rms(x) over the last dimension."""
    kernels = kernels_for(x)
    if kernels is not None:
        return kernels.rms_norm(x, weight, eps)
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


def rms_norm_backward(
    grad: Tensor, x: Tensor, weight: Tensor, eps: float, into: Tensor | None = None
) -> Tensor:
    """Gradient of rms_norm's input; added to `into`, in place, where given.

    Semantics:
        n = x * rstd;  dx = rstd * (g - n * mean(g * n))  with  g = grad * weight
    """
    kernels = kernels_for(x)
    if kernels is not None:
        return kernels.rms_norm_backward(grad, x, weight, eps, into)
    wide = torch.promote_types(x.dtype, torch.float32)
    x_wide = x.to(wide)
    rstd = torch.rsqrt(x_wide.pow(2).mean(-1, keepdim=True) + eps)
    normed = x_wide * rstd
    scaled = grad.to(wide) * weight.to(wide)
    mean = (scaled * normed).mean(-1, keepdim=True)
    result = ((scaled - normed * mean) * rstd).to(x.dtype)
    return result if into is None else into.add_(result)


def rotate(x_THD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE with cos and sin (T, 1, D/2); element j turns with element j + D/2."""
    kernels = cpu_kernels_for(x_THD)  # a card turns heads where it places them, see workers.qkv
    if kernels is not None:
        return kernels.rotate(x_THD, cos, sin)
    first, second = x_THD.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def rotate_backward(grad_THD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Gradient of rotate's input: the transposed rotation, which turns back."""
    kernels = cpu_kernels_for(grad_THD)
    if kernels is not None:
        return kernels.rotate(grad_THD, cos, sin, direction=-1.0)
    return rotate(grad_THD, cos, -sin)


def silu_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up, where gate and up lie side by side in the last dimension."""
    kernels = kernels_for(gate_up)
    if kernels is not None:
        return kernels.silu_mul(gate_up)
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def silu_mul_backward(grad: Tensor, gate_up: Tensor) -> Tensor:
    """Gradient of silu_mul's input, laid out like it."""
    kernels = kernels_for(gate_up)
    if kernels is not None:
        return kernels.silu_mul_backward(grad, gate_up)
    gate, up = gate_up.chunk(2, dim=-1)
    sigmoid = torch.sigmoid(gate)
    silu = gate * sigmoid
    result = torch.empty_like(gate_up)
    grad_gate, grad_up = result.chunk(2, dim=-1)
    torch.mul(grad, silu, out=grad_up)
    torch.mul(grad * up, sigmoid + silu * (1 - sigmoid), out=grad_gate)
    return result
