"""Decoder layers of a batch as one kernel call each: the CPU's path of `Decoder.forward_layer`.

What a layer needs is laid out once: weights at the start, rows and scratch for each batch. Between
two layers only the pointers into keys and kept activations move.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import pointer

import torch
from torch import Tensor

from workers.adapter_arena import AdapterArena
from workers.adapter_rows import run_table
from workers.batch import ForwardBatch, HeadRows, TrainWindow
from workers.cpu_attention import CpuSpans, supported
from workers.kernels.cpu_kernels import (
    AttentionShape,
    CacheRows,
    CpuKernels,
    LayerBatch,
    LayerWeights,
    LinearWeights,
    PanelWeights,
    SpanGroup,
    Window,
)
from workers.kernels.cpu_kernels import HeadRows as KernelRows
from workers.kv_cache import KVCache
from workers.model import DecoderConfig, DecoderWeights
from workers.model import LayerWeights as FrozenLayer


class CpuDecoder:
    """The kernels' view of a decoder's layers."""

    def __init__(
        self,
        kernels: CpuKernels,
        config: DecoderConfig,
        weights: DecoderWeights,
        arena: AdapterArena,
    ) -> None:
        self.kernels = kernels
        self.config = config
        self.arena = arena
        self.layers = [
            describe_layer(
                layer, index, arena, [(part.panels, part.bias) for part in layer.linears]
            )
            for index, layer in enumerate(weights.layers)
        ]

    @classmethod
    def try_of(
        cls, config: DecoderConfig, weights: DecoderWeights, arena: AdapterArena
    ) -> CpuDecoder | None:
        """The kernels over a decoder; None where they do not cover its device, dtype or shape."""
        kernels = supported(config, weights.dtype, weights.device)
        linears = [linear for layer in weights.layers for linear in layer.linears]
        if kernels is None or any(linear.panels is None for linear in linears):
            return None
        return cls(kernels, config, weights, arena)

    def forward_layer(self, layer: int, x: Tensor, batch: ForwardBatch) -> Tensor:
        """See Decoder.forward_layer."""
        if batch.prepared is None:
            batch.prepared = PreparedBatch(self.config, self.arena, batch, x)
        batch.prepared.enter(layer, x, batch)
        self.kernels.forward_layer(self.layers[layer], batch.prepared.described)
        batch.show_queries(layer, batch.prepared.queries)
        return x


class PreparedBatch:
    """A batch as the kernels read it, with its scratch; moved from layer to layer.

    Attributes:
        queries: rotated queries of the last layer that ran, (T, H, D).
    """

    def __init__(
        self, config: DecoderConfig, arena: AdapterArena, batch: ForwardBatch, x: Tensor
    ) -> None:
        self.config = config
        rows = len(x)
        groups = [group for group in batch.groups if isinstance(group, CpuSpans)]
        assert len(groups) == len(batch.groups)
        self.groups = groups
        self.windows = (Window * len(batch.windows))()
        self.described_groups = (SpanGroup * len(groups))()
        self.described = LayerBatch(
            rows=rows, hidden=config.hidden_size, inner=config.intermediate_size, eps=config.rms_eps
        )
        self.held = [batch.cos.contiguous(), batch.sin.contiguous()]
        self.described.cosine, self.described.sine = (t.data_ptr() for t in self.held)
        self._set_scratch(rows, x, bool(batch.windows))
        self._set_runs(rows, arena, batch)
        self._set_places(batch)

    def enter(self, layer: int, x: Tensor, batch: ForwardBatch) -> None:
        """Point at a layer's keys, pages and kept activations."""
        described, config = self.described, self.config
        assert x.is_contiguous()
        described.x = x.data_ptr()
        width = (config.num_heads + config.num_kv_heads) * config.head_dim
        described.shape = AttentionShape(
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            config.windows[layer] or 0,
            width,
        )
        if batch.cache is not None and batch.cache_rows is not None:
            described.cache.keys = batch.cache.keys[layer].data_ptr()
            described.cache.values = batch.cache.values[layer].data_ptr()
        if isinstance(batch.head_rows, HeadRows):
            described.compressed.slots = batch.head_rows.slots_LTK[layer].data_ptr()
        for place, group in zip(self.described_groups, self.groups, strict=True):
            place.source, place.next = group.source(layer), 0
        for place, window in zip(self.windows, batch.windows, strict=True):
            point_at_buffers(place, layer, window)

    def _set_scratch(self, rows: int, x: Tensor, wants_lse: bool) -> None:
        config = self.config
        widths = {
            "normed": config.hidden_size,
            "qkv": config.qkv_size,
            "heads": config.q_size + config.kv_size,
            "attn": config.q_size,
            "gate_up": 2 * config.intermediate_size,
            "activated": config.intermediate_size,
        }
        scratch: dict[str, Tensor] = {}
        for name in LayerBatch.SCRATCH:
            scratch[name] = x.new_empty(rows, widths[name])
            self._hold(name, scratch[name])
        heads = scratch["heads"][:, : config.q_size]
        self.queries = heads.unflatten(1, (config.num_heads, config.head_dim))
        self._hold("lse", torch.empty(rows if wants_lse else 0, config.num_heads))
        self.described.wants_lse = wants_lse

    def _set_runs(self, rows: int, arena: AdapterArena, batch: ForwardBatch) -> None:
        runs = batch.adapters.runs
        if not runs:
            return
        projections = max(len(linear.slices) for linear in arena.linears)
        table = run_table(runs, arena, torch.device("cpu"))
        width = projections * table.max_rank
        self._hold("runs", table.runs)
        self._hold("shrunk", torch.empty(rows, width))
        self.described.num_runs, self.described.shrunk_width = len(runs), width

    def _set_places(self, batch: ForwardBatch) -> None:
        described = self.described
        for place, group in zip(self.described_groups, self.groups, strict=True):
            place.spans, place.num_spans = group.spans.data_ptr(), len(group.spans)
        for window_place, window in zip(self.windows, batch.windows, strict=True):
            window_place.row, window_place.count = window.row, window.stop - window.start
        described.groups = pointer(self.described_groups[0]) if self.groups else None
        described.num_groups = len(self.groups)
        described.windows = pointer(self.windows[0]) if batch.windows else None
        described.num_windows = len(batch.windows)
        if batch.cache is not None and batch.cache_rows is not None:
            rows = batch.cache_rows
            described.cache = CacheRows(
                row=rows.rows.start,
                count=rows.rows.stop - rows.rows.start,
                blocks=rows.blocks_T.data_ptr(),
                offsets=rows.offsets_T.data_ptr(),
                page_tokens=batch.cache.block_size,
                page_stride=batch.cache.keys.stride(1),
            )
        if batch.cache is not None and isinstance(batch.head_rows, HeadRows):
            described.compressed = _described_rows(batch.head_rows, batch.cache)

    def _hold(self, name: str, tensor: Tensor) -> None:
        self.held.append(tensor)
        setattr(self.described, name, tensor.data_ptr())


