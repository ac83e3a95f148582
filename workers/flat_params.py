"""Named parameters as views of one flat vector, so that an optimizer is a few operations."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class FlatParams:
    """A flat vector and its named views."""

    def __init__(
        self, shapes: dict[str, tuple[int, ...]], dtype: torch.dtype, device: torch.device
    ) -> None:
        sizes = [math.prod(shape) for shape in shapes.values()]
        self.flat = torch.zeros(sum(sizes), dtype=dtype, device=device)
        self.views: dict[str, Tensor] = {
            name: part.view(shape)
            for (name, shape), part in zip(shapes.items(), self.flat.split(sizes), strict=True)
        }
