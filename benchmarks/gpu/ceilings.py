"""What the card can do at most: bytes copied and products summed in a second."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from benchmarks.gpu.setting import Figures, Setting


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Bytes and operations a second, at most."""

    bytes_per_s: float
    flop_per_s: float

    @classmethod
    def of(cls, setting: Setting) -> Ceilings:
        """What the device of this process can do."""
        return cls(copy_bytes_per_s(setting), gemm_flop_per_s(setting))

    def seconds(self, num_bytes: float, flop: float) -> float:
        """The roofline: work of so many bytes and operations takes no less."""
        return max(num_bytes / self.bytes_per_s, flop / self.flop_per_s)


def measure(setting: Setting) -> Iterator[Figures]:
    """Copy bandwidth (bytes read and written) and GEMM rate in the dtype of the run."""
    yield {"copy_gb_per_s": copy_bytes_per_s(setting) / 1e9}
    yield {"gemm_tflop_per_s": gemm_flop_per_s(setting) / 1e12}


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
