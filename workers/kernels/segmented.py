"""Many adapters in one batch: what each row's own adapter adds to a fused linear.

Rows of one adapter are contiguous. Long runs go through their own two GEMMs. Short runs (decode)
of several adapters share two GEMMs over the hull of their arena columns, with every activation
outside a row's own columns set to exactly zero in between; where the hull would be mostly foreign
columns, each run goes alone.

Equals `reference.shrink_expand`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from workers.adapter_arena import AdapterArena, AdapterColumns

LONG_RUN_ROWS = 16
MAX_HULL_FACTOR = 4  # columns in the hull per column in use, above which runs go alone


@dataclass(slots=True)
class AdapterRun:
    """Rows [start, stop) of the batch that use one adapter."""

    start: int
    stop: int
    columns: AdapterColumns


@dataclass(slots=True)
class SharedRuns:
    """Short runs that share GEMMs: their rows [start, stop) and the hull of their columns.

    Attributes:
        owner_masks: by projections per linear: (rows, hull columns * n), True where foreign.
    """

    start: int
    stop: int
    first_column: int
    last_column: int
    runs: list[AdapterRun]
    owner_masks: dict[int, Tensor] = field(default_factory=dict)

    def foreign(self, num_slices: int, device: torch.device) -> Tensor:
        """Where a row meets another adapter's columns."""
        if num_slices not in self.owner_masks:
            width = (self.last_column - self.first_column) * num_slices
            mask = torch.ones(self.stop - self.start, width, dtype=torch.bool)
            for run in self.runs:
                first = (run.columns.offset - self.first_column) * num_slices
                stop = first + run.columns.rank * num_slices
                mask[run.start - self.start : run.stop - self.start, first:stop] = False
            self.owner_masks[num_slices] = mask.to(device)
        return self.owner_masks[num_slices]


class AdapterRows:
    """The runs of a batch, sorted into those that go alone and those that share GEMMs."""

    def __init__(self, runs: list[AdapterRun]) -> None:
        short = [run for run in runs if run.stop - run.start < LONG_RUN_ROWS]
        self.shared = share(short)
        shared = set() if self.shared is None else {id(run) for run in self.shared.runs}
        self.alone = [run for run in runs if id(run) not in shared]

    def add(self, arena: AdapterArena, layer: int, index: int, x: Tensor, y: Tensor) -> None:
        """Y += what each row's adapter adds; in place."""
        linear = arena.linears[index]
        shrink, expand = arena.shrink[index][layer], arena.expand[index][layer]
        for run in self.alone:
            if run.columns.targets(linear):
                shrunk = x[run.start : run.stop] @ shrink[run.columns.rows(linear)].T
                expand_into(y[run.start : run.stop], shrunk, arena, layer, index, run.columns)
        if self.shared is not None:
            self._add_shared(shrink, expand, len(linear.slices), x, y)

    def _add_shared(
        self, shrink: Tensor, expand: Tensor, num_slices: int, x: Tensor, y: Tensor
    ) -> None:
        shared = self.shared
        assert shared is not None
        columns = slice(shared.first_column * num_slices, shared.last_column * num_slices)
        shrunk = x[shared.start : shared.stop] @ shrink[columns].T
        shrunk.masked_fill_(shared.foreign(num_slices, x.device), 0)
        y[shared.start : shared.stop].addmm_(shrunk, expand[columns])


def share(runs: list[AdapterRun]) -> SharedRuns | None:
    """Join adjacent short runs, unless there is one only or their hull is mostly foreign."""
    if len(runs) < 2:
        return None
    first = min(run.columns.offset for run in runs)
    last = max(run.columns.offset + run.columns.rank for run in runs)
    used = sum({run.columns.offset: run.columns.rank for run in runs}.values())
    if last - first > MAX_HULL_FACTOR * used:
        return None
    return SharedRuns(min(r.start for r in runs), max(r.stop for r in runs), first, last, runs)


def expand_into(
    y: Tensor, shrunk: Tensor, arena: AdapterArena, layer: int, index: int, columns: AdapterColumns
) -> None:
    """Y += shrunk @ expand, projection by projection: only the blocks that are not zero."""
    linear = arena.linears[index]
    expand = arena.expand[index][layer][columns.rows(linear)]
    for j, part in enumerate(linear.slices):
        if part.module in columns.modules:
            block = slice(j * columns.rank, (j + 1) * columns.rank)
            y[:, part.start : part.stop].addmm_(
                shrunk[:, block], expand[block, part.start : part.stop]
            )
