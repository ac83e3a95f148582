"""Storage of all resident adapters: shared matrices in which each adapter owns some rows.

An adapter of rank r holds the rank columns [offset, offset + r) of the arena. A fused linear of n
named projections has one shrink matrix, where that is the rows [n * offset, n * (offset + r)), one
block of r rows for each projection; and an expand matrix for each projection, where it is the rows
[offset, offset + r). Blocks of projections that an adapter does not target are zero. Mixed ranks
waste nothing, and the rows of one adapter, or of all of them, are one view: nothing is copied when
a step's adapters change.

Between shrink and expand an adapter may have a middle for each projection: a diagonal or an r x r
matrix. The middles of one adapter are a tensor of its own, (layer, projection, rank, numbers), made
when its slot is: adapters without one pay no memory for those of others, and no kernel looks for
them in a batch that has none.

Every stored number is finite. That is what keeps one tenant's huge weights out of another's rows,
even where both run through one GEMM: masked activations are exact zeros, and 0 * finite = 0.

Shape suffixes: C rows of the arena, I in_features, O out_features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from workers.kernels.cpu_kernels import MAX_PROJECTIONS
from workers.kernels.device_kernels import kernels_of
from workers.kernels.segments import LinearPlace
from workers.model import DecoderConfig, FusedLinear, fused_linears
from workers.shard import CUT, OUTPUTS, WHOLE, Shard

MAX_KEPT_TERMS = 256  # places in the arena whose views are kept


@dataclass(frozen=True, slots=True)
class Term:
    """What an adapter adds to one fused linear: x @ shrink.T @ middle.T @ expand.

    Attributes:
        shrink_CI: (n * r, in_features), one block of r rows for each projection.
        expand_RO: for each projection, (r, its outputs); the adapter's scale is inside.
        middle_RM: for each projection, a diagonal (r, 1) or a matrix (r, r); empty: the identity.
    """

    shrink_CI: Tensor
    expand_RO: tuple[Tensor, ...]
    middle_RM: tuple[Tensor, ...] = ()

    def matrices(self) -> tuple[Tensor, ...]:
        """All matrices of the term."""
        return self.shrink_CI, *self.expand_RO, *self.middle_RM

    def pinned(self) -> Term:
        """The same in memory that a card copies from while its host goes on."""
        shrink, *rest = (matrix.pin_memory() for matrix in self.matrices())
        count = len(self.expand_RO)
        return Term(shrink, tuple(rest[:count]), tuple(rest[count:]))

    def part(self, shard: Shard, cut: int) -> Term:
        """A rank's part, where the linear's weight is cut by its outputs or its inputs."""
        if cut == OUTPUTS:
            return replace(self, expand_RO=tuple(shard.part(part, 1) for part in self.expand_RO))
        return replace(self, shrink_CI=shard.part(self.shrink_CI, 1))


@dataclass(frozen=True, slots=True)
class AdapterColumns:
    """Rank columns [offset, offset + rank) of the arena, and the projections that are not zero.

    Attributes:
        middle: numbers in a row of a projection's middle: 1 of a diagonal, `rank` of a matrix;
            0: there is none.
    """

    offset: int
    rank: int
    modules: frozenset[str]
    middle: int = 0

    @property
    def own(self) -> slice:
        """The adapter's rank columns."""
        return slice(self.offset, self.offset + self.rank)

    def rows(self, linear: FusedLinear) -> slice:
        """The adapter's rows in the shrink matrix of `linear`: one block for each projection."""
        n = len(linear.slices)
        return slice(n * self.offset, n * (self.offset + self.rank))

    def targets(self, linear: FusedLinear) -> bool:
        """Whether any projection of `linear` is adapted."""
        return any(part.module in self.modules for part in linear.slices)


