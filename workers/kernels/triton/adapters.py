"""Products of a batch's rows with the arena rows of their own adapters, many adapters a launch.

Two kernels serve both directions. `contract` takes rows of features to rows of rank columns,
`expand` takes those back to features. Forward contracts with the shrink matrix and expands with
the expand matrices; backward does the opposite. `accumulate` sums the gradients of one adapter.

A batch is cut into tiles: up to `rows` rows of one run. Features may be cut into splits, whose
partial sums lie side by side until `expand` adds them up in order: no atomics, the same bits every
time; there, a run's middle is applied. Equals `reference.shrink_expand`.

Shape suffixes: T rows, W rank columns of a tile, S splits, F features.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from workers.kernels.segments import RUN_FIELDS, SMALLEST_TILE, Factor, RunTable
from workers.kernels.triton.accumulator import accumulator
from workers.kernels.triton.middles import joined

BLOCK_FEATURES = 64
BLOCK_OUTPUTS = 128
FEATURES_PER_SPLIT = 512
ENOUGH_PROGRAMS = 264  # two for each multiprocessor of a large card
MAX_SPLITS = 16
MANY_NUMBERS = 8192  # of a tile of rows, from which on it takes more warps
MOST_NUMBERS = 1 << 16  # of a tile of a matrix, that shared memory holds
RUN = tl.constexpr(RUN_FIELDS)


def contract(x_TF: Tensor, factor: Factor, batch: RunTable) -> Tensor:
    """X @ rows.T for each run's own rows of the factor: (S, T, W), to be summed over S.

    Rows without a run are not written, columns of projections that an adapter lacks are zero.
    """
    width = factor.stacked * batch.max_rank
    programs = len(batch.tiles) * len(factor)
    splits = min(
        MAX_SPLITS,
        max(1, ENOUGH_PROGRAMS // programs),
        triton.cdiv(factor.widest, FEATURES_PER_SPLIT),
    )
    splits = 1 << (splits.bit_length() - 1)  # few different kernels to compile
    wide = torch.promote_types(x_TF.dtype, torch.float32)
    result = torch.empty(splits, len(x_TF), width * len(factor), dtype=wide, device=x_TF.device)
    _contract[(len(batch.tiles), len(factor), splits)](
        x_TF,
        factor.addresses,
        factor.bounds,
        result,
        batch.runs,
        batch.tiles,
        x_TF.stride(0),
        result.stride(0),
        result.stride(1),
        factor.place.first_bit,
        splits,
        STACKED=factor.stacked,
        IS_ALIGNED=factor.is_aligned,
        ROWS=batch.tile_rows,
        WIDE=accumulator(x_TF.dtype),
        **_tile(width, BLOCK_FEATURES, MOST_NUMBERS // 2, batch.tile_rows),
    )
    return result


def expand(shrunk_STW: Tensor, factor: Factor, batch: RunTable, y_TF: Tensor) -> None:
    """Y += shrunk @ middle.T @ rows for each run's own middles and rows of the factor; in place.

    The shrink matrix, where projections lie together, takes no middles: `middles.join`.
    """
    width = factor.stacked * batch.max_rank
    sizes = _tile(width, BLOCK_OUTPUTS, MOST_NUMBERS, batch.tile_rows)
    _expand[(len(batch.tiles), triton.cdiv(factor.widest, sizes["BLOCK_F"]), len(factor))](
        shrunk_STW,
        factor.addresses,
        factor.bounds,
        y_TF,
        batch.runs,
        batch.tiles,
        shrunk_STW.stride(0),
        shrunk_STW.stride(1),
        y_TF.stride(0),
        factor.place.first_bit,
        factor.place.first_middle,
        HAS_MIDDLES=batch.has_middles,
        STACKED=factor.stacked,
        IS_ALIGNED=factor.is_aligned,
        SPLITS=len(shrunk_STW),
        ROWS=batch.tile_rows,
        WIDE=accumulator(y_TF.dtype),
        **sizes,
    )


def _tile(width: int, features: int, most: int, rows: int) -> dict[str, int]:
    """Rank columns and features of a tile, and the warps that have registers for its rows."""
    columns = max(SMALLEST_TILE, triton.next_power_of_2(width))
    return {
        "BLOCK_W": columns,
        "BLOCK_F": min(features, most // columns),
        "num_warps": 8 if rows * columns >= MANY_NUMBERS else 4,
    }


def accumulate(total_CF: Tensor, left_TW: Tensor, column: int, right_TF: Tensor) -> None:
    """Total += left[:, column : column + C].T @ right, in the wide dtype of the total."""
    columns, features = total_CF.shape
    block_c = max(SMALLEST_TILE, triton.next_power_of_2(min(columns, 64)))
    _accumulate[(triton.cdiv(features, BLOCK_FEATURES), triton.cdiv(columns, block_c))](
        total_CF,
        left_TW,
        right_TF,
        total_CF.stride(0),
        left_TW.stride(0),
        right_TF.stride(0),
        column,
        len(right_TF),
        columns,
        features,
        BLOCK_T=64,
        BLOCK_C=block_c,
        BLOCK_F=BLOCK_FEATURES,
        WIDE=accumulator(right_TF.dtype),
    )


@triton.jit(
    do_not_specialize=["split_stride", "first_bit", "splits"],
    do_not_specialize_on_alignment=["runs"],
)
def _contract(
    x,
    addresses,
    bounds,
    result,
    runs,
    tiles,
    x_stride,
    split_stride,
    row_stride,
    first_bit,
    splits,
    STACKED: tl.constexpr,
    IS_ALIGNED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_F: tl.constexpr,
    WIDE: tl.constexpr,
):
    tile, part, split = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    run = runs + RUN * tl.load(tiles + 2 * tile)
    first_row = tl.load(tiles + 2 * tile + 1)
    row = first_row + tl.arange(0, ROWS)
    stop, offset, rank = tl.load(run + 1), tl.load(run + 2), tl.load(run + 3)
    is_row = row < stop
    width = STACKED * rank
    column = tl.arange(0, BLOCK_W)
    begin = tl.load(bounds + part)
    features = tl.load(bounds + part + 1) - begin
    bits = ((1 << STACKED) - 1) << (first_bit + part)
    is_target = (tl.load(run + 4) & bits) != 0
    share = tl.cdiv(tl.cdiv(features, splits), BLOCK_F) * BLOCK_F
    low = split.to(tl.int32) * share
    high = tl.where(is_target & (first_row < stop), tl.minimum(low + share, features), low)
    matrix = tl.load(addresses + part).to(tl.pointer_type(x.dtype.element_ty))
    if IS_ALIGNED:
        features, begin = tl.multiple_of(features, 16), tl.multiple_of(begin, 16)
        matrix = tl.multiple_of(matrix, 16)
    matrix += STACKED * offset * features
    sums = tl.zeros((ROWS, BLOCK_W), WIDE)
    for first in range(low, high, BLOCK_F):
        feature = first + tl.arange(0, BLOCK_F)
        is_feature = feature < features
        left = tl.load(
            x + row[:, None] * x_stride + begin + feature[None, :],
            mask=is_row[:, None] & is_feature[None, :],
            other=0.0,
        )
        right = tl.load(
            matrix + column[:, None].to(tl.int64) * features + feature[None, :],
            mask=(column < width)[:, None] & is_feature[None, :],
            other=0.0,
        )
        sums = tl.dot(left, tl.trans(right), sums, "ieee", out_dtype=WIDE)
    target = result + split * split_stride + row[:, None] * row_stride
    target = target + part * width + column[None, :]
    tl.store(target, sums, mask=is_row[:, None] & (column < width)[None, :])


@triton.jit(
    do_not_specialize=["split_stride", "first_bit", "first_middle"],
    do_not_specialize_on_alignment=["runs"],
)
def _expand(
    shrunk,
    addresses,
    bounds,
    y,
    runs,
    tiles,
    split_stride,
    row_stride,
    y_stride,
    first_bit,
    first_middle,
    HAS_MIDDLES: tl.constexpr,
    STACKED: tl.constexpr,
    IS_ALIGNED: tl.constexpr,
    SPLITS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_F: tl.constexpr,
    WIDE: tl.constexpr,
):
    tile, part = tl.program_id(0), tl.program_id(2)
    run = runs + RUN * tl.load(tiles + 2 * tile)
    first_row = tl.load(tiles + 2 * tile + 1)
    stop, offset, rank = tl.load(run + 1), tl.load(run + 2), tl.load(run + 3)
    begin = tl.load(bounds + part)
    features = tl.load(bounds + part + 1) - begin
    bits = ((1 << STACKED) - 1) << (first_bit + part)
    is_target = (tl.load(run + 4) & bits) != 0
    first_feature = tl.program_id(1) * BLOCK_F
    if is_target & (first_row < stop) & (first_feature < features):
        row = first_row + tl.arange(0, ROWS)
        is_row = row < stop
        feature = first_feature + tl.arange(0, BLOCK_F)
        is_feature = feature < features
        width = STACKED * rank
        column = tl.arange(0, BLOCK_W)
        is_column = column < width
        left = joined(
            shrunk + part * width,
            run,
            row,
            is_row,
            column,
            width,
            split_stride,
            row_stride,
            first_middle + part,
            False,
            HAS_MIDDLES,
            SPLITS,
            WIDE,
            y.dtype.element_ty,
        )
        matrix = tl.load(addresses + part).to(tl.pointer_type(y.dtype.element_ty))
        if IS_ALIGNED:
            features, begin = tl.multiple_of(features, 16), tl.multiple_of(begin, 16)
            matrix = tl.multiple_of(matrix, 16)
        matrix += STACKED * offset * features
        right = tl.load(
            matrix + column[:, None].to(tl.int64) * features + feature[None, :],
            mask=is_column[:, None] & is_feature[None, :],
            other=0.0,
        )
        sums = tl.zeros((ROWS, BLOCK_F), WIDE)
        sums = tl.dot(left.to(right.dtype), right, sums, "ieee", out_dtype=WIDE)
        target = y + row[:, None] * y_stride + begin + feature[None, :]
        inside = is_row[:, None] & is_feature[None, :]
        sums += tl.load(target, mask=inside, other=0.0).to(WIDE)
        tl.store(target, sums.to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows", "first_column"])
def _accumulate(
    total,
    left,
    right,
    total_stride,
    left_stride,
    right_stride,
    first_column,
    rows,
    columns,
    features,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_F: tl.constexpr,
    WIDE: tl.constexpr,
):
    feature = tl.program_id(0) * BLOCK_F + tl.arange(0, BLOCK_F)
    column = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    is_feature, is_column = feature < features, column < columns
    sums = tl.zeros((BLOCK_C, BLOCK_F), WIDE)
    for first in range(0, rows, BLOCK_T):
        row = (first + tl.arange(0, BLOCK_T)).to(tl.int64)
        is_row = row < rows
        source = left + row[:, None] * left_stride + first_column + column[None, :]
        inside = is_row[:, None] & is_column[None, :]
        factor = tl.load(source, mask=inside, other=0.0)
        values = tl.load(
            right + row[:, None] * right_stride + feature[None, :],
            mask=is_row[:, None] & is_feature[None, :],
            other=0.0,
        )
        sums = tl.dot(tl.trans(factor.to(values.dtype)), values, sums, "ieee", out_dtype=WIDE)
    target = total + column[:, None].to(tl.int64) * total_stride + feature[None, :]
    inside = is_column[:, None] & is_feature[None, :]
    sums += tl.load(target, mask=inside, other=0.0)
    tl.store(target, sums, mask=inside)
