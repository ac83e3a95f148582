"""Few rows times a matrix that lies in codes of few bits: x @ W.T + bias, at the cost of its bytes.

Codes are widened in registers, to numbers that every dtype holds exactly; scales are multiplied
into float32 sums, of a row at its end and of a group at the group's. So weights are not rounded on
the way. Where outputs alone would not fill a card, inputs are cut into splits, whose partial sums
are added in order: the same bits every time. Only the matrix decides how it is cut.

Equals a product with `QuantizedWeight.dequantize`. Shape suffixes: T rows, I inputs, O outputs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from workers.kernels.triton.accumulator import accumulator
from workers.kernels.weight_codes import WeightCodes

FEW_ROWS = 64
SMALLEST_ROWS, SMALLEST_GROUP = 16, 32  # the least that tensor cores take, two codes to a byte
BLOCK_OUTPUTS = 64
BLOCK_INPUTS = 128
INPUTS_PER_SPLIT = 512
ENOUGH_PROGRAMS = 528  # four for each multiprocessor of a large card
MAX_SPLITS = 16
STAGES = 4  # blocks of codes that are on their way at once
BLOCK_SUM = 1024


def covers(codes: WeightCodes, rows: int) -> bool:
    """Whether `coded_linear` takes so many rows and such groups."""
    return rows <= FEW_ROWS and (codes.zeros_OG is None or codes.group >= SMALLEST_GROUP)


def coded_linear(
    x_TI: Tensor, matrix: WeightCodes, bias_O: Tensor | None, into_TO: Tensor | None
) -> Tensor:
    """X @ W.T + bias, (T, O); added to `into`, in place, where given."""
    rows, outputs, inputs = len(x_TI), len(matrix.codes), matrix.inputs
    x_TI, splits = x_TI.contiguous(), splits_of(outputs, inputs)
    y = x_TI.new_empty(rows, outputs) if into_TO is None else into_TO
    wide = torch.promote_types(x_TI.dtype, torch.float32)
    sums = y if splits == 1 else x_TI.new_empty(splits, rows, outputs, dtype=wide)
    ends = {"HAS_BIAS": bias_O is not None, "ADDS": into_TO is not None}
    _multiply_codes[(triton.cdiv(outputs, BLOCK_OUTPUTS), splits)](
        x_TI,
        matrix.codes,
        matrix.scales_OG,
        matrix.scales_OG if matrix.zeros_OG is None else matrix.zeros_OG,
        y if bias_O is None else bias_O,
        sums,
        rows,
        outputs,
        inputs,
        sums.stride(-2),
        SPLITS=splits,
        IS_PAIRED=matrix.codes_per_byte == 2,
        ROWS=max(SMALLEST_ROWS, triton.next_power_of_2(rows)),
        BLOCK_O=BLOCK_OUTPUTS,
        BLOCK_I=BLOCK_INPUTS if matrix.zeros_OG is None else matrix.group,
        WIDE=accumulator(x_TI.dtype),
        num_stages=STAGES,
        **ends,
    )
    if splits > 1:
        _sum_splits[(triton.cdiv(outputs, BLOCK_SUM), rows)](
            sums,
            y if bias_O is None else bias_O,
            y,
            rows,
            outputs,
            y.stride(0),
            SPLITS=splits,
            BLOCK=BLOCK_SUM,
            WIDE=accumulator(x_TI.dtype),
            **ends,
        )
    return y


def splits_of(outputs: int, inputs: int) -> int:
    """In how many parts the inputs of a matrix are summed: a power of two."""
    wanted = ENOUGH_PROGRAMS // triton.cdiv(outputs, BLOCK_OUTPUTS)
    splits: int = max(1, min(MAX_SPLITS, wanted, inputs // INPUTS_PER_SPLIT))
    return 1 << (splits.bit_length() - 1)


@triton.jit(do_not_specialize=["rows"])
def _multiply_codes(
    x,
    codes,
    scales,
    zeros,
    bias,
    sums,
    rows,
    outputs,
    inputs,
    row_stride,
    SPLITS: tl.constexpr,
    IS_PAIRED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ADDS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
    WIDE: tl.constexpr,
):
    split = tl.program_id(1)
    output = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    row = tl.arange(0, ROWS)
    is_output, is_row = output < outputs, row < rows
    share = tl.cdiv(tl.cdiv(inputs, SPLITS), BLOCK_I) * BLOCK_I
    low = split * share
    total = tl.zeros((BLOCK_O, ROWS), WIDE)
    for first in range(low, tl.minimum(low + share, inputs), BLOCK_I):
        place = first + tl.arange(0, BLOCK_I)
        right = tl.load(
            x + row[:, None] * inputs + place[None, :],
            mask=is_row[:, None] & (place < inputs)[None, :],
            other=0.0,
        )
        if IS_PAIRED:
            group = output * (inputs // BLOCK_I) + first // BLOCK_I
            scale = tl.load(scales + group, mask=is_output, other=0.0).to(WIDE)
            zero = tl.load(zeros + group, mask=is_output, other=0).to(tl.int8)
            byte = first // 2 + tl.arange(0, BLOCK_I // 2)
            pairs = tl.load(
                codes + output[:, None].to(tl.int64) * (inputs // 2) + byte[None, :],
                mask=is_output[:, None] & (byte < inputs // 2)[None, :],
                other=0,
            )
            below = ((pairs & 15).to(tl.int8) - zero[:, None]).to(right.dtype)
            above = ((pairs >> 4).to(tl.int8) - zero[:, None]).to(right.dtype)
            even, odd = tl.split(tl.reshape(right, (ROWS, BLOCK_I // 2, 2)))
            part = tl.zeros((BLOCK_O, ROWS), WIDE)
            part = tl.dot(below, tl.trans(even), part, "ieee", out_dtype=WIDE)
            part = tl.dot(above, tl.trans(odd), part, "ieee", out_dtype=WIDE)
            total += part * scale[:, None]
        else:
            left = tl.load(
                codes + output[:, None].to(tl.int64) * inputs + place[None, :],
                mask=is_output[:, None] & (place < inputs)[None, :],
                other=0.0,
            )
            left = _widened(left, right.dtype)
            total = tl.dot(left, tl.trans(right), total, "ieee", out_dtype=WIDE)
    if not IS_PAIRED:
        total *= tl.load(scales + output, mask=is_output, other=0.0).to(WIDE)[:, None]
    inside = is_output[:, None] & is_row[None, :]
    target = sums + (split * rows + row)[None, :].to(tl.int64) * row_stride + output[:, None]
    if SPLITS == 1:
        total = _ended(total, bias + output[:, None] + 0 * row, target, inside, HAS_BIAS, ADDS)
    tl.store(target, total.to(sums.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows"])
def _sum_splits(
    sums,
    bias,
    y,
    rows,
    outputs,
    row_stride,
    SPLITS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ADDS: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
):
    row = tl.program_id(1).to(tl.int64)
    output = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = output < outputs
    total = tl.zeros((BLOCK,), WIDE)
    for split in tl.static_range(SPLITS):
        total += tl.load(sums + (split * rows + row) * outputs + output, mask=inside, other=0.0)
    target = y + row * row_stride + output
    total = _ended(total, bias + output, target, inside, HAS_BIAS, ADDS)
    tl.store(target, total.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _widened(codes, dtype: tl.constexpr):
    """Codes as numbers; floats of 8 bits by way of 32, the one way that the interpreter knows."""
    if codes.dtype == tl.float8e4nv:
        codes = codes.to(tl.float32)
    return codes.to(dtype)


@triton.jit
def _ended(total, bias, target, inside, HAS_BIAS: tl.constexpr, ADDS: tl.constexpr):
    """The sum with its bias and what is there already."""
    if HAS_BIAS:
        total += tl.load(bias, mask=inside, other=0.0).to(total.dtype)
    if ADDS:
        total += tl.load(target, mask=inside, other=0.0).to(total.dtype)
    return total
