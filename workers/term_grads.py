"""Gradients of an adapter's terms, summed over units and packs in float32 or wider."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from workers.adapter_arena import AdapterColumns, Term
from workers.model import DecoderConfig, FusedLinear, fused_linears


class TermGrads:
    """Sums of d_shrink and d_expand for every (layer, linear) that an adapter targets.

    All of them are views of one flat vector, so clearing them is one operation.
    """

    def __init__(
        self,
        config: DecoderConfig,
        columns: AdapterColumns,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        linears = fused_linears(config)
        targets = [
            (layer, index)
            for layer in range(config.num_layers)
            for index, linear in enumerate(linears)
            if columns.targets(linear)
        ]
        shapes = [term_shapes(linears[index], columns.rank) for _, index in targets]
        counts = [math.prod(shape) for term in shapes for shape in term]
        self.flat = torch.zeros(sum(counts), dtype=dtype, device=device)
        parts = iter(self.flat.split(counts))
        self.terms = {}
        for key, (shrink, *expands) in zip(targets, shapes, strict=True):
            self.terms[key] = Term(
                next(parts).view(shrink), tuple(next(parts).view(shape) for shape in expands)
            )

    def add_shrink(self, layer: int, index: int, left: Tensor, right: Tensor) -> None:
        """d_shrink += left @ right."""
        accumulate(self.terms[layer, index].shrink_CI, left, right)

    def add_expand(self, layer: int, index: int, part: int, left: Tensor, right: Tensor) -> None:
        """d_expand of one projection += left @ right."""
        accumulate(self.terms[layer, index].expand_RO[part], left, right)

    def clear(self) -> None:
        """Start the next sum."""
        self.flat.zero_()


def term_shapes(linear: FusedLinear, rank: int) -> list[tuple[int, int]]:
    """Shape of a term's shrink, then of the expand of each projection."""
    expands = [(rank, part.num_features) for part in linear.slices]
    return [(rank * len(linear.slices), linear.in_features), *expands]


def accumulate(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Total += left @ right, whatever the dtype of the factors."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right
