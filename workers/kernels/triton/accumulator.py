"""In which dtype kernels sum: float32, or float64 where the tensors are that."""

from __future__ import annotations

import torch
import triton.language as tl

_SUMS = {torch.float64: tl.float64}


def accumulator(dtype: torch.dtype) -> tl.dtype:
    """Triton's dtype for sums over tensors of `dtype`."""
    return _SUMS.get(dtype, tl.float32)