def _described_rows(compressed: HeadRows, cache: KVCache) -> KernelRows:
    """Rows of compressed sequences as the kernels read them, but for the slots of a layer."""
    assert compressed.slots_LTK.is_contiguous()
    pages = cache.storage
    values = cache.values_after * pages[0, 0, 0, 0].numel() * pages.element_size()
    return KernelRows(
        row=compressed.rows.start,
        count=compressed.rows.stop - compressed.rows.start,
        keys=pages.data_ptr(),
        values=pages.data_ptr() + values,
    )


def point_at_buffers(place: Window, layer: int, window: TrainWindow) -> None:
    """Where a window's activations of one layer go: K and V to its pack, the rest as recorded."""
    recorded = window.recorders[layer].buffers
    keys = window.pack.layers[layer].buffers
    for name in Window.KEPT:
        is_key = name in ("k", "v")
        buffer = keys[name] if is_key else recorded.get(name)
        start = window.start if is_key else window.start - window.record_from
        address = None
        if buffer is not None:
            address = buffer.data_ptr() + start * buffer.stride(0) * buffer.element_size()
        setattr(place, name, address)


def describe_layer(
    layer: FrozenLayer,
    index: int,
    arena: AdapterArena,
    linears: Sequence[tuple[PanelWeights | None, Tensor | None]],
) -> LayerWeights:
    """A layer's weights as the kernels read them; `linears` are panels with biases."""
    described = LayerWeights(
        layer.input_norm.data_ptr(),
        layer.post_norm.data_ptr(),
        None if layer.q_norm is None else layer.q_norm.data_ptr(),
        None if layer.k_norm is None else layer.k_norm.data_ptr(),
    )
    for place, (panels, bias) in enumerate(linears):
        assert panels is not None
        described.linears[place] = LinearWeights(
            panels.panels.data_ptr(),
            panels.panels.dtype is torch.bfloat16,
            None if bias is None else bias.data_ptr(),
            arena.adapted(index, place),
        )
    return described
