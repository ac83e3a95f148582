"""Adapters of every kind as random numbers in an arena, and as the reference reads them."""

from __future__ import annotations

import torch

from workers.adapter_arena import AdapterArena, AdapterColumns, Term
from workers.kernels.reference import RowTerm


def fill_columns(arena: AdapterArena, columns: AdapterColumns, seed: int) -> None:
    """Random terms; blocks of projections that are not targeted stay zero."""
    generator = torch.Generator().manual_seed(seed)
    for (_, index), term in arena.terms(columns).items():
        for j, part in enumerate(arena.linears[index].slices):
            if part.module not in columns.modules:
                continue
            shrink = term.shrink_CI[j * columns.rank : (j + 1) * columns.rank]
            for matrix in (shrink, term.expand_RO[j], *term.middle_RM[j : j + 1]):
                drawn = torch.randn(matrix.shape, generator=generator, dtype=torch.float64)
                matrix.copy_(drawn * matrix.shape[-1] ** -0.5)


def row_term(term: Term) -> RowTerm:
    """In float64: the projections in one block-diagonal expand, their middles likewise."""
    shrink, expand = term.shrink_CI.double(), torch.block_diag(*term.expand_RO).double()
    if not term.middle_RM:
        return RowTerm(shrink, expand)
    if term.middle_RM[0].shape[1] == 1:
        return RowTerm(shrink, expand, torch.cat(term.middle_RM)[:, 0].double())
    return RowTerm(shrink, expand, torch.block_diag(*term.middle_RM).double())
