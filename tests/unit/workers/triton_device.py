"""Where Triton's kernels are tested: on a card in float32, else interpreted in float64."""

from __future__ import annotations

import os

import torch

HAS_CARD = torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") == "0"
DEVICE = torch.device("cuda" if HAS_CARD else "cpu")
DTYPE = torch.float32 if HAS_CARD else torch.float64
TOLERANCE = 1e-4 if HAS_CARD else 1e-11


def rand(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).to(DEVICE, DTYPE)


def assert_close(got: torch.Tensor, want: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    assert got.shape == want.shape
    if not want.numel():
        return
    error = float((got.double() - want.double()).abs().max())
    assert error <= tolerance * max(1.0, float(want.abs().max()))
