"""A step of single tokens in buffers of fixed size, as a CUDA graph needs it.

One copy fills all numbers of a step. Rows that pad a bucket read a block of zeros and write to no
page, and tiles that pad its adapters are empty, so that their number never changes. Rows of
compressed sequences bring the addresses of their tables; all rows still attend in one launch.

Shape suffixes: B rows of a bucket, F numbers of a run, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from scheduler.domain.request import Sequence
from workers.adapter_rows import AdapterRows, AdapterRun
from workers.batch import CacheRows, ForwardBatch
from workers.batch_builder import InferenceRow
from workers.decoder import Decoder
from workers.device_copy import upload
from workers.gpu_attention import GpuSpans, head_shape, paged_place
from workers.gpu_heads import GpuHeadRows, heads_place
from workers.head_pages import HeadPages
from workers.held_slots import HeldSlots
from workers.kernels.device_kernels import gpu_kernels_for
from workers.kernels.segments import RUN_FIELDS, SMALLEST_TILE, RunTable, tile_places
from workers.kernels.span_tiles import KeyPlace, SpanTiles
from workers.kv_cache import NULL_BLOCK, KVCache
from workers.newest_draw import NewestDraw

USUAL_KEYS = 8192  # splits are chosen for contexts of this length
NO_BLOCK = -1
NO_ROW = 1 << 40
UNIFORM = (0, 0, 0, 0, 0)  # in place of a compressed sequence's addresses


@dataclass(frozen=True, slots=True)
class StepShape:
    """What a captured step is captured for.

    Attributes:
        bucket: rows; some may pad it.
        rank: of the largest adapter; 0: there is none.
        has_middles: whether some of the adapters have one.
        has_heads: whether some of the sequences are compressed.
        is_watched: whether KV policies want to see queries.
    """

    bucket: int
    rank: int = 0
    has_middles: bool = False
    has_heads: bool = False
    is_watched: bool = False


@dataclass(frozen=True, slots=True)
class StepInputs:
    """What a captured step reads, as views of one int64 buffer, and its block tables."""

    numbers: Tensor
    tables: Tensor
    rows_B4: Tensor
    spans_B4: Tensor
    heads_B5: Tensor
    runs_BF: Tensor
    tiles_B2: Tensor

    @classmethod
    def allocate(cls, rows: int, table_entries: int, device: torch.device) -> StepInputs:
        """Inputs of a bucket, with numbers yet to be filled in."""
        widths = (4, 4, len(UNIFORM), RUN_FIELDS, 2)
        numbers = torch.zeros(rows * sum(widths), dtype=torch.int64, device=device)
        tables = torch.zeros(table_entries, dtype=torch.int32, device=device)
        parts = numbers.split([rows * width for width in widths])
        return cls(numbers, tables, *(part.view(rows, -1) for part in parts))

    def fill(self, numbers: list[int], tables: list[int]) -> None:
        """Copy a step's numbers over, in stream order."""
        device = self.numbers.device
        self.numbers.copy_(upload(numbers, torch.int64, device))
        self.tables[: len(tables)].copy_(upload(tables, torch.int32, device))


@dataclass(frozen=True, slots=True)
class StepOutputs:
    """What a captured step writes, again and again in the same place.

    Attributes:
        queries: (B, H, D) by layer, rotated; empty where nobody watches.
    """

    logits_BV: Tensor
    queries: list[Tensor]


@dataclass(frozen=True, slots=True)
class KeptQueries:
    """Holds on to every layer's queries until a step has run."""

    by_layer: list[Tensor]

    def see(self, layer: int, q_THD: Tensor) -> None:
        """See SeesQueries."""
        assert layer == len(self.by_layer)
        self.by_layer.append(q_THD)


