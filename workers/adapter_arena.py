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

    def write(self, columns: AdapterColumns, terms: dict[tuple[int, int], Term]) -> None:
        """Put an adapter's terms, keyed by (layer, linear index), into its columns.

        Raises:
            InvalidInput: a weight is not finite in the arena's dtype; the columns are zero then.
        """
        for index, linear in enumerate(self.linears):
            rows = columns.rows(linear)
            for layer in range(self.num_layers):
                shrink, expand = self.shrink[index][layer][rows], self.expand[index][layer][rows]
                term = terms.get((layer, index))
                if term is None:
                    shrink.zero_()
                    expand.zero_()
                else:
                    shrink.copy_(term.shrink_CI)
                    expand.copy_(term.expand_CO)
        if not self.is_finite(columns):
            self.clear(columns)
            raise InvalidInput("The adapter holds weights that are NaN, infinite or overflow.")

    def is_finite(self, columns: AdapterColumns) -> bool:
        """Whether all numbers of an adapter are finite."""
        sums = [
            matrix[layer][columns.rows(linear)].abs().max()
            for index, linear in enumerate(self.linears)
            for matrix in (self.shrink[index], self.expand[index])
            for layer in range(self.num_layers)
        ]
        return bool(torch.isfinite(torch.stack(sums)).all())

    def clear(self, columns: AdapterColumns) -> None:
        """Zero an adapter's columns."""
        for index, linear in enumerate(self.linears):
            rows = columns.rows(linear)
            for layer in range(self.num_layers):
                self.shrink[index][layer][rows] = 0
                self.expand[index][layer][rows] = 0
