"""What the card can do at most: bytes copied and products summed in a second."""

from __future__ import annotations

import torch

from benchmarks.gpu.setting import Figures, Setting


def measure(setting: Setting) -> Figures:
    """Copy bandwidth (bytes read and written) and GEMM rate in the dtype of the run."""
    return {
        "copy_gb_per_s": copy_bytes_per_s(setting) / 1e9,
        "gemm_tflop_per_s": gemm_flop_per_s(setting) / 1e12,
    }


def copy_bytes_per_s(setting: Setting) -> float:
    """Of a copy that no cache holds."""
    size = 1 << (22 if setting.is_tiny else 32)
    source = torch.zeros(size, dtype=torch.uint8, device=setting.device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / setting.time_s(lambda: target.copy_(source))


def gemm_flop_per_s(setting: Setting) -> float:
    """Of a large square product of random numbers."""
    side = 256 if setting.is_tiny else 8192
    a, b = torch.randn(2, side, side, device=setting.device).to(setting.dtype)
    out = torch.empty_like(a)
    return 2 * side**3 / setting.time_s(lambda: torch.mm(a, b, out=out))
