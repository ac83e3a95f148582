"""Attention of a batch's spans by the GPU's kernels, keys read where they lie.

Spans of few queries and long ones take tiles of different sizes, so they are two groups.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from workers.attention import Attends, AttendsBack, Extent, SavedAttention, Sinks
from workers.batch import TrainWindow
from workers.device_copy import upload
from workers.kernels.device_kernels import gpu_kernels_for
from workers.kernels.span_tiles import GRAD_KEYS, SMALLEST_TILE, HeadShape, KeyPlace, SpanTiles
from workers.kv_cache import KVCache
from workers.model import DecoderConfig

if TYPE_CHECKING:
    from workers.kernels.triton.gpu_kernels import GpuKernels


@dataclass(frozen=True, slots=True)
class PlacedSpan:
    """An extent, and the first entry of its block table, or its first key.

    Attributes:
        dropped: tokens that no head keeps a slot for.
    """

    extent: Extent
    first: int
    dropped: int = 0

    @property
    def line(self) -> tuple[int, int, int, int]:
        """The span as kernels read it."""
        return self.extent.row, self.extent.num_queries, self.extent.start, self.first


Placed = TypeVar("Placed", bound=PlacedSpan)


@dataclass(slots=True)
class GpuSpans:
    """Spans whose keys lie in one place.

    Attributes:
        place: where a layer's keys lie.
        key_tiles: (m, 2) int64: span, first key; for packs, whose keys get gradients.
    """

    kernels: GpuKernels
    config: DecoderConfig
    tiles: SpanTiles
    place: Callable[[int], KeyPlace]
    key_tiles: Tensor | None = None

    def run(
        self, layer: int, window: int | None, qkv: tuple[Tensor, Tensor, Tensor], sinks: Sinks
    ) -> None:
        """See Attends."""
        shape = head_shape(self.config, window)
        self.kernels.attend(qkv[0], self.place(layer), self.tiles, shape, sinks.out, sinks.lse)

    def backward(
        self,
        layer: int,
        window: int | None,
        saved: SavedAttention,
        grad_q: Tensor,
        grad_kv: tuple[Tensor, Tensor],
    ) -> None:
        """See AttendsBack."""
        assert self.key_tiles is not None
        self.kernels.attend_backward(
            (saved.q, saved.out, saved.lse, saved.grad),
            self.place(layer),
            self.tiles,
            self.key_tiles,
            head_shape(self.config, window),
            grad_q,
            grad_kv,
        )


def head_shape(config: DecoderConfig, window: int | None) -> HeadShape:
    """A layer's heads as kernels read them."""
    return HeadShape(config.num_kv_heads, config.group_size, config.head_dim, window or 0)


def try_pack_spans(window: TrainWindow, config: DecoderConfig) -> Sequence[AttendsBack] | None:
    """What attends for one training window; None on a device without kernels."""
    kernels = gpu_kernels_for(window.pack.grad_out)
    if kernels is None:
        return None
    tokens, device = window.pack.tokens, window.pack.grad_out.device
    extents = tokens.extents(window.start, window.stop)
    firsts = tokens.key_starts(window.start, window.stop)
    spans = [
        PlacedSpan(Extent(window.row + e.row, e.num_queries, e.start), first)
        for e, first in zip(extents, firsts, strict=True)
    ]
    layers, stride = window.pack.layers, config.kv_size

    def place(layer: int) -> KeyPlace:
        saved = layers[layer]
        return KeyPlace(saved["k"], saved["v"], 0, config.head_dim, stride)

    key_tiles = [
        (i, key)
        for i, span in enumerate(spans)
        for key in range(0, span.extent.num_keys, GRAD_KEYS)
    ]
    tiles = span_tiles(spans, head_shape(config, None), device)
    return [GpuSpans(kernels, config, tiles, place, upload(key_tiles, torch.int64, device))]


def try_paged_spans(
    extents: list[Extent], tables: list[list[int]], cache: KVCache, config: DecoderConfig
) -> Sequence[Attends] | None:
    """What attends for inference spans; None on a device without kernels."""
    kernels, device = gpu_kernels_for(cache.keys), cache.keys.device
    if kernels is None:
        return None
    spans: list[PlacedSpan] = []
    blocks: list[int] = []
    for extent, table in zip(extents, tables, strict=True):
        spans.append(PlacedSpan(extent, len(blocks)))
        blocks += table
    place = paged_place(cache, upload(blocks, torch.int32, device))
    shape = head_shape(config, None)
    return [
        GpuSpans(kernels, config, span_tiles(members, shape, device), place)
        for members in by_length(spans, shape)
    ]


def paged_place(cache: KVCache, tables: Tensor) -> Callable[[int], KeyPlace]:
    """Where the keys of each layer lie in the cache."""
    page, head, token, _ = cache.keys[0].stride()

    def place(layer: int) -> KeyPlace:
        keys, values = cache.keys[layer], cache.values[layer]
        return KeyPlace(keys, values, page, head, token, tables, cache.block_size)

    return place


def by_length(spans: list[Placed], shape: HeadShape) -> list[list[Placed]]:
    """Spans of few queries, then long ones; no empty lists."""
    most = SMALLEST_TILE // shape.stacked or 1
    short = [span for span in spans if span.extent.num_queries <= most]
    long = [span for span in spans if span.extent.num_queries > most]
    return [members for members in (short, long) if members]


def span_tiles(spans: Sequence[PlacedSpan], shape: HeadShape, device: torch.device) -> SpanTiles:
    """Cut spans of like length into tiles."""
    queries = shape.tile_queries(max(span.extent.num_queries for span in spans))
    tiles = [
        (i, query)
        for i, span in enumerate(spans)
        for query in range(0, span.extent.num_queries, queries)
    ]
    tiles.sort(key=lambda tile: -spans[tile[0]].extent.start - tile[1])  # the longest walk first
    most_keys = max(span.extent.num_keys - span.dropped for span in spans)
    return SpanTiles(
        upload([span.line for span in spans], torch.int64, device),
        upload(tiles, torch.int64, device),
        queries,
        shape.splits(len(tiles), queries, most_keys),
    )
