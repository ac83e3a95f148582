"""Gradients of an adapter's terms, summed over units and packs in float32 or wider."""

from __future__ import annotations

import torch
from torch import Tensor

from workers.adapter_arena import AdapterColumns, Term
from workers.model import DecoderConfig, fused_linears


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
        sizes = []
        for _, index in targets:
            rows = len(linears[index].slices) * columns.rank
            sizes += [(rows, linears[index].in_features), (rows, linears[index].out_features)]
        self.flat = torch.zeros(sum(a * b for a, b in sizes), dtype=dtype, device=device)
        views = [
            part.view(size)
            for part, size in zip(self.flat.split([a * b for a, b in sizes]), sizes, strict=True)
        ]
        self.terms = {
            key: Term(shrink, expand)
            for key, shrink, expand in zip(targets, views[::2], views[1::2], strict=True)
        }

    def add_shrink(self, layer: int, index: int, left: Tensor, right: Tensor) -> None:
        """d_shrink += left @ right."""
        accumulate(self.terms[layer, index].shrink_CI, left, right)

    def add_expand(
        self, layer: int, index: int, rows: slice, columns: slice, left: Tensor, right: Tensor
    ) -> None:
        """d_expand[rows, columns] += left @ right."""
        accumulate(self.terms[layer, index].expand_CO[rows, columns], left, right)

    def clear(self) -> None:
        """Start the next sum."""
        self.flat.zero_()


def accumulate(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Total += left @ right, whatever the dtype of the factors."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right