class AdapterArena:
    """Matrices of `num_columns` rank columns for every fused linear of every layer.

    Attributes:
        model: the whole base model, which adapters are made for.
        shard: the part of it, and so of every adapter, that lies here.
    """

    def __init__(
        self,
        model: DecoderConfig,
        num_columns: int,
        dtype: torch.dtype,
        device: torch.device,
        shard: Shard = WHOLE,
    ) -> None:
        config = shard.config(model)
        self.model = model
        self.shard = shard
        self.num_columns = num_columns
        self.dtype = dtype
        self.device = device
        self.linears = fused_linears(config)
        self.num_layers = config.num_layers

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        layers = range(self.num_layers)
        self.shrink = [
            [zeros(num_columns * len(linear.slices), linear.in_features) for _ in layers]
            for linear in self.linears
        ]
        self.expand = [
            [tuple(zeros(num_columns, part.num_features) for part in linear.slices) for _ in layers]
            for linear in self.linears
        ]

        self._terms: dict[AdapterColumns, dict[tuple[int, int], Term]] = {}
        self._middles: dict[AdapterColumns, Tensor] = {}
        kernels = kernels_of(device, dtype)
        self._adapted: dict[tuple[int, int], Any] = {}
        if kernels is not None:
            self._adapted = {
                (layer, index): kernels.adapted_linear(
                    LinearPlace(MAX_PROJECTIONS * index, self._first_middle(layer, index)),
                    [0, *(part.stop for part in linear.slices)],
                    self.shrink[index][layer],
                    self.expand[index][layer],
                )
                for layer in layers
                for index, linear in enumerate(self.linears)
            }

    def adapted(self, layer: int, index: int) -> Any:
        """The matrices of one fused linear, as the kernels of the arena's device read them."""
        return self._adapted[layer, index]

    def targets(self, columns: AdapterColumns) -> int:
        """The projections that an adapter has, a bit for each, as the kernels read them."""
        return sum(
            1 << (MAX_PROJECTIONS * index + j)
            for index, linear in enumerate(self.linears)
            for j, part in enumerate(linear.slices)
            if part.module in columns.modules
        )

    def run_numbers(self, columns: AdapterColumns) -> tuple[int, int, int, int, int]:
        """What the kernels read of a run's adapter: the last of segments' RUN_FIELDS."""
        address = self._middles_of(columns).data_ptr() if columns.middle else 0
        return columns.offset, columns.rank, self.targets(columns), columns.middle, address

    def matrices(self) -> list[Tensor]:
        """Every matrix that adapters share."""
        expands = [part for layers in self.expand for parts in layers for part in parts]
        return [matrix for layers in self.shrink for matrix in layers] + expands

    def terms(self, columns: AdapterColumns) -> dict[tuple[int, int], Term]:
        """An adapter's own rows of every fused linear it targets, as views to write into.

        A slot is filled and cleared between two steps, and making a hundred views takes as long as
        copying what goes into them: views are kept.
        """
        if columns not in self._terms:
            if len(self._terms) >= MAX_KEPT_TERMS:
                self._terms.clear()
            self._terms[columns] = self._views(columns)
        return self._terms[columns]

    def _views(self, columns: AdapterColumns) -> dict[tuple[int, int], Term]:
        return {
            (layer, index): Term(
                self.shrink[index][layer][columns.rows(linear)],
                tuple(expand[columns.own] for expand in self.expand[index][layer]),
                self._middle_views(columns, layer, index),
            )
            for layer in range(self.num_layers)
            for index, linear in enumerate(self.linears)
            if columns.targets(linear)
        }

    def _middle_views(self, columns: AdapterColumns, layer: int, index: int) -> tuple[Tensor, ...]:
        if not columns.middle:
            return ()
        first = self._first_middle(layer, index)
        return self._middles_of(columns)[first : first + len(self.linears[index].slices)].unbind()

    def _middles_of(self, columns: AdapterColumns) -> Tensor:
        """The middles of an adapter's projections, (all of the model's, rank, numbers)."""
        if columns not in self._middles:
            shape = (self._first_middle(self.num_layers, 0), columns.rank, columns.middle)
            self._middles[columns] = torch.zeros(shape, dtype=self.dtype, device=self.device)
        return self._middles[columns]

    def _first_middle(self, layer: int, index: int) -> int:
        """Projections before those of a linear."""
        counts = [len(linear.slices) for linear in self.linears]
        return layer * sum(counts) + sum(counts[:index])

    def part(self, terms: dict[tuple[int, int], Term]) -> dict[tuple[int, int], Term]:
        """This rank's part of the terms of a whole adapter."""
        return {
            (layer, index): term.part(self.shard, CUT[index])
            for (layer, index), term in terms.items()
        }

    def clear(self, columns: AdapterColumns) -> None:
        """Zero all that an adapter has written: what it does not target was never anything else."""
        torch._foreach_zero_([m for term in self.terms(columns).values() for m in term.matrices()])
        if columns.middle:
            del self._terms[columns], self._middles[columns]


def empty_terms(
    model: DecoderConfig, columns: AdapterColumns, dtype: torch.dtype
) -> dict[tuple[int, int], Term]:
    """Zeroed terms of a whole adapter, on the CPU and outside of any arena."""

    def term(linear: FusedLinear) -> Term:
        rank, parts = columns.rank, linear.slices
        middle = (rank, columns.middle)
        return Term(
            torch.zeros(rank * len(parts), linear.in_features, dtype=dtype),
            tuple(torch.zeros(rank, part.num_features, dtype=dtype) for part in parts),
            tuple(torch.zeros(middle, dtype=dtype) for _ in parts) if columns.middle else (),
        )

    return {
        (layer, index): term(linear)
        for layer in range(model.num_layers)
        for index, linear in enumerate(fused_linears(model))
        if columns.targets(linear)
    }


def are_finite(terms: dict[tuple[int, int], Term]) -> bool:
    """Whether every number of the terms is finite in their dtype."""
    matrices = [matrix for term in terms.values() for matrix in term.matrices()]
    return bool(torch.isfinite(torch.stack(torch._foreach_norm(matrices, math.inf))).all())
