"""Which kernels a device has: C++ on a CPU that can take them, Triton on CUDA, else none.

Triton is imported only once a CUDA tensor asks for it.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from workers.kernels.cpu_kernels import CpuKernels, cpu_kernels

if TYPE_CHECKING:
    from workers.kernels.triton.gpu_kernels import GpuKernels

GPU_KERNELS = "workers.kernels.triton.gpu_kernels"


@cache
def gpu_kernels(dtype: torch.dtype) -> GpuKernels | None:
    """Triton's kernels; None where Triton is not installed, or for a dtype that is no number."""
    if importlib.util.find_spec("triton") is None or not dtype.is_floating_point:
        return None
    made: GpuKernels = importlib.import_module(GPU_KERNELS).GpuKernels()
    return made


Kernels = Callable[[torch.dtype], "CpuKernels | GpuKernels | None"]
KERNELS: dict[str, Kernels] = {"cpu": cpu_kernels, "cuda": gpu_kernels}


def kernels_of(device: torch.device, dtype: torch.dtype) -> CpuKernels | GpuKernels | None:
    """The kernels for a device and dtype, if there are any."""
    find = KERNELS.get(device.type)
    return None if find is None else find(dtype)


def kernels_for(x: Tensor) -> CpuKernels | GpuKernels | None:
    """The kernels for a tensor's device and dtype, if there are any."""
    return kernels_of(x.device, x.dtype)


def gpu_kernels_for(x: Tensor) -> GpuKernels | None:
    """The kernels that only GPUs have."""
    kernels = kernels_for(x)
    return None if isinstance(kernels, CpuKernels) else kernels
