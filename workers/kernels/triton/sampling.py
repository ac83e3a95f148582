"""The next token of every row: the likeliest, or the one that a uniform number picks.

One program a row walks the vocabulary three times: the largest logit, the sum of weights, and the
first token at which the running sum passes the mark. Equals `reference.sample` up to the order in
which weights are summed.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from workers.kernels.triton.accumulator import accumulator

BLOCK = 2048


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
    tokens = torch.empty(rows, dtype=torch.int64, device=logits_RV.device)
    finite = torch.empty(rows, dtype=torch.int8, device=logits_RV.device)
    _sample[(rows,)](
        logits_RV,
        temperatures_R,
        uniforms_R,
        tokens,
        finite,
        logits_RV.stride(0),
        vocabulary,
        WIDE=accumulator(logits_RV.dtype),
        BLOCK=BLOCK,
        num_warps=8,
    )
    return tokens, finite.bool()


@triton.jit
def _sample(
    logits,
    temperatures,
    uniforms,
    tokens,
    finite,
    stride,
    vocabulary,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    place = tl.arange(0, BLOCK)
    lowest = float("-inf")
    peak = tl.full((), lowest, WIDE)
    best = tl.zeros((), tl.int32)
    bad = tl.zeros((), tl.int32)
    for start in range(0, vocabulary, BLOCK):
        inside = start + place < vocabulary
        values = tl.load(logits + start + place, mask=inside, other=0.0).to(WIDE)
        is_bad = (values != values) | (tl.abs(values) == float("inf"))
        bad += tl.sum(is_bad.to(tl.int32), 0)
        values = tl.where(inside & ~is_bad, values, lowest)
        highest = tl.max(values, 0)
        if highest > peak:
            best = start + tl.argmax(values, 0)
            peak = highest
    tl.store(finite + row, (bad == 0).to(tl.int8))
    temperature = tl.load(temperatures + row).to(WIDE)
    if (temperature > 0) & (bad == 0):
        total = tl.zeros((), WIDE)
        for start in range(0, vocabulary, BLOCK):
            inside = start + place < vocabulary
            values = tl.load(logits + start + place, mask=inside, other=lowest).to(WIDE)
            total += tl.sum(tl.exp((values - peak) / temperature), 0)
        mark = tl.load(uniforms + row).to(WIDE) * total
        before = tl.zeros((), WIDE)
        num_below = tl.zeros((), tl.int32)
        for start in range(0, vocabulary, BLOCK):
            inside = start + place < vocabulary
            values = tl.load(logits + start + place, mask=inside, other=lowest).to(WIDE)
            weights = tl.exp((values - peak) / temperature)
            sums = before + tl.cumsum(weights, 0)
            num_below += tl.sum(((sums <= mark) & inside).to(tl.int32), 0)
            before += tl.sum(weights, 0)
        if num_below < vocabulary:  # else rounding took the mark past the last sum
            best = num_below
    tl.store(tokens + row, best.to(tl.int64))
