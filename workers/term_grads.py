"""Gradients of an adapter's terms, summed over units and packs in float32 or wider."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.adapter_arena import AdapterColumns, Term
from workers.middle import middle_grad
from workers.model import DecoderConfig, FusedLinear, fused_linears


@dataclass(frozen=True, slots=True)
class TermParts:
    """The shared matrices of a term that a method trains; a middle is always trained."""

    shrink: bool
    expand: bool


SHRINK_AND_EXPAND = TermParts(shrink=True, expand=True)
MIDDLE_ONLY = TermParts(shrink=False, expand=False)


class TermGrads:
    """Sums of d_shrink, d_expand and d_middle for every (layer, linear) that an adapter targets.

    What its method does not train has no rows. All sums are views of one flat vector, so clearing
    them is one operation.
    """

    def __init__(
        self,
        config: DecoderConfig,
        columns: AdapterColumns,
        dtype: torch.dtype,
        device: torch.device,
        trained: TermParts = SHRINK_AND_EXPAND,
    ) -> None:
        linears = fused_linears(config)
        shapes = {
            (layer, index): term_shapes(linear, columns, trained)
            for layer in range(config.num_layers)
            for index, linear in enumerate(linears)
            if columns.targets(linear)
        }
        counts = [math.prod(shape) for term in shapes.values() for shape in term]
        self.flat = torch.zeros(sum(counts), dtype=dtype, device=device)
        parts = iter(self.flat.split(counts))
        self.terms = {}
        for key, term in shapes.items():
            shrink, *others = (next(parts).view(shape) for shape in term)
            count = len(linears[key[1]].slices)
            self.terms[key] = Term(shrink, tuple(others[:count]), tuple(others[count:]))

    def add_shrink(self, layer: int, index: int, left: Tensor, right: Tensor) -> None:
        """d_shrink += left @ right, if it is wanted."""
        accumulate(self.terms[layer, index].shrink_CI, left, right)

    def add_expand(self, layer: int, index: int, part: int, left: Tensor, right: Tensor) -> None:
        """d_expand of one projection += left @ right, if it is wanted."""
        accumulate(self.terms[layer, index].expand_RO[part], left, right)

    def add_middle(self, layer: int, index: int, part: int, grad: Tensor, shrunk: Tensor) -> None:
        """d_middle of one projection, from the gradient of what came out and what went in."""
        total = self.terms[layer, index].middle_RM[part]
        total += middle_grad(grad, shrunk, total.shape[1])

    def clear(self) -> None:
        """Start the next sum."""
        self.flat.zero_()


def term_shapes(
    linear: FusedLinear, columns: AdapterColumns, trained: TermParts
) -> list[tuple[int, int]]:
    """Shape of a term's shrink, then of the expand and of the middle of each projection."""
    rank, parts = columns.rank, linear.slices
    shrink = rank * len(parts) if trained.shrink else 0
    expands = [(rank if trained.expand else 0, part.num_features) for part in parts]
    middles = [(rank, columns.middle) for _ in parts] if columns.middle else []
    return [(shrink, linear.in_features), *expands, *middles]


def accumulate(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Total += left @ right, whatever the dtype of the factors; a total without rows wants none."""
    if not len(total):
        return
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right
