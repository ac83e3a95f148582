"""What kernels over the rows of many adapters read: runs, tiles of runs, matrices of the arena."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

SMALLEST_TILE = 16  # a side of Triton's matrix product
LARGEST_TILE = 64
ALIGNMENT = 16  # bytes of an address, elements of a row: what wide loads need


@dataclass(frozen=True, slots=True)
class Factor:
    """Matrices of the arena that one product of one linear reads.

    Attributes:
        addresses: (n,) int64, of matrices whose rows are rank columns of `num_features`.
        bounds: (n + 1,) int32: features [bounds[j], bounds[j + 1]) go with matrix j.
        stacked: projections whose rows lie together in one matrix: its adapter's rows are
            [stacked * offset, stacked * (offset + rank)).
        widest: most features of a matrix.
        first_bit: the targets bit of the linear's first projection.
        is_aligned: whether every matrix, row and bound is a multiple of ALIGNMENT.
    """

    addresses: Tensor
    bounds: Tensor
    stacked: int
    widest: int
    first_bit: int
    is_aligned: bool

    def __len__(self) -> int:
        return len(self.addresses)


@dataclass(frozen=True, slots=True)
class RunTable:
    """Runs of a batch as kernels read them.

    Attributes:
        runs: (n, 5) int64: start, stop, column, rank, targets.
        tiles: (m, 2) int64: run, first row; a tile past its run's end is empty.
        tile_rows: most rows of a tile.
        max_rank: largest rank of a run.
    """

    runs: Tensor
    tiles: Tensor
    tile_rows: int
    max_rank: int


def tile_rows(lengths: list[int]) -> int:
    """Rows of a tile that suit runs of these lengths."""
    return LARGEST_TILE if sum(lengths) >= 32 * len(lengths) else SMALLEST_TILE


def tile_places(starts: list[int], stops: list[int], rows: int) -> list[tuple[int, int]]:
    """(run, first row) of every tile."""
    return [
        (run, first)
        for run, (start, stop) in enumerate(zip(starts, stops, strict=True))
        for first in range(start, stop, rows)
    ]
