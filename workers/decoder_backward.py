"""The hand-written backward of a decoder layer over any token range of a pack.

Ranges of a layer run last to first: queries of a range add to the key and value gradients of all
earlier tokens of their example, so a range's own are complete once it is reached. The frozen
weights get no gradient; the adapter's terms get theirs summed over every range, unit and pack.

Source: FlexLLM, arXiv:2402.18789 (token-level backward); the formulas are in each function.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workers.activations import ActivationSpec, LayerActivations, SaveLevel
from workers.attention import SavedAttention
from workers.backward_unit import BackwardUnit
from workers.batch import ForwardBatch, TrainWindow
from workers.cpu_backward import CpuBackward
from workers.decoder import Decoder
from workers.kernels.device_kernels import gpu_kernels_for
from workers.kernels.qkv_rows import QkvShape
from workers.layers import rms_norm, rms_norm_backward, silu_mul, silu_mul_backward
from workers.middle import back_through, through
from workers.model import DOWN, GATE_UP, OUT, QKV
from workers.qkv import place_heads_backward


class DecoderBackward:
    """Runs backward units against a decoder."""

    def __init__(self, decoder: Decoder, spec: ActivationSpec) -> None:
        self.decoder = decoder
        self.spec = spec
        self._cpu = CpuBackward.try_of(decoder)

    def run(self, unit: BackwardUnit) -> None:
        """Carry the gradient through one layer's range, in place in `pack.grad_out`.

        Once nothing reads a layer's activations any more they are let go.
        """
        pack = unit.pack
        if unit.layer not in pack.grad_kv:
            keys = pack.layers[unit.layer]
            pack.grad_kv[unit.layer] = (
                torch.zeros_like(keys["k"], dtype=self.spec.wide_dtype),
                torch.zeros_like(keys["v"], dtype=self.spec.wide_dtype),
            )
        saved, grad = self._activations(unit), pack.grad_out[unit.start : unit.stop]
        if self._cpu is not None:
            self._cpu.run(unit, saved, grad)
        else:
            self._layer(unit, saved, grad)
        if unit.start == 0:
            del pack.grad_kv[unit.layer]
            pack.layers[unit.layer].buffers.clear()

    def recompute(self, unit: BackwardUnit) -> None:
        """Run one layer of a window-outer pack's range forward again, and keep all of it."""
        pack = unit.pack
        if unit.layer == 0:
            names, device = self.spec.names(SaveLevel.FULL), self.decoder.weights.device
            pack.range_layers = [
                LayerActivations.allocate(self.spec, names, unit.num_tokens, device)
                for _ in range(self.decoder.config.num_layers)
            ]
            pack.hidden = self.decoder.embed(pack.tokens.token_ids[unit.start : unit.stop])
        assert pack.hidden is not None
        batch = self._range_batch(unit, pack.range_layers)
        pack.hidden = self.decoder.forward_layer(unit.layer, pack.hidden, batch)

    def _layer(self, unit: BackwardUnit, saved: dict[str, Tensor], grad: Tensor) -> None:
        """Turn the gradient of the layer's output, (stop - start, hidden), into its input's."""
        weights = self.decoder.weights.layers[unit.layer]
        eps, sum_ranks = self.decoder.config.rms_eps, self.decoder.group.sum
        x_mid, gate_up = saved["x_mid"], saved["gate_up"]
        grad_inner = self._linear(unit, DOWN, grad, silu_mul(gate_up))
        grad_gate_up = silu_mul_backward(grad_inner, gate_up)
        normed = rms_norm(x_mid, weights.post_norm, eps)
        grad_normed = sum_ranks(self._linear(unit, GATE_UP, grad_gate_up, normed))
        rms_norm_backward(grad_normed, x_mid, weights.post_norm, eps, into=grad)

        grad_attn = self._linear(unit, OUT, grad, saved["attn"])
        grad_qkv = self._attention(unit, saved, grad_attn)
        normed = rms_norm(saved["x"], weights.input_norm, eps)
        if unit.layer == 0:
            self._adapter_grads(unit, QKV, grad_qkv, normed, None)  # nobody reads its input's
            return
        grad_normed = sum_ranks(self._linear(unit, QKV, grad_qkv, normed))
        rms_norm_backward(grad_normed, saved["x"], weights.input_norm, eps, into=grad)

    def _activations(self, unit: BackwardUnit) -> dict[str, Tensor]:
        """The range's activations; those of one layer that were not kept are computed again."""
        pack, tokens = unit.pack, slice(unit.start, unit.stop)
        saved = pack.layers[unit.layer].buffers
        if pack.level is SaveLevel.FULL:
            return {name: buffer[tokens] for name, buffer in saved.items()}
        if pack.level is SaveLevel.WINDOW_OUTER:
            return pack.range_layers[unit.layer].buffers
        names, device = self.spec.names(SaveLevel.FULL), self.decoder.weights.device
        scratch = LayerActivations.allocate(self.spec, names, unit.num_tokens, device)
        batch = self._range_batch(unit, [scratch] * self.decoder.config.num_layers)
        self.decoder.forward_layer(unit.layer, saved["x"][tokens].clone(), batch)
        return scratch.buffers

    def _range_batch(self, unit: BackwardUnit, recorders: list[LayerActivations]) -> ForwardBatch:
        """The unit's rows as a batch whose activations go to `recorders`."""
        tokens = slice(unit.start, unit.stop)
        cos, sin = self.decoder.rotary.at(unit.pack.tokens.positions[tokens])
        window = TrainWindow(unit.pack, unit.start, unit.stop, 0, recorders, unit.start)
        return ForwardBatch(
            token_ids=unit.pack.tokens.token_ids[tokens],
            cos=cos,
            sin=sin,
            adapters=unit.shared.adapters,
            windows=[window],
            groups=unit.shared.groups,
        )

    def _linear(self, unit: BackwardUnit, index: int, grad_y: Tensor, x: Tensor) -> Tensor:
        """Gradient of a linear's input: grad_y @ W + (grad_y @ expand.T) @ middle @ shrink."""
        grad_x = self.decoder.weights.layers[unit.layer].linears[index].input_grad(grad_y)
        self._adapter_grads(unit, index, grad_y, x, grad_x)
        return grad_x

    def _adapter_grads(
        self, unit: BackwardUnit, index: int, grad_y: Tensor, x: Tensor, grad_x: Tensor | None
    ) -> None:
        """Add the range's share to the term gradients, and to the gradient of x.

        Semantics, per projection block:
            s = x @ shrink.T;  m = s @ middle.T;  d_expand += m.T @ grad_y
            dm = grad_y @ expand.T;  d_middle += dm.T @ s;  ds = dm @ middle
            d_shrink += ds.T @ x;  grad_x += ds @ shrink
        """
        if not unit.columns.targets(self.decoder.arena.linears[index]):
            return
        kernels = gpu_kernels_for(x)
        if kernels is None:
            self._adapter_products(unit, index, grad_y, x, grad_x)
            return
        arena, term = self.decoder.arena, unit.grads.terms[unit.layer, index]
        run = unit.shared.adapters.table(arena, x.device)
        described = arena.adapted(unit.layer, index)
        kernels.adapter_backward(described, run, x, grad_y, term.matrices(), grad_x)

    def _adapter_products(
        self, unit: BackwardUnit, index: int, grad_y: Tensor, x: Tensor, grad_x: Tensor | None
    ) -> None:
        """The same in plain products."""
        arena, grads = self.decoder.arena, unit.grads
        term, rank = arena.terms(unit.columns)[unit.layer, index], unit.columns.rank
        shrunk = x @ term.shrink_CI.T
        grad_shrunk = torch.zeros_like(shrunk)
        for j, part in enumerate(arena.linears[index].slices):
            if part.module not in unit.columns.modules:
                continue
            block, grad = slice(j * rank, (j + 1) * rank), grad_y[:, part.start : part.stop]
            middled, back = shrunk[:, block], grad @ term.expand_RO[j].T
            if unit.columns.middle:
                grads.add_middle(unit.layer, index, j, back, middled)
                middled = through(middled, term.middle_RM[j])
                back = back_through(back, term.middle_RM[j])
            grad_shrunk[:, block] = back
            grads.add_expand(unit.layer, index, j, middled.T, grad)
        grads.add_shrink(unit.layer, index, grad_shrunk.T, x)
        if grad_x is not None:
            grad_x.addmm_(grad_shrunk, term.shrink_CI)

    def _attention(self, unit: BackwardUnit, saved: dict[str, Tensor], grad_attn: Tensor) -> Tensor:
        """Gradient of the fused qkv output, (stop - start, qkv_size)."""
        config = self.decoder.config
        grad_q = torch.empty_like(saved["q"])
        read = SavedAttention(
            saved["q"],
            saved["attn"].view(grad_q.shape),
            saved["lse"],
            grad_attn.view(grad_q.shape),
        )
        for group in unit.shared.groups:
            group.backward(
                unit.layer,
                config.windows[unit.layer],
                read,
                grad_q,
                unit.pack.grad_kv[unit.layer],
            )
        tokens = slice(unit.start, unit.stop)
        sums = unit.pack.grad_kv[unit.layer]
        return place_heads_backward(
            grad_q,
            (sums[0][tokens], sums[1][tokens]),
            QkvShape(config.num_heads, config.num_kv_heads, config.head_dim),
            self.decoder.weights.layers[unit.layer].head_norms(config.rms_eps),
            self.decoder.rotary.at(unit.pack.tokens.positions[tokens]),
            saved.get("heads"),
        )
