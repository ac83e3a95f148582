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
        count = sum(math.prod(shape) for shape in shapes.values())
        self.flat = torch.zeros(count, dtype=dtype, device=device)
        self.views = named_views(self.flat, shapes)


def named_views(flat: Tensor, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Views of a flat vector, one after the other."""
    parts = flat.split([math.prod(shape) for shape in shapes.values()])
    return {
        name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }
