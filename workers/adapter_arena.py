"""Storage of all resident adapters: per fused linear, one matrix of shrink and one of expand rows.

An adapter of rank r holds the rank columns [offset, offset + r) of the arena. In a linear of n
named projections that is the rows [n * offset, n * (offset + r)), one block of r rows for each
projection, zero where the adapter does not target it. Mixed ranks waste nothing, and the rows of
one adapter, or of all of them, are one view: no copies when a step's adapters change.

Every stored number is finite. That is what keeps one tenant's huge weights out of another's rows,
even where both run through one GEMM: masked activations are exact zeros, and 0 * finite = 0.

Shape suffixes: C rows of the arena, I in_features, O out_features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scheduler.domain.errors import InvalidInput
from workers.model import DecoderConfig, FusedLinear, fused_linears


@dataclass(frozen=True, slots=True)
class Term:
    """What an adapter adds to one fused linear: x @ shrink.T @ expand.

    Attributes:
        shrink_CI: (n * r, in_features), one block of r rows for each projection.
        expand_CO: (n * r, out_features), block-diagonal; the adapter's scale is inside.
    """

    shrink_CI: Tensor
    expand_CO: Tensor


@dataclass(frozen=True, slots=True)
class AdapterColumns:
    """Rank columns [offset, offset + rank) of the arena, and the projections that are not zero."""

    offset: int
    rank: int
    modules: frozenset[str]

    def rows(self, linear: FusedLinear) -> slice:
        """The adapter's rows in the matrices of `linear`."""
        n = len(linear.slices)
        return slice(n * self.offset, n * (self.offset + self.rank))

    def targets(self, linear: FusedLinear) -> bool:
        """Whether any projection of `linear` is adapted."""
        return any(part.module in self.modules for part in linear.slices)


class AdapterArena:
    """Matrices of `num_columns` rank columns for every fused linear of every layer."""

    def __init__(
        self, config: DecoderConfig, num_columns: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.num_columns = num_columns
        self.linears = fused_linears(config)
        self.num_layers = config.num_layers

        def zeros(features: int, linear: FusedLinear) -> list[Tensor]:
            shape = (num_columns * len(linear.slices), features)
            return [torch.zeros(shape, dtype=dtype, device=device) for _ in range(self.num_layers)]

        self.shrink = [zeros(linear.in_features, linear) for linear in self.linears]
        self.expand = [zeros(linear.out_features, linear) for linear in self.linears]

    def terms(self, columns: AdapterColumns) -> dict[tuple[int, int], Term]:
        """An adapter's own rows of every fused linear it targets, as views to write into."""
        return {
            (layer, index): Term(
                self.shrink[index][layer][columns.rows(linear)],
                self.expand[index][layer][columns.rows(linear)],
            )
            for layer in range(self.num_layers)
            for index, linear in enumerate(self.linears)
            if columns.targets(linear)
        }

    def check_finite(self, columns: AdapterColumns) -> None:
        """Refuse, and wipe, an adapter that is not finite in the arena's dtype.

        Raises:
            InvalidInput: a weight is NaN, infinite, or overflows.
        """
        if not are_finite(self.terms(columns)):
            self.clear(columns)
            raise InvalidInput("The adapter holds weights that are NaN, infinite or overflow.")

    def clear(self, columns: AdapterColumns) -> None:
        """Zero all rows of the columns, targeted or not."""
        for index, linear in enumerate(self.linears):
            rows = columns.rows(linear)
            for layer in range(self.num_layers):
                self.shrink[index][layer][rows] = 0
                self.expand[index][layer][rows] = 0


def are_finite(terms: dict[tuple[int, int], Term]) -> bool:
    """Whether every number of the terms is finite in their dtype."""
    peaks = [m.abs().amax() for term in terms.values() for m in (term.shrink_CI, term.expand_CO)]
    return bool(torch.isfinite(torch.stack(peaks)).all())
