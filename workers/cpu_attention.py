"""Attention of a batch's spans by the CPU's kernels: one call a layer, keys read where they lie.

Where a model or machine has no kernel, others stand in: see `span_attention`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.attention import Attends, AttendsBack, Extent, SavedAttention, Sinks
from workers.batch import TrainWindow
from workers.kernels.cpu_kernels import (
    MAX_GROUP,
    MAX_HEAD_DIM,
    AttentionGrads,
    AttentionShape,
    CpuKernels,
    KeySource,
    cpu_kernels,
)
from workers.kv_cache import KVCache
from workers.model import DecoderConfig

LANES = 16  # a head is a whole number of vectors


@dataclass(slots=True)
class CpuSpans:
    """Spans whose keys lie in one place.

    Attributes:
        spans: (n, 4) int64: row, queries, start, first entry of the block table (or first key).
        source: where a layer's keys lie.
        held: tensors that `source` points into.
    """

    kernels: CpuKernels
    config: DecoderConfig
    spans: Tensor
    source: Callable[[int], KeySource]
    held: Tensor | None = None

    def run(
        self, layer: int, window: int | None, qkv: tuple[Tensor, Tensor, Tensor], sinks: Sinks
    ) -> None:
        """See Attends."""
        q = qkv[0]
        lse = sinks.lse if sinks.wants_lse else None
        shape = self._shape(window, q.stride(0))
        self.kernels.attend(self.source(layer), self.spans, shape, q, sinks.out, lse)

    def backward(
        self,
        layer: int,
        window: int | None,
        saved: SavedAttention,
        grad_q: Tensor,
        grad_kv: tuple[Tensor, Tensor],
    ) -> None:
        """See AttendsBack."""
        tensors = (saved.q, saved.out, saved.grad, saved.lse, grad_q, *grad_kv)
        assert all(tensor.is_contiguous() for tensor in tensors)
        grads = AttentionGrads(*(tensor.data_ptr() for tensor in tensors))
        shape = self._shape(window, saved.q.stride(0))
        self.kernels.attend_backward(self.source(layer), self.spans, shape, grads)

    def _shape(self, window: int | None, q_stride: int) -> AttentionShape:
        config = self.config
        return AttentionShape(
            config.num_heads, config.num_kv_heads, config.head_dim, window or 0, q_stride
        )


def try_pack_spans(window: TrainWindow, config: DecoderConfig) -> Sequence[AttendsBack] | None:
    """What attends for one training window; None where this CPU's kernels do not cover it."""
    tokens, device = window.pack.tokens, window.pack.grad_out.device
    kernels = supported(config, window.pack.grad_out.dtype, device)
    if kernels is None:
        return None
    extents = tokens.extents(window.start, window.stop)
    firsts = tokens.key_starts(window.start, window.stop)
    rows = [
        (window.row + extent.row, extent.num_queries, extent.start, first)
        for extent, first in zip(extents, firsts, strict=True)
    ]
    layers, token_stride = window.pack.layers, config.kv_size

    def source(layer: int) -> KeySource:
        saved = layers[layer]
        keys, values = saved["k"].data_ptr(), saved["v"].data_ptr()
        return KeySource(keys, values, None, 0, 0, config.head_dim, token_stride)

    return [CpuSpans(kernels, config, torch.tensor(rows), source)]


def try_paged_spans(
    extents: list[Extent], tables: list[list[int]], cache: KVCache, config: DecoderConfig
) -> Sequence[Attends] | None:
    """What attends for inference spans; None where this CPU's kernels do not cover them."""
    keys = cache.keys
    kernels = supported(config, keys.dtype, keys.device)
    if kernels is None:
        return None
    rows: list[tuple[int, ...]] = []
    blocks: list[int] = []
    for extent, table in zip(extents, tables, strict=True):
        rows.append((extent.row, extent.num_queries, extent.start, len(blocks)))
        blocks += table
    held = torch.tensor(blocks, dtype=torch.int32)
    page_stride, head_stride, token_stride, _ = keys[0].stride()

    def source(layer: int) -> KeySource:
        return KeySource(
            cache.keys[layer].data_ptr(),
            cache.values[layer].data_ptr(),
            held.data_ptr(),
            cache.block_size,
            page_stride,
            head_stride,
            token_stride,
        )

    return [CpuSpans(kernels, config, torch.tensor(rows), source, held)]


def supported(config: DecoderConfig, dtype: torch.dtype, device: torch.device) -> CpuKernels | None:
    """The kernels, if their attention covers this model."""
    is_covered = (
        device.type == "cpu"
        and config.head_dim % LANES == 0
        and config.head_dim <= MAX_HEAD_DIM
        and config.group_size <= MAX_GROUP
    )
    return cpu_kernels(dtype) if is_covered else None
