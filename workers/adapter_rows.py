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
        foreign: (rows, hull columns), True where a row meets another adapter's column.
        places: by projections per linear, for each projection: where in a row's n * columns
            shrunk numbers those of the hull's columns lie; any place for columns of no run.
    """

    start: int
    stop: int
    first_column: int
    last_column: int
    runs: list[AdapterRun]
    foreign: Tensor
    places: dict[int, tuple[Tensor, ...]] = field(default_factory=dict)

    def places_of(self, num_slices: int) -> tuple[Tensor, ...]:
        """`places` for linears of `num_slices` projections, made on first use."""
        if num_slices not in self.places:
            found = torch.zeros(num_slices, self.last_column - self.first_column, dtype=torch.int64)
            for run in self.runs:
                first, rank = run.columns.offset - self.first_column, run.columns.rank
                blocks = torch.arange(rank * num_slices).view(num_slices, rank)
                found[:, first : first + rank] = first * num_slices + blocks
            self.places[num_slices] = tuple(found.to(self.foreign.device))
        return self.places[num_slices]


class AdapterRows:
    """The runs of a batch, sorted into those that go alone and those that share GEMMs."""

    def __init__(self, runs: list[AdapterRun], device: torch.device) -> None:
        short = [run for run in runs if run.stop - run.start < LONG_RUN_ROWS]
        self.shared = share(short, device)
        shared = set() if self.shared is None else {id(run) for run in self.shared.runs}
        self.alone = [run for run in runs if id(run) not in shared]

    def add(self, arena: AdapterArena, layer: int, index: int, x: Tensor, y: Tensor) -> None:
        """Y += what each row's adapter adds; in place."""
        linear, shrink = arena.linears[index], arena.shrink[index][layer]
        for run in self.alone:
            if run.columns.targets(linear):
                rows = slice(run.start, run.stop)
                shrunk = x[rows] @ shrink[run.columns.rows(linear)].T
                expand_into(y[rows], shrunk, arena, layer, index, run.columns)
        if self.shared is not None:
            add_shared(self.shared, arena, layer, index, x, y)


def add_shared(
    shared: SharedRuns, arena: AdapterArena, layer: int, index: int, x: Tensor, y: Tensor
) -> None:
    """All shared runs at once: the hull of their columns, foreign activations set to zero."""
    linear, rows = arena.linears[index], slice(shared.start, shared.stop)
    n, hull = len(linear.slices), slice(shared.first_column, shared.last_column)
    shrunk = x[rows] @ arena.shrink[index][layer][n * hull.start : n * hull.stop].T
    parts = zip(linear.slices, arena.expand[index][layer], shared.places_of(n), strict=True)
    for part, expand, places in parts:
        own = shrunk[:, places].masked_fill_(shared.foreign, 0)
        y[rows, part.start : part.stop].addmm_(own, expand[hull])


def share(runs: list[AdapterRun], device: torch.device) -> SharedRuns | None:
    """Join adjacent short runs, unless there is one only or their hull is mostly foreign."""
    if len(runs) < 2:
        return None
    first = min(run.columns.offset for run in runs)
    last = max(run.columns.offset + run.columns.rank for run in runs)
    used = sum({run.columns.offset: run.columns.rank for run in runs}.values())
    if last - first > MAX_HULL_FACTOR * used:
        return None
    start, stop = min(run.start for run in runs), max(run.stop for run in runs)
    foreign = torch.ones(stop - start, last - first, dtype=torch.bool)
    for run in runs:
        own = slice(run.columns.offset - first, run.columns.offset - first + run.columns.rank)
        foreign[run.start - start : run.stop - start, own] = False
    return SharedRuns(start, stop, first, last, runs, foreign.to(device))


def expand_into(
    y: Tensor, shrunk: Tensor, arena: AdapterArena, layer: int, index: int, columns: AdapterColumns
) -> None:
    """Add shrunk @ expand to y in place, projection by projection, where the adapter has one."""
    parts = zip(arena.linears[index].slices, arena.expand[index][layer], strict=True)
    for j, (part, expand) in enumerate(parts):
        if part.module in columns.modules:
            block = slice(j * columns.rank, (j + 1) * columns.rank)
            y[:, part.start : part.stop].addmm_(shrunk[:, block], expand[columns.own])
