"""Lays a step's windows and spans out as rows of one packed batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from scheduler.domain.plan import Span
from scheduler.domain.request import Sequence
from workers.adapter_arena import AdapterColumns
from workers.adapter_rows import AdapterRows, AdapterRun
from workers.attention import Attends, Extent
from workers.batch import CacheRows, ForwardBatch, HeadRows, StoresHeads, TrainWindow
from workers.decoder import Decoder
from workers.device_copy import upload
from workers.gpu_heads import try_head_rows
from workers.head_attention import HeadSpan
from workers.head_pages import HeadPages
from workers.held_slots import HeldSlots
from workers.kv_cache import KVCache
from workers.kv_watch import KvWatch, WatchedRows
from workers.span_attention import head_attention, pack_attention, paged_attention
from workers.train_pack import TrainPack


@dataclass(frozen=True, slots=True)
class InferenceRow:
    """A span with its sequence and the arena columns of its adapter.

    Attributes:
        watch: sees the span's queries, for a KV policy.
    """

    span: Span
    sequence: Sequence
    columns: AdapterColumns | None
    watch: KvWatch | None = None

    @property
    def completes(self) -> bool:
        """Whether the span computes the sequence's last token, so that a next one can be drawn."""
        return self.span.start + self.span.count == len(self.sequence.token_ids)


@dataclass(frozen=True, slots=True)
class PackWindow:
    """Tokens [start, start + count) of a pack, with the arena columns of its job."""

    pack: TrainPack
    start: int
    count: int
    columns: AdapterColumns


class BatchBuilder:
    """Collects rows: training windows first, then spans in the order of `placement`."""

    def __init__(self, decoder: Decoder, cache: KVCache) -> None:
        self.decoder = decoder
        self.cache = cache
        self.num_rows = 0
        self.token_ids: list[int] = []
        self.positions: list[int] = []
        self.runs: list[AdapterRun] = []
        self.windows: list[TrainWindow] = []
        self.extents: list[Extent] = []
        self.tables: list[list[int]] = []
        self.blocks: list[int] = []
        self.offsets: list[int] = []
        self.compressed: list[HeadSpan] = []
        self.watched: list[WatchedRows] = []

    def add_window(self, window: PackWindow) -> None:
        """Rows of a pack; all windows come before all spans."""
        assert not self.extents
        pack, tokens = window.pack, slice(window.start, window.start + window.count)
        self.token_ids += pack.tokens.token_ids[tokens].tolist()
        self.positions += pack.tokens.positions[tokens].tolist()
        self.windows.append(
            TrainWindow(pack, tokens.start, tokens.stop, self.num_rows, pack.layers)
        )
        self._add_run(window.count, window.columns)

    def add_row(self, row: InferenceRow) -> None:
        """Rows of a sequence, and the pages that take their K and V."""
        span, layout = row.span, row.sequence.layout
        positions = range(span.start, span.start + span.count)
        self.token_ids += row.sequence.token_ids[span.start : span.start + span.count]
        self.positions += positions
        extent = Extent(self.num_rows, span.count, span.start)
        if layout is None:
            self._add_uniform(extent, row.sequence.block_table, positions)
        else:
            assert isinstance(layout, HeadPages)
            layout.reserve(extent.num_keys, row.sequence.block_table)
            self.compressed.append(HeadSpan(extent, layout))
        if row.watch is not None:
            self._watch(row.watch, extent, row.sequence)
        self._add_run(span.count, row.columns)

    def _watch(self, watch: KvWatch, extent: Extent, sequence: Sequence) -> None:
        rows = slice(extent.row, extent.row + extent.num_queries)
        held = HeldSlots.of(sequence, extent.num_keys, self.cache)
        self.watched.append(WatchedRows(watch, rows, extent.start, held))

    def _add_uniform(self, extent: Extent, table: list[int], positions: range) -> None:
        assert not self.compressed
        size = self.cache.block_size
        self.blocks += [table[position // size] for position in positions]
        self.offsets += [position % size for position in positions]
        self.extents.append(extent)
        self.tables.append(table)

    def build(self) -> ForwardBatch:
        """The batch as tensors on the decoder's device."""
        device = self.decoder.weights.device
        cos, sin = self.decoder.rotary.at(upload(self.positions, torch.int64, device))
        groups: list[Attends] = []
        for window in self.windows:
            groups += pack_attention(window, self.decoder.config)
        groups += paged_attention(self.extents, self.tables, self.cache, self.decoder.config)
        groups += head_attention(self.compressed, self.cache, self.decoder.config)
        return ForwardBatch(
            token_ids=upload(self.token_ids, torch.int64, device),
            cos=cos,
            sin=sin,
            adapters=AdapterRows(self.runs),
            windows=self.windows,
            groups=groups,
            cache=self.cache,
            cache_rows=self._cache_rows(device),
            head_rows=self._head_rows(device),
            watched=self.watched,
        )

    def _cache_rows(self, device: torch.device) -> CacheRows | None:
        if not self.blocks:
            return None
        count, first = len(self.blocks), self.extents[0].row
        blocks, offsets = upload(self.blocks + self.offsets, torch.int64, device).split(count)
        return CacheRows(slice(first, first + count), blocks, offsets)

    def _head_rows(self, device: torch.device) -> StoresHeads | None:
        if not self.compressed:
            return None
        placed = try_head_rows(self.compressed, self.cache)
        if placed is not None:
            return placed
        slots = [s.pages.slots(s.extent.start, s.extent.num_queries) for s in self.compressed]
        first = self.compressed[0].extent.row
        return HeadRows(slice(first, self.num_rows), torch.cat(slots, dim=1).to(device))

    def _add_run(self, count: int, columns: AdapterColumns | None) -> None:
        """Count rows on; join them to the run before if that is of the same adapter."""
        start, self.num_rows = self.num_rows, self.num_rows + count
        if columns is None:
            return
        last = self.runs[-1] if self.runs else None
        if last is not None and last.stop == start and last.columns == columns:
            last.stop = self.num_rows
        else:
            self.runs.append(AdapterRun(start, self.num_rows, columns))


def placement(row: InferenceRow) -> tuple[bool, int]:
    """Compressed sequences last; spans of one adapter side by side, so that runs are long."""
    offset = -1 if row.columns is None else row.columns.offset
    return row.sequence.layout is not None, offset