class PaddedStep:
    """Fills and runs the steps of one decoder over one cache."""

    def __init__(self, decoder: Decoder, cache: KVCache, newest_draw: NewestDraw) -> None:
        self.decoder = decoder
        self.cache = cache
        self.newest_draw = newest_draw

    def inputs(self, shape: StepShape) -> StepInputs:
        """Fresh inputs, all of whose rows pad the bucket."""
        entries = shape.bucket * -(-self.decoder.config.max_model_len // self.cache.block_size)
        inputs = StepInputs.allocate(shape.bucket, entries + 1, self.cache.keys.device)
        inputs.fill(*self.numbers([], shape.bucket))
        return inputs

    def run(self, inputs: StepInputs, shape: StepShape) -> StepOutputs:
        """Run what the inputs hold."""
        token_ids, positions, blocks, offsets = inputs.rows_B4.T.contiguous()
        cos, sin = self.decoder.rotary.at(positions)
        adapters = (inputs.runs_BF, inputs.tiles_B2, SMALLEST_TILE, shape.rank, shape.has_middles)
        queries = KeptQueries([])
        batch = ForwardBatch(
            token_ids=self.newest_draw.resolve(token_ids),
            cos=cos,
            sin=sin,
            adapters=AdapterRows([], RunTable(*adapters) if shape.rank else None),
            windows=[],
            groups=[],
            cache=self.cache,
            watched=[queries] if shape.is_watched else [],
        )
        if shape.has_heads:
            self._place_heads(batch, inputs)
        else:
            batch.groups = [self._spans(inputs, paged_place(self.cache, inputs.tables))]
            batch.cache_rows = CacheRows(slice(0, shape.bucket), blocks, offsets)
        logits = self.decoder.logits(self.decoder.forward(batch))
        return StepOutputs(logits, queries.by_layer)

    def _place_heads(self, batch: ForwardBatch, inputs: StepInputs) -> None:
        """Rows of both layouts attend in one launch a layer, and are stored in another."""
        spans = self._spans(inputs, heads_place(self.cache, inputs.heads_B5, inputs.tables))
        batch.groups = [spans]
        batch.head_rows = GpuHeadRows(spans.kernels, inputs.spans_B4, 1, spans.place)

    def _spans(self, inputs: StepInputs, place: Callable[[int], KeyPlace]) -> GpuSpans:
        kernels, config = gpu_kernels_for(self.cache.keys), self.decoder.config
        assert kernels is not None
        shape, count = head_shape(config, None), len(inputs.spans_B4)
        queries = shape.tile_queries(1)
        first = torch.arange(count, device=self.cache.keys.device)
        tiles = torch.stack((first, torch.zeros_like(first)), dim=1)
        splits = shape.splits(count, queries, min(USUAL_KEYS, config.max_model_len))
        return GpuSpans(kernels, config, SpanTiles(inputs.spans_B4, tiles, queries, splits), place)

    def show_queries(self, rows: list[InferenceRow], queries: list[Tensor]) -> None:
        """Let KV policies see the rows' queries of a step that has run."""
        for place, row in enumerate(rows):
            if row.watch is not None:
                own = torch.stack([layer[place] for layer in queries])
                position = row.span.start
                held = HeldSlots.of(row.sequence, position + 1, self.cache)
                row.watch.take(own, position, held)

    def numbers(self, rows: list[InferenceRow], bucket: int) -> tuple[list[int], list[int]]:
        """A step's inputs in the order of StepInputs, padded to a bucket; and its block tables."""
        tokens: list[int] = []
        spans: list[int] = []
        heads: list[int] = []
        tables: list[int] = []
        size = self.cache.block_size
        for place, row in enumerate(rows):
            sequence, position = row.sequence, row.span.start
            blocks = self._blocks(sequence, position)
            block = blocks[-1] if blocks else NO_BLOCK
            tokens += (sequence.token_ids[position], position, block, position % size)
            spans += (place, 1, position, len(tables))
            heads += self._addresses(sequence, position)
            tables += blocks
        for place in range(len(rows), bucket):
            tokens += (0, 0, NO_BLOCK, 0)
            spans += (place, 1, 0, len(tables))
            heads += UNIFORM
        numbers = tokens + spans + heads + self._adapters(rows, bucket)
        return numbers, [*tables, NULL_BLOCK]

    def _blocks(self, sequence: Sequence, position: int) -> list[int]:
        """Blocks up to a position's, where a page of every head lies in each of them."""
        if sequence.layout is not None:
            return []
        return sequence.block_table[: position // self.cache.block_size + 1]

    def _addresses(self, sequence: Sequence, position: int) -> tuple[int, int, int, int, int]:
        """Where heads look their pages up, which reach to a position."""
        layout = sequence.layout
        if layout is None:
            return UNIFORM
        assert isinstance(layout, HeadPages)
        layout.reserve(position + 1, sequence.block_table)
        return layout.tables_on(self.cache.keys.device).line

    def _adapters(self, rows: list[InferenceRow], bucket: int) -> list[int]:
        """Runs and tiles, each padded to one for every row."""
        runs = adapter_runs(rows)
        starts, stops = [run.start for run in runs], [run.stop for run in runs]
        tiles = tile_places(starts, stops, SMALLEST_TILE)
        numbers: list[int] = []
        for run in runs:
            numbers += (run.start, run.stop, *self.decoder.arena.run_numbers(run.columns))
        numbers += [0] * (RUN_FIELDS * (bucket - len(runs)))
        for tile in tiles:
            numbers += tile
        return numbers + [0, NO_ROW] * (bucket - len(tiles))


def adapter_runs(rows: list[InferenceRow]) -> list[AdapterRun]:
    """Runs of single-token rows that lie by placement."""
    runs: list[AdapterRun] = []
    for place, row in enumerate(rows):
        if row.columns is None:
            continue
        if runs and runs[-1].stop == place and runs[-1].columns == row.columns:
            runs[-1].stop = place + 1
        else:
            runs.append(AdapterRun(place, place + 1, row.columns))
    return runs
