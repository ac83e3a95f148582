"""Backward units as one kernel call each: the CPU's path of `DecoderBackward`.

Weights are laid out once, scratch once for the largest unit so far; a unit only moves pointers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workers.backward_unit import BackwardUnit
from workers.cpu_attention import CpuSpans, supported
from workers.cpu_decoder import describe_layer
from workers.decoder import Decoder
from workers.kernels.backward_range import NUM_LINEARS, BackwardRange, Run, TermSums
from workers.kernels.cpu_kernels import AttentionShape, CpuKernels, LayerWeights, panel_outputs


class CpuBackward:
    """The kernels' view of a decoder's layers, backward."""

    def __init__(self, kernels: CpuKernels, decoder: Decoder) -> None:
        self.kernels = kernels
        self.decoder = decoder
        self.layers: list[LayerWeights] = []
        for index, layer in enumerate(decoder.weights.layers):
            transposed = [(linear.transposed_panels, None) for linear in layer.linears]
            self.layers.append(describe_layer(layer, index, decoder.arena, transposed))
        self.scratch = RangeScratch(decoder, 0, 0)
        self.range = BackwardRange()

    @classmethod
    def try_of(cls, decoder: Decoder) -> CpuBackward | None:
        """The kernels over a decoder; None where they do not cover its device, dtype or shape."""
        weights = decoder.weights
        kernels = supported(decoder.config, weights.dtype, weights.device)
        linears = [linear for layer in weights.layers for linear in layer.linears]
        if not decoder.group.is_alone:
            return None  # ranks meet in the middle of a layer
        if kernels is None or any(linear.transposed_panels is None for linear in linears):
            return None
        return cls(kernels, decoder)

    def run(self, unit: BackwardUnit, saved: dict[str, Tensor], grad: Tensor) -> None:
        """Turn the gradient of the layer's output into that of its input, in place.

        Shapes:
            saved: what forward kept of the unit's rows, (rows, ...) each.
            grad: (rows, hidden).
        """
        self._set_shape(unit)
        self._set_scratch(unit)
        self._set_adapter(unit)
        self._set_keys(unit)
        for name, tensor in saved.items():
            if name in BackwardRange.KEPT:
                setattr(self.range, name, _address(tensor))
        self.range.grad = _address(grad)
        self.kernels.backward_layer(self.layers[unit.layer], self.range)

    def _set_shape(self, unit: BackwardUnit) -> None:
        config, described = self.decoder.config, self.range
        described.hidden, described.inner = config.hidden_size, config.intermediate_size
        described.eps, described.is_first = config.rms_eps, unit.layer == 0
        described.shape = AttentionShape(
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            config.windows[unit.layer] or 0,
            config.q_size,
        )
        described.cosine = _address(self.decoder.rotary.cos)
        described.sine = _address(self.decoder.rotary.sin)
        described.positions = _address(unit.pack.tokens.positions[unit.start : unit.stop])

    def _set_scratch(self, unit: BackwardUnit) -> None:
        scratch = self.scratch
        if not scratch.fits(unit.num_tokens, unit.columns.rank):
            rows, rank = max(scratch.rows, unit.num_tokens), max(scratch.rank, unit.columns.rank)
            self.scratch = scratch = RangeScratch(self.decoder, rows, rank)
        for name, tensor in scratch.tensors.items():
            setattr(self.range, name, tensor.data_ptr())
        if not unit.columns.middle:
            self.range.middled, self.range.grad_middled = self.range.shrunk, self.range.grad_shrunk

    def _set_adapter(self, unit: BackwardUnit) -> None:
        self.range.run = Run(0, unit.num_tokens, *self.decoder.arena.run_numbers(unit.columns))
        for index in range(NUM_LINEARS):
            sums = TermSums()
            term = unit.grads.terms.get((unit.layer, index))
            if term is not None:
                sums.shrink = _wanted(term.shrink_CI)
                sums.expand[: len(term.expand_RO)] = [_wanted(total) for total in term.expand_RO]
                sums.middle[: len(term.middle_RM)] = [_wanted(total) for total in term.middle_RM]
            self.range.sums[index] = sums

    def _set_keys(self, unit: BackwardUnit) -> None:
        (group,) = unit.shared.groups
        assert isinstance(group, CpuSpans)
        described, (grad_k, grad_v) = self.range, unit.pack.grad_kv[unit.layer]
        described.source = group.source(unit.layer)
        described.spans, described.num_spans = _address(group.spans), len(group.spans)
        described.next, described.first = 0, unit.start
        described.grad_k, described.grad_v = _address(grad_k), _address(grad_v)


class RangeScratch:
    """What units of up to `rows` tokens, with adapters of up to `rank`, need while they run."""

    def __init__(self, decoder: Decoder, rows: int, rank: int) -> None:
        config, linears = decoder.config, decoder.arena.linears
        self.rows, self.rank = rows, rank
        hidden, inner = config.hidden_size, config.intermediate_size
        ranks = even(rank * max(len(linear.slices) for linear in linears))
        widest = max(linear.in_features for linear in linears)
        sizes = {
            "activated": rows * inner,
            "grad_activated": rows * inner,
            "grad_gate_up": rows * 2 * inner,
            "normed": rows * hidden,
            "grad_normed": rows * hidden,
            "grad_attn": rows * config.q_size,
            "grad_q": rows * config.q_size,
            "grad_qkv": rows * config.qkv_size,
            "shrunk": ranks * even(rows),
            "grad_middled": ranks * even(rows),
            "middled": ranks * even(rows),
            "grad_shrunk": ranks * even(rows),
            "grad_rows": rows * ranks,
            "panels": ranks * (widest + panel_outputs()),
        }
        dtype = decoder.weights.dtype
        self.tensors = {name: torch.empty(size, dtype=dtype) for name, size in sizes.items()}

    def fits(self, rows: int, rank: int) -> bool:
        """Whether a unit's scratch is there."""
        return rows <= self.rows and rank <= self.rank


def even(count: int) -> int:
    """As many as the kernels' pairs hold."""
    return count + count % 2


def _address(tensor: Tensor) -> int:
    assert tensor.is_contiguous()
    return tensor.data_ptr()


def _wanted(total: Tensor) -> int | None:
    """A sum's address; None: it has no rows."""
    return _address(total) if len(total) else None
