"""Partial sums of shrunk rows, added up and taken through the middles of their adapters.

`joined` does it on a tile that is in registers anyway, within the kernel that expands; `join` does
no more than that, for gradients.

Shape suffixes: T rows, W rank columns of a tile, S splits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from workers.kernels.segments import RUN_FIELDS, SMALLEST_TILE, Factor, RunTable
from workers.kernels.triton.accumulator import accumulator

RUN = tl.constexpr(RUN_FIELDS)
MIDDLE_COLUMNS = tl.constexpr(16)  # of a middle that are in registers at once


def join(
    shrunk_STW: Tensor, factor: Factor, batch: RunTable, dtype: torch.dtype, *, transposed: bool
) -> Tensor:
    """Partial sums added up, times each run's own middle.T, or times its middle: (T, W).

    Args:
        shrunk_STW: rows of rank columns, in splits.
        factor: the shrink matrix, whose rows are the columns of all projections.
        batch: runs that all have a middle.
        dtype: of the arena, and of the result.
        transposed: whether the middle is taken as it lies, as gradients go back through it.
    """
    result = torch.empty(shrunk_STW.shape[1:], dtype=dtype, device=shrunk_STW.device)
    _join_middles[(len(batch.tiles), factor.stacked)](
        shrunk_STW,
        result,
        batch.runs,
        batch.tiles,
        shrunk_STW.stride(0),
        shrunk_STW.stride(1),
        factor.place.first_middle,
        TRANSPOSED=transposed,
        SPLITS=len(shrunk_STW),
        ROWS=batch.tile_rows,
        BLOCK_W=max(SMALLEST_TILE, triton.next_power_of_2(batch.max_rank)),
        WIDE=accumulator(dtype),
    )
    return result


@triton.jit
def _summed(shrunk, row, is_row, column, width, split_stride, row_stride, SPLITS: tl.constexpr):
    """Some columns of the partial sums, added up in order."""
    source = shrunk + row[:, None] * row_stride + column[None, :]
    inside = is_row[:, None] & (column < width)[None, :]
    sums = tl.load(source, mask=inside, other=0.0)
    for split in range(1, SPLITS):
        sums += tl.load(source + split * split_stride, mask=inside, other=0.0)
    return sums


@triton.jit
def joined(
    shrunk,
    run,
    row,
    is_row,
    column,
    width,
    split_stride,
    row_stride,
    middle_place,
    TRANSPOSED: tl.constexpr,
    HAS_MIDDLES: tl.constexpr,
    SPLITS: tl.constexpr,
    WIDE: tl.constexpr,
    STORED: tl.constexpr,
):
    """Shrunk columns, through the run's middle at a place if they are those of one projection."""
    sums = _summed(shrunk, row, is_row, column, width, split_stride, row_stride, SPLITS)
    if HAS_MIDDLES:
        numbers = tl.load(run + 5)  # in a row of a middle
        middle = tl.load(run + 6).to(tl.pointer_type(STORED)) + middle_place * width * numbers
        if numbers == 1:
            diagonal = tl.load(middle + column, mask=column < width, other=0.0)
            sums = sums * diagonal.to(WIDE)[None, :]
        elif numbers > 1:
            sums = tl.zeros_like(sums)
            for first in range(0, width, MIDDLE_COLUMNS):
                inner = first + tl.arange(0, MIDDLE_COLUMNS)
                left = _summed(shrunk, row, is_row, inner, width, split_stride, row_stride, SPLITS)
                if TRANSPOSED:
                    source = middle + inner[None, :] * width + column[:, None]
                else:
                    source = middle + column[:, None] * width + inner[None, :]
                is_inside = (column < width)[:, None] & (inner < width)[None, :]
                block = tl.load(source, mask=is_inside, other=0.0)
                sums = tl.dot(left.to(STORED), tl.trans(block), sums, "ieee", out_dtype=WIDE)
    return sums


@triton.jit(do_not_specialize=["split_stride", "first_middle"])
def _join_middles(
    shrunk,
    result,
    runs,
    tiles,
    split_stride,
    row_stride,
    first_middle,
    TRANSPOSED: tl.constexpr,
    SPLITS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_W: tl.constexpr,
    WIDE: tl.constexpr,
):
    tile, part = tl.program_id(0), tl.program_id(1)
    run = runs + RUN * tl.load(tiles + 2 * tile)
    row = tl.load(tiles + 2 * tile + 1) + tl.arange(0, ROWS)
    is_row = row < tl.load(run + 1)
    column, rank = tl.arange(0, BLOCK_W), tl.load(run + 3)
    result_tile = joined(
        shrunk + part * rank,
        run,
        row,
        is_row,
        column,
        rank,
        split_stride,
        row_stride,
        first_middle + part,
        TRANSPOSED,
        True,
        SPLITS,
        WIDE,
        result.dtype.element_ty,
    )
    target = result + row[:, None] * row_stride + part * rank + column[None, :]
    inside = is_row[:, None] & (column < rank)[None, :]
    tl.store(target, result_tile.to(result.dtype.element_ty), mask=inside)
