"""Triton's kernels under the names by which the engine calls those of any device."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from workers.kernels.segments import ALIGNMENT, Factor, LinearPlace, RunTable
from workers.kernels.span_tiles import HeadShape, KeyPlace, SpanTiles
from workers.kernels.triton import attention, attention_backward, gate, norm, weight_only
from workers.kernels.triton.adapters import accumulate, contract, expand
from workers.kernels.triton.attention_backward import AttentionSaved
from workers.kernels.triton.middles import join
from workers.kernels.triton.pages import store_heads
from workers.kernels.triton.qkv import place_heads, place_heads_backward
from workers.kernels.triton.sampling import sample
from workers.kernels.triton.snapkv import column_sums


@dataclass(frozen=True, slots=True)
class AdaptedLinear:
    """Arena matrices of one fused linear of one layer."""

    shrink: Factor
    expand: Factor


class GpuKernels:
    """The kernels of a CUDA device; the specification of each stands in its own file."""

    rms_norm = staticmethod(norm.rms_norm)
    rms_norm_backward = staticmethod(norm.rms_norm_backward)
    place_heads = staticmethod(place_heads)
    place_heads_backward = staticmethod(place_heads_backward)
    silu_mul = staticmethod(gate.silu_mul)
    silu_mul_backward = staticmethod(gate.silu_mul_backward)
    store_heads = staticmethod(store_heads)
    sample = staticmethod(sample)
    covers_codes = staticmethod(weight_only.covers)
    coded_linear = staticmethod(weight_only.coded_linear)
    column_sums = staticmethod(column_sums)

    def adapted_linear(
        self, place: LinearPlace, bounds: list[int], shrink: Tensor, expands: tuple[Tensor, ...]
    ) -> AdaptedLinear:
        """One fused linear's matrices; output columns bounds[j] to bounds[j + 1] are expand j's."""
        stacked, inputs = len(expands), shrink.shape[1]
        return AdaptedLinear(
            _factor((shrink,), [0, inputs], stacked, place),
            _factor(expands, bounds, 1, place),
        )

    def add_adapters(self, linear: AdaptedLinear, runs: RunTable, x: Tensor, y: Tensor) -> None:
        """Y += what each run's adapter adds; in place."""
        expand(contract(x, linear.shrink, runs), linear.expand, runs, y)

    def adapter_backward(
        self,
        linear: AdaptedLinear,
        run: RunTable,
        x: Tensor,
        grad: Tensor,
        term_grads: tuple[Tensor, ...],
        grad_x: Tensor | None,
    ) -> None:
        """Add to the gradients of one adapter's shrink and expand, and to that of the input.

        The run is all rows of `x`. What the adapter's method does not train has no gradients.
        """
        count = len(linear.expand)
        grad_shrink, *others = term_grads
        shrunk = contract(x, linear.shrink, run)
        grad_rows = contract(grad, linear.expand, run)
        middled, grad_shrunk = shrunk.sum(0), grad_rows.sum(0)
        if run.has_middles:
            _add_middles(others[count:], middled, grad_shrunk)
            middled = join(shrunk, linear.shrink, run, x.dtype, transposed=False)
            grad_shrunk = join(grad_rows, linear.shrink, run, x.dtype, transposed=True)
        if grad_x is not None:
            expand(grad_shrunk[None], linear.shrink, replace(run, has_middles=False), grad_x)
        if len(grad_shrink):
            accumulate(grad_shrink, grad_shrunk, 0, x)
        start = 0
        for j, total in enumerate(others[:count]):
            width = total.shape[1]
            if len(total):
                accumulate(total, middled, j * run.max_rank, grad[:, start : start + width])
            start += width

    def attend(
        self,
        q_THD: Tensor,
        place: KeyPlace,
        batch: SpanTiles,
        shape: HeadShape,
        out: Tensor,
        lse: Tensor,
    ) -> None:
        """Write the spans' rows of the output (T, H, D) and of the log-sum-exps (T, H)."""
        attention.attend(q_THD, place, batch, shape, out, lse)

    def attend_backward(
        self,
        saved: tuple[Tensor, Tensor, Tensor, Tensor],
        place: KeyPlace,
        batch: SpanTiles,
        key_tiles: Tensor,
        shape: HeadShape,
        grad_q: Tensor,
        grad_kv: tuple[Tensor, Tensor],
    ) -> None:
        """Write the gradient of the queries, add to those of keys and values.

        `saved` is q, out, lse and the gradient of out.
        """
        read = AttentionSaved(*saved)
        attention_backward.attend_backward(read, place, batch, key_tiles, shape, grad_q, grad_kv)


def _add_middles(totals: list[Tensor], shrunk_TW: Tensor, grad_TW: Tensor) -> None:
    """Add grad.T @ shrunk to each projection's total, or only the diagonal of it."""
    for j, total in enumerate(totals):
        rank, numbers = total.shape
        own = slice(j * rank, (j + 1) * rank)
        if numbers == 1:
            total += (grad_TW[:, own] * shrunk_TW[:, own]).sum(0)[:, None]
        else:
            accumulate(total, grad_TW, j * rank, shrunk_TW[:, own])


def _factor(
    matrices: tuple[Tensor, ...], bounds: list[int], stacked: int, place: LinearPlace
) -> Factor:
    device, addresses = matrices[0].device, [matrix.data_ptr() for matrix in matrices]
    return Factor(
        torch.tensor(addresses, device=device),
        torch.tensor(bounds, dtype=torch.int32, device=device),
        stacked,
        max(matrix.shape[1] for matrix in matrices),
        place,
        all(number % ALIGNMENT == 0 for number in (*addresses, *bounds)),
    )
