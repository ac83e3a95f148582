"""Triton's kernels under the names by which the engine calls those of any device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workers.kernels.segments import ALIGNMENT, Factor, RunTable
from workers.kernels.span_tiles import HeadShape, KeyPlace, SpanTiles
from workers.kernels.triton import attention, attention_backward, gate, norm
from workers.kernels.triton.adapters import accumulate, contract, expand
from workers.kernels.triton.attention_backward import AttentionSaved
from workers.kernels.triton.pages import store_pages
from workers.kernels.triton.qkv import place_heads, place_heads_backward
from workers.kernels.triton.rotary import rotate
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
    rotate = staticmethod(rotate)
    place_heads = staticmethod(place_heads)
    place_heads_backward = staticmethod(place_heads_backward)
    silu_mul = staticmethod(gate.silu_mul)
    silu_mul_backward = staticmethod(gate.silu_mul_backward)
    store_pages = staticmethod(store_pages)
    sample = staticmethod(sample)
    column_sums = staticmethod(column_sums)

    def adapted_linear(
        self, first_bit: int, bounds: list[int], shrink: Tensor, expands: tuple[Tensor, ...]
    ) -> AdaptedLinear:
        """One fused linear's matrices; output columns bounds[j] to bounds[j + 1] are expand j's."""
        stacked, inputs = len(expands), shrink.shape[1]
        return AdaptedLinear(
            _factor((shrink,), [0, inputs], stacked, first_bit),
            _factor(expands, bounds, 1, first_bit),
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

        The run is all rows of `x`.
        """
        grad_shrink, *grad_expands = term_grads
        shrunk = contract(x, linear.shrink, run).sum(0)
        grad_shrunk = contract(grad, linear.expand, run)
        if grad_x is not None:
            expand(grad_shrunk, linear.shrink, run, grad_x)
        accumulate(grad_shrink, grad_shrunk.sum(0), 0, x)
        start = column = 0
        for total in grad_expands:
            rank, width = total.shape
            accumulate(total, shrunk, column, grad[:, start : start + width])
            start, column = start + width, column + rank

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


def _factor(
    matrices: tuple[Tensor, ...], bounds: list[int], stacked: int, first_bit: int
) -> Factor:
    device, addresses = matrices[0].device, [matrix.data_ptr() for matrix in matrices]
    return Factor(
        torch.tensor(addresses, device=device),
        torch.tensor(bounds, dtype=torch.int32, device=device),
        stacked,
        max(matrix.shape[1] for matrix in matrices),
        first_bit,
        all(number % ALIGNMENT == 0 for number in (*addresses, *bounds)),
    )
