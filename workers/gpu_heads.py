"""Spans of compressed sequences for the GPU's kernels, which find each head's tables by address.

Nothing is gathered, padded or copied for a step but one line of numbers for each span.

Shape suffixes: S spans, T rows, K KV heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from workers.attention import Attends
from workers.device_copy import upload
from workers.gpu_attention import GpuSpans, PlacedSpan, by_length, head_shape, span_tiles
from workers.head_attention import HeadSpan
from workers.kernels.device_kernels import gpu_kernels_for
from workers.kernels.span_tiles import HeadLines, KeyPlace
from workers.kv_cache import KVCache
from workers.model import DecoderConfig

if TYPE_CHECKING:
    from workers.kernels.triton.gpu_kernels import GpuKernels


@dataclass(frozen=True, slots=True)
class PlacedHeads(PlacedSpan):
    """A span of a compressed sequence, and the addresses of its tables.

    Attributes:
        tables: see `HeadTables.line`.
    """

    tables: tuple[int, ...] = ()

    @classmethod
    def of(cls, span: HeadSpan, device: torch.device) -> PlacedHeads:
        """A span whose pages are dealt."""
        num_keys = span.extent.num_keys
        dropped = num_keys - span.pages.most_slots(num_keys)
        return cls(span.extent, 0, dropped, span.pages.tables_on(device).line)


@dataclass(frozen=True, slots=True)
class GpuHeadRows:
    """Rows whose K and V go where the tables of their heads say.

    Attributes:
        spans_S4: see SpanTiles.
        most_queries: of a span.
        place: where a layer's heads look.
    """

    kernels: GpuKernels
    spans_S4: Tensor
    most_queries: int
    place: Callable[[int], KeyPlace]

    def store(self, cache: KVCache, layer: int, k_TKD: Tensor, v_TKD: Tensor) -> None:
        """See StoresHeads."""
        del cache
        place = self.place(layer)
        self.kernels.store_heads(place, self.spans_S4, self.most_queries, k_TKD, v_TKD)


def try_head_spans(
    spans: list[HeadSpan], cache: KVCache, config: DecoderConfig
) -> Sequence[Attends] | None:
    """What attends for compressed spans; None on a device without kernels."""
    kernels, device = gpu_kernels_for(cache.storage), cache.storage.device
    if kernels is None:
        return None
    placed, shape = [PlacedHeads.of(span, device) for span in spans], head_shape(config, None)
    return [
        GpuSpans(kernels, config, span_tiles(members, shape, device), _own_pages(members, cache))
        for members in by_length(placed, shape)
    ]


def try_head_rows(spans: list[HeadSpan], cache: KVCache) -> GpuHeadRows | None:
    """Where rows of compressed spans go; None on a device without kernels."""
    kernels, device = gpu_kernels_for(cache.storage), cache.storage.device
    if kernels is None:
        return None
    placed = [PlacedHeads.of(span, device) for span in spans]
    numbers = upload([span.line for span in placed], torch.int64, device)
    most = max(span.extent.num_queries for span in spans)
    return GpuHeadRows(kernels, numbers, most, _own_pages(placed, cache))


def heads_place(cache: KVCache, lines_S5: Tensor, blocks: Tensor) -> Callable[[int], KeyPlace]:
    """Where the heads of each layer look; uniform spans find their `blocks` as ever."""
    block_stride, _, _, page, token, _ = cache.storage.stride()
    keys, values = cache.keys[0], cache.values[0]

    def place(layer: int) -> KeyPlace:
        heads = HeadLines(lines_S5, layer, block_stride)
        return KeyPlace(keys, values, page, 0, token, blocks, cache.block_size, heads)

    return place


def _own_pages(spans: list[PlacedHeads], cache: KVCache) -> Callable[[int], KeyPlace]:
    """Where heads look in a batch without uniform spans."""
    lines = upload([span.tables for span in spans], torch.int64, cache.storage.device)
    return heads_place(cache, lines, blocks=lines.view(torch.int32))
