"""The next token of every row: the likeliest, or the one that a uniform number picks.

One program surveys a part of a row's vocabulary: its largest logit, and the sum of its weights
beside that. Another then finds the part in which the running sum passes the mark, and walks it
alone, so that a few rows fill a card and logits are read once. Equals `reference.sample` up to the
order in which weights are summed.

Shape suffixes: R rows, V vocabulary, N parts of it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from workers.kernels.triton.accumulator import accumulator

PART = 4096


def sample(logits_RV: Tensor, temperatures_R: Tensor, uniforms_R: Tensor) -> tuple[Tensor, Tensor]:
    """Draw one token for each row.

    Shapes:
        logits_RV: rows contiguous.
        temperatures_R: 0 takes the likeliest token, the first of equals.
        uniforms_R: numbers in [0, 1).

    Returns:
        Token ids (R,) int64, and whether all of a row's logits are finite (R,) bool.
    """
    rows, vocabulary = logits_RV.shape
    parts, device = triton.cdiv(vocabulary, PART), logits_RV.device
    wide = torch.promote_types(logits_RV.dtype, torch.float32)
    peaks, sums = torch.empty(2, rows, parts, dtype=wide, device=device)
    likeliest = torch.empty(rows, parts, dtype=torch.int32, device=device)
    tokens = torch.empty(rows, dtype=torch.int64, device=device)
    finite = torch.empty(rows, dtype=torch.bool, device=device)
    row = (logits_RV, temperatures_R, logits_RV.stride(0), vocabulary)
    constants = {"PART": PART, "WIDE": accumulator(logits_RV.dtype), "num_warps": 8}
    _sample_part[(rows, parts)](*row, peaks, sums, likeliest, **constants)
    _sample_token[(rows,)](
        *row,
        peaks,
        sums,
        likeliest,
        uniforms_R,
        tokens,
        finite,
        parts,
        BLOCK_N=triton.next_power_of_2(parts),
        **constants,
    )
    return tokens, finite


@triton.jit(do_not_specialize_on_alignment=["sums"])
def _sample_part(
    logits,
    temperatures,
    stride,
    vocabulary,
    peaks,
    sums,
    likeliest,
    PART: tl.constexpr,
    WIDE: tl.constexpr,
):
    """A part's largest logit, where it is, and the sum of its weights; NaN if one is not finite."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    place = part * PART + tl.arange(0, PART)
    inside = place < vocabulary
    values = tl.load(logits + row * stride + place, mask=inside, other=0.0).to(WIDE)
    is_bad = (values != values) | (tl.abs(values) == float("inf"))
    values = tl.where(inside & ~is_bad, values, float("-inf"))
    peak = tl.max(values, 0)
    temperature = tl.load(temperatures + row).to(WIDE)
    weights = tl.exp((values - peak) / tl.where(temperature > 0, temperature, 1.0))
    total = tl.where(tl.sum(is_bad.to(tl.int32), 0) > 0, float("nan"), tl.sum(weights, 0))
    target = row * tl.num_programs(1) + part
    tl.store(peaks + target, peak)
    tl.store(sums + target, total)
    tl.store(likeliest + target, part * PART + tl.argmax(values, 0))


@triton.jit(do_not_specialize_on_alignment=["sums", "uniforms"])
def _sample_token(
    logits,
    temperatures,
    stride,
    vocabulary,
    peaks,
    sums,
    likeliest,
    uniforms,
    tokens,
    finite,
    parts,
    PART: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WIDE: tl.constexpr,
):
    row, part = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK_N)
    inside = part < parts
    highs = tl.load(peaks + row * parts + part, mask=inside, other=float("-inf"))
    totals = tl.load(sums + row * parts + part, mask=inside, other=0.0)
    num_bad = tl.sum((totals != totals).to(tl.int32), 0)
    tl.store(finite + row, num_bad == 0)
    peak = tl.max(highs, 0)
    best = tl.load(likeliest + row * parts + tl.argmax(highs, 0))
    temperature = tl.load(temperatures + row).to(WIDE)
    if (temperature > 0) & (num_bad == 0):
        totals *= tl.exp((highs - peak) / temperature)
        mark = tl.load(uniforms + row).to(WIDE) * tl.sum(totals, 0)
        ends = tl.cumsum(totals, 0)
        chosen = tl.sum((inside & (ends <= mark)).to(tl.int32), 0)
        if chosen < parts:  # else rounding took the mark past the last sum
            before = tl.sum(tl.where(part < chosen, totals, 0.0), 0)
            place = chosen * PART + tl.arange(0, PART)
            is_token = place < vocabulary
            values = tl.load(logits + row * stride + place, mask=is_token, other=float("-inf"))
            running = tl.cumsum(tl.exp((values.to(WIDE) - peak) / temperature), 0)
            is_below = is_token & (running <= tl.maximum(mark - before, 0.0))
            num_below = tl.sum(is_below.to(tl.int32), 0)
            best = tl.load(likeliest + row * parts + chosen)
            if num_below < tl.minimum(PART, vocabulary - chosen * PART):
                best = chosen * PART + num_below
    tl.store(tokens + row, best.to(tl.int64))
