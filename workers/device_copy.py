"""Numbers between the host and a device, without waiting for what the device is doing."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def upload(values: list[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A (nested) list as a tensor, see `copy_to`; also where `making_on` is entered."""
    return copy_to(torch.tensor(values, dtype=dtype, device="cpu"), device)


def copy_to(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host; on CUDA by way of pinned memory, in stream order."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class Download:
    """Numbers on their way from a device, in stream order; only who reads them waits."""

    def __init__(self, values: Tensor) -> None:
        self._values = values
        self._has_come: torch.cuda.Event | None = None
        if values.is_cuda:
            self._values = torch.empty_like(values, device="cpu", pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._has_come = torch.cuda.Event()
            self._has_come.record()

    def read(self) -> Tensor:
        """The numbers, on the host."""
        if self._has_come is not None:
            self._has_come.synchronize()
        return self._values


def making_on(device: torch.device) -> AbstractContextManager[Any]:
    """New tensors lie on `device`. Each call of torch pays for it, except on the CPU."""
    return nullcontext() if device.type == "cpu" else device
