"""The decoder forward over one packed batch: base GEMMs once, adapters by run, attention by group.

All rows of all tenants, inference and training, go through the same linears. What differs between
rows (adapter, keys, activations to keep) lies in the ForwardBatch, so a layer has no branches on
kinds of rows. Layers run one by one: a caller may stop after any of them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.adapter_arena import AdapterArena
from workers.attention import Sinks
from workers.batch import ForwardBatch
from workers.cpu_decoder import CpuDecoder
from workers.group import ALONE, Group
from workers.kernels.qkv_rows import QkvShape
from workers.layers import rms_norm, silu_mul
from workers.model import DOWN, GATE_UP, OUT, QKV, DecoderConfig, DecoderWeights
from workers.qkv import place_heads


class RotaryTable:
    """cos and sin of every position, grown on demand."""

    def __init__(self, config: DecoderConfig, dtype: torch.dtype, device: torch.device) -> None:
        wide = torch.promote_types(dtype, torch.float32)
        positions = torch.arange(config.max_model_len, dtype=wide)
        angles = positions[:, None] * config.inv_freq.to(wide)
        self.cos = (angles.cos() * config.rope_scale).to(device=device, dtype=dtype)
        self.sin = (angles.sin() * config.rope_scale).to(device=device, dtype=dtype)

    def at(self, positions_T: Tensor) -> tuple[Tensor, Tensor]:
        """Cos and sin, (T, 1, head_dim / 2) each."""
        return self.cos[positions_T][:, None], self.sin[positions_T][:, None]


class Decoder:
    """Frozen weights, resident adapters, and the forward pass over both.

    In a group, `config`, `weights` and `arena` are those of this rank's part.
    """

    def __init__(
        self,
        config: DecoderConfig,
        weights: DecoderWeights,
        arena: AdapterArena,
        group: Group = ALONE,
    ) -> None:
        self.config = config
        self.weights = weights
        self.arena = arena
        self.group = group
        self.rotary = RotaryTable(config, weights.dtype, weights.device)
        self._cpu = CpuDecoder.try_of(config, weights, arena) if group.is_alone else None

    def embed(self, token_ids: Tensor) -> Tensor:
        """Token embeddings, (T, hidden)."""
        return F.embedding(token_ids, self.weights.embedding)

    def forward(self, batch: ForwardBatch) -> Tensor:
        """Hidden states after the last layer, before the final norm: (T, hidden)."""
        x = self.embed(batch.token_ids)
        for layer in range(self.config.num_layers):
            x = self.forward_layer(layer, x, batch)
        return x

    def forward_layer(self, layer: int, x: Tensor, batch: ForwardBatch) -> Tensor:
        """Carry all rows through one layer: `x` (T, hidden) is overwritten, and returned."""
        if self._cpu is not None:
            return self._cpu.forward_layer(layer, x, batch)
        weights, eps = self.weights.layers[layer], self.config.rms_eps
        batch.record(layer, "x", x)
        qkv = self._linear(layer, QKV, rms_norm(x, weights.input_norm, eps), batch)
        attn = self._attention(layer, qkv, batch)
        self._add_linear(layer, OUT, attn, batch, x)
        batch.record(layer, "x_mid", x)
        gate_up = self._linear(layer, GATE_UP, rms_norm(x, weights.post_norm, eps), batch)
        batch.record(layer, "gate_up", gate_up)
        return self._add_linear(layer, DOWN, silu_mul(gate_up), batch, x)

    def logits(self, x: Tensor) -> Tensor:
        """Final norm and vocabulary projection of the given rows: (T, vocab)."""
        normed = rms_norm(x, self.weights.final_norm, self.config.rms_eps)
        return self.weights.lm_head(normed)

    def _linear(
        self, layer: int, index: int, x: Tensor, batch: ForwardBatch, into: Tensor | None = None
    ) -> Tensor:
        y = self.weights.layers[layer].linears[index](x, into)
        batch.adapters.add(self.arena, layer, index, x, y)
        return y

    def _add_linear(
        self, layer: int, index: int, inner: Tensor, batch: ForwardBatch, x: Tensor
    ) -> Tensor:
        """X += a linear, its adapters included, whose inputs lie on all ranks together."""
        return self.group.sum(self._linear(layer, index, inner, batch, into=self.group.share(x)))

    def _attention(self, layer: int, qkv: Tensor, batch: ForwardBatch) -> Tensor:
        config = self.config
        q, k, v = self._heads(layer, qkv, batch)
        batch.record(layer, "q", q)
        batch.store_keys(layer, k, v)
        batch.show_queries(layer, q)
        sinks = self._sinks(q, batch)
        for group in batch.groups:
            group.run(layer, config.windows[layer], (q, k, v), sinks)
        attn = sinks.out.flatten(1)
        batch.record(layer, "attn", attn)
        if sinks.wants_lse:
            batch.record(layer, "lse", sinks.lse)
        return attn

    def _heads(self, layer: int, qkv: Tensor, batch: ForwardBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value heads; K and V of plain inference rows are in their pages then."""
        config, norms = self.config, self.weights.layers[layer].head_norms(self.config.rms_eps)
        shape = QkvShape(config.num_heads, config.num_kv_heads, config.head_dim)
        if norms is not None:
            heads = qkv.unflatten(-1, (-1, config.head_dim))[:, : shape.turned]
            batch.record(layer, "heads", heads)
        return place_heads(qkv, shape, norms, (batch.cos, batch.sin), batch.pages(layer))

    @staticmethod
    def _sinks(q: Tensor, batch: ForwardBatch) -> Sinks:
        wide = torch.promote_types(q.dtype, torch.float32)
        return Sinks(
            out=torch.empty_like(q),
            lse=torch.empty(q.shape[:2], dtype=wide, device=q.device),
            wants_lse=bool(batch.windows),
        )
