"""What kernels over the rows of many adapters read: runs, tiles of runs, matrices of the arena.

A run says as numbers what stands between its adapter's shrink and expand, so that one launch serves
adapters of every kind: how many numbers a row of a projection's middle holds (none: the identity,
one: a diagonal, the rank: a matrix), and where the middles of all projections begin.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

SMALLEST_TILE = 16  # a side of Triton's matrix product
LARGEST_TILE = 64
LARGEST_TILE_RANK = 128  # up to which a multiprocessor has room for the largest tile
RUN_FIELDS = 7
ALIGNMENT = 16  # bytes of an address, elements of a row: what wide loads need


@dataclass(frozen=True, slots=True)
class LinearPlace:
    """Where a fused linear finds what a run says of its projections.

    Attributes:
        first_bit: of the run's targets, that of the first projection.
        first_middle: middles of other projections, of all layers, that come before its own.
    """

    first_bit: int
    first_middle: int


@dataclass(frozen=True, slots=True)
class Factor:
    """Matrices of the arena that one product of one linear reads.

    Attributes:
        addresses: (n,) int64, of matrices whose rows are rank columns of `num_features`.
        bounds: (n + 1,) int32: features [bounds[j], bounds[j + 1]) go with matrix j.
        stacked: projections whose rows lie together in one matrix: its adapter's rows are
            [stacked * offset, stacked * (offset + rank)).
        widest: most features of a matrix.
        place: what kernels read of a run for this linear.
        is_aligned: whether every matrix, row and bound is a multiple of ALIGNMENT.
    """

    addresses: Tensor
    bounds: Tensor
    stacked: int
    widest: int
    place: LinearPlace
    is_aligned: bool

    def __len__(self) -> int:
        return len(self.addresses)


@dataclass(frozen=True, slots=True)
class RunTable:
    """Runs of a batch as kernels read them.

    Attributes:
        runs: (n, RUN_FIELDS) int64: start, stop, column, rank, targets, numbers in a row of its
            middles, their address.
        tiles: (m, 2) int64: run, first row; a tile past its run's end is empty.
        tile_rows: most rows of a tile.
        max_rank: largest rank of a run.
        has_middles: whether any run may have some; without, they are not looked for.
    """

    runs: Tensor
    tiles: Tensor
    tile_rows: int
    max_rank: int
    has_middles: bool


def tile_rows(lengths: list[int], rank: int) -> int:
    """Rows of a tile that suit runs of these lengths, and of ranks up to this one."""
    is_long = sum(lengths) >= 32 * len(lengths)
    return LARGEST_TILE if is_long and rank <= LARGEST_TILE_RANK else SMALLEST_TILE


def tile_places(starts: list[int], stops: list[int], rows: int) -> list[tuple[int, int]]:
    """(run, first row) of every tile."""
    return [
        (run, first)
        for run, (start, stop) in enumerate(zip(starts, stops, strict=True))
        for first in range(start, stop, rows)
    ]
