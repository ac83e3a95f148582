"""Many adapters in one batch: what each row's own adapter adds to a fused linear.

Rows of one adapter are contiguous: a run. Where the machine has the kernel, all runs of a batch go
through one call for each linear; elsewhere each run goes through its own two products.

Equals `reference.shrink_expand`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workers.adapter_arena import AdapterArena, AdapterColumns
from workers.device_copy import upload
from workers.kernels.device_kernels import kernels_for
from workers.kernels.segments import RunTable, tile_places, tile_rows
from workers.middle import through


@dataclass(slots=True)
class AdapterRun:
    """Rows [start, stop) of the batch that use one adapter."""

    start: int
    stop: int
    columns: AdapterColumns


class AdapterRows:
    """The runs of a batch; their table is made on first use, unless it is given."""

    def __init__(self, runs: list[AdapterRun], table: RunTable | None = None) -> None:
        self.runs = runs
        self._table = table

    def add(self, arena: AdapterArena, layer: int, index: int, x: Tensor, y: Tensor) -> None:
        """Y += what each row's adapter adds; in place."""
        if not self.runs and self._table is None:
            return
        kernels = kernels_for(x)
        if kernels is None:
            for run in self.runs:
                add_run(run, arena, layer, index, x, y)
        else:
            table = self.table(arena, x.device)
            kernels.add_adapters(arena.adapted(layer, index), table, x, y)

    def table(self, arena: AdapterArena, device: torch.device) -> RunTable:
        """The runs as the kernels of a device read them."""
        if self._table is None:
            self._table = run_table(self.runs, arena, device)
        return self._table


def add_run(
    run: AdapterRun, arena: AdapterArena, layer: int, index: int, x: Tensor, y: Tensor
) -> None:
    """Y += x @ shrink.T @ middle.T @ expand for a run's rows, projection by projection."""
    linear, columns = arena.linears[index], run.columns
    if not columns.targets(linear):
        return
    rows = slice(run.start, run.stop)
    term = arena.terms(columns)[layer, index]
    blocks = (x[rows] @ term.shrink_CI.T).split(columns.rank, dim=1)
    for j, (part, shrunk) in enumerate(zip(linear.slices, blocks, strict=True)):
        if part.module in columns.modules:
            if columns.middle:
                shrunk = through(shrunk, term.middle_RM[j])
            y[rows, part.start : part.stop].addmm_(shrunk, term.expand_RO[j])


def run_table(runs: list[AdapterRun], arena: AdapterArena, device: torch.device) -> RunTable:
    """Runs, and tiles of them, as the kernels read them."""
    lines = [(run.start, run.stop, *arena.run_numbers(run.columns)) for run in runs]
    rank = max(run.columns.rank for run in runs)
    rows = tile_rows([run.stop - run.start for run in runs], rank)
    tiles = tile_places([run.start for run in runs], [run.stop for run in runs], rows)
    return RunTable(
        upload(lines, torch.int64, device),
        upload(tiles, torch.int64, device),
        rows,
        rank,
        any(run.columns.middle for run in runs),
    )
