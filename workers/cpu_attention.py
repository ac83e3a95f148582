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
from workers.head_attention import HeadSpan, page_tables
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
    held: tuple[Tensor, ...] = ()

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

    return [CpuSpans(kernels, config, torch.tensor(rows), source, (held,))]


def try_head_spans(
    spans: list[HeadSpan], cache: KVCache, config: DecoderConfig
) -> Sequence[Attends] | None:
    """What attends for compressed spans; None where this CPU's kernels do not cover them."""
    kernels = supported(config, cache.storage.dtype, cache.storage.device)
    if kernels is None:
        return None
    rows = [(span.extent.row, span.extent.num_queries, span.extent.start, 0) for span in spans]
    tables = page_tables(spans)
    heads = _head_slots(spans, tables.shape[3])
    width, page = config.head_dim, cache.block_size * config.head_dim
    values = cache.storage.data_ptr() + cache.values_after * page * cache.storage.element_size()

    def source(layer: int) -> KeySource:
        return KeySource(
            cache.storage.data_ptr(),
            values,
            tables[layer].data_ptr(),
            cache.block_size,
            page,
            0,
            width,
            heads[layer].data_ptr(),
        )

    counts = [each for span in spans if (each := span.pages.log_counts_LKN) is not None]
    return [CpuSpans(kernels, config, torch.tensor(rows), source, (tables, heads, *counts))]


def _head_slots(spans: list[HeadSpan], table_pages: int) -> Tensor:
    """`HeadSlots` of every layer, span and KV head, (L, S, K, 4) int64."""
    starts = torch.stack([span.starts for span in spans], dim=1)
    slots = torch.zeros(*starts.shape, 4, dtype=torch.int64)
    slots[..., 0] = starts
    slots[..., 1] = torch.arange(starts[0].numel()).view(starts[0].shape) * table_pages
    for place, span in enumerate(spans):
        counts = span.pages.log_counts_LKN
        if counts is not None:
            assert counts.is_contiguous()
            assert counts.dtype is torch.float32
            first = torch.arange(counts[..., 0].numel()).view(counts.shape[:2])
            stride = counts.shape[2]
            slots[:, place, :, 2] = counts.data_ptr() + first * stride * counts.element_size()
            slots[:, place, :, 3] = stride
    return slots


def supported(config: DecoderConfig, dtype: torch.dtype, device: torch.device) -> CpuKernels | None:
    """The kernels, if their attention covers this model."""
    is_covered = (
        device.type == "cpu"
        and config.head_dim % LANES == 0
        and config.head_dim <= MAX_HEAD_DIM
        and config.group_size <= MAX_GROUP
    )
    return cpu_kernels(dtype) if is_covered else None
