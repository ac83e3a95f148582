"""A step of single tokens in buffers of fixed size, as a CUDA graph needs it.

One copy fills all numbers of a step. Rows that pad a bucket write to no page, and tiles that pad
its adapters are empty, so that their number never changes.

Shape suffixes: B rows of a bucket, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scheduler.domain.request import Sequence
from workers.adapter_rows import AdapterRows, AdapterRun
from workers.attention import Extent
from workers.batch import CacheRows, ForwardBatch
from workers.batch_builder import InferenceRow
from workers.decoder import Decoder
from workers.device_copy import upload
from workers.gpu_attention import GpuSpans, head_shape, paged_place
from workers.kernels.device_kernels import gpu_kernels_for
from workers.kernels.segments import SMALLEST_TILE, RunTable, tile_places
from workers.kernels.span_tiles import SpanTiles
from workers.kv_cache import KVCache
from workers.newest_draw import NewestDraw

USUAL_KEYS = 4096  # splits are chosen for contexts of this length
NO_BLOCK = -1
NO_ROW = 1 << 40


@dataclass(frozen=True, slots=True)
class StepInputs:
    """What a captured step reads, as views of one int64 buffer, and its block tables."""

    numbers: Tensor
    tables: Tensor
    rows_B4: Tensor
    spans_B4: Tensor
    runs_B5: Tensor
    tiles_B2: Tensor

    @classmethod
    def allocate(cls, rows: int, table_entries: int, device: torch.device) -> StepInputs:
        """Inputs of a bucket, all of whose rows pad it."""
        numbers = torch.zeros(rows * 15, dtype=torch.int64, device=device)
        parts = numbers.split([rows * 4, rows * 4, rows * 5, rows * 2])
        tables = torch.zeros(table_entries, dtype=torch.int32, device=device)
        rows_B4, spans, runs, tiles = (part.view(rows, -1) for part in parts)
        return cls(numbers, tables, rows_B4, spans, runs, tiles)

    def fill(self, numbers: list[int], tables: list[int]) -> None:
        """Copy a step's numbers over, in stream order."""
        device = self.numbers.device
        self.numbers.copy_(upload(numbers, torch.int64, device))
        self.tables[: len(tables)].copy_(upload(tables, torch.int32, device))


class PaddedStep:
    """Fills and runs the steps of one decoder over one cache."""

    def __init__(self, decoder: Decoder, cache: KVCache, newest_draw: NewestDraw) -> None:
        self.decoder = decoder
        self.cache = cache
        self.newest_draw = newest_draw

    def inputs(self, bucket: int) -> StepInputs:
        """Fresh inputs of a bucket, all of whose rows pad it."""
        entries = bucket * -(-self.decoder.config.max_model_len // self.cache.block_size)
        inputs = StepInputs.allocate(bucket, entries, self.cache.keys.device)
        inputs.fill(*self.numbers([], bucket))
        return inputs

    def run(self, inputs: StepInputs, rank: int) -> Tensor:
        """Logits (B, V) of what the inputs hold; adapters of up to `rank`, none of 0."""
        token_ids, positions, blocks, offsets = inputs.rows_B4.T.contiguous()
        cos, sin = self.decoder.rotary.at(positions)
        table = RunTable(inputs.runs_B5, inputs.tiles_B2, SMALLEST_TILE, rank) if rank else None
        batch = ForwardBatch(
            token_ids=self.newest_draw.resolve(token_ids),
            cos=cos,
            sin=sin,
            adapters=AdapterRows([], table),
            windows=[],
            groups=[self._spans(inputs)],
            cache=self.cache,
            cache_rows=CacheRows(slice(0, len(token_ids)), blocks, offsets),
        )
        return self.decoder.logits(self.decoder.forward(batch))

    def _spans(self, inputs: StepInputs) -> GpuSpans:
        kernels, config = gpu_kernels_for(self.cache.keys), self.decoder.config
        assert kernels is not None
        shape, count = head_shape(config, None), len(inputs.spans_B4)
        queries = shape.tile_queries(1)
        place = torch.arange(count, device=self.cache.keys.device)
        tiles = torch.stack((place, torch.zeros_like(place)), dim=1)
        cut = SpanTiles(inputs.spans_B4, tiles, queries, shape.splits(count, queries, USUAL_KEYS))
        return GpuSpans(kernels, config, cut, paged_place(self.cache, inputs.tables))

    def numbers(self, rows: list[InferenceRow], bucket: int) -> tuple[list[int], list[int]]:
        """A step's inputs in the order of StepInputs, padded to a bucket; and its block tables."""
        size = self.cache.block_size
        numbers: list[int] = []
        spans: list[int] = []
        tables: list[int] = []
        for place, row in enumerate(rows):
            sequence, position = row.sequence, row.span.start
            block = sequence.block_table[position // size]
            numbers += (sequence.token_ids[position], position, block, position % size)
            extent = Extent(place, 1, position)
            spans += (extent.row, extent.num_queries, extent.start, len(tables))
            tables += _used_blocks(sequence, extent, size)
        for place in range(len(rows), bucket):
            numbers += (0, 0, NO_BLOCK, 0)
            spans += (place, 1, 0, 0)
        return numbers + spans + self._adapters(rows, bucket), tables or [0]

    def _adapters(self, rows: list[InferenceRow], bucket: int) -> list[int]:
        """Runs and tiles, each padded to one for every row."""
        runs = adapter_runs(rows)
        starts, stops = [run.start for run in runs], [run.stop for run in runs]
        tiles = tile_places(starts, stops, SMALLEST_TILE)
        numbers: list[int] = []
        for run in runs:
            columns = run.columns
            targets = self.decoder.arena.targets(columns)
            numbers += (run.start, run.stop, columns.offset, columns.rank, targets)
        numbers += [0] * (5 * (bucket - len(runs)))
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


def _used_blocks(sequence: Sequence, extent: Extent, block_size: int) -> list[int]:
    return sequence.block_table[: -(-extent.num_keys // block_size)]
