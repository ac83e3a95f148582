"""Numbers from the host to a device, without waiting for what the device is doing."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def upload(values: list[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A (nested) list as a tensor, see `copy_to`."""
    return copy_to(torch.tensor(values, dtype=dtype), device)


def copy_to(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host; on CUDA by way of pinned memory, in stream order."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def making_on(device: torch.device) -> AbstractContextManager[Any]:
    """New tensors lie on `device`. Each call of torch pays for it, except on the CPU."""
    return nullcontext() if device.type == "cpu" else device
