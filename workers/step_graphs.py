"""Decode steps as CUDA graphs: one launch for all that a batch of single tokens runs.

A graph is captured for each shape of step when it is first needed: a bucket of rows and of ranks,
with or without middles of adapters, compressed sequences and policies that watch. Nothing here runs
without a card.

Shape suffixes: B rows of a bucket, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workers.batch_builder import InferenceRow
from workers.decoder import Decoder
from workers.kernels.device_kernels import gpu_kernels_for
from workers.kv_cache import KVCache
from workers.lane_device import step_stream
from workers.newest_draw import NewestDraw
from workers.padded_step import PaddedStep, StepInputs, StepOutputs, StepShape

BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
RANKS = (0, 16, 32, 64, 128)


@dataclass(frozen=True, slots=True)
class CapturedStep:
    """One graph, the inputs that it reads and the outputs that it writes."""

    inputs: StepInputs
    graph: torch.cuda.CUDAGraph
    outputs: StepOutputs


class StepGraphs:
    """Captured decode steps of one decoder over one cache."""

    def __init__(self, decoder: Decoder, cache: KVCache, newest_draw: NewestDraw) -> None:
        self.step = PaddedStep(decoder, cache, newest_draw)
        self._steps: dict[StepShape, CapturedStep] = {}
        self._pool = torch.cuda.graph_pool_handle()
        # A replayed kernel has the priority of the stream that it was captured on.
        self._stream = step_stream(cache.keys.device)

    @classmethod
    def try_of(cls, decoder: Decoder, cache: KVCache, newest_draw: NewestDraw) -> StepGraphs | None:
        """Graphs for a decoder; None where it does not run on CUDA with kernels."""
        has_kernels = gpu_kernels_for(cache.keys) is not None
        return cls(decoder, cache, newest_draw) if cache.keys.is_cuda and has_kernels else None

    def covers(self, rows: list[InferenceRow]) -> bool:
        """Whether a batch is single tokens only, few enough, of ranks that are captured."""
        return len(rows) <= BUCKETS[-1] and all(
            row.span.count == 1
            and row.completes
            and not row.sequence.request.sampling.prompt_logprobs
            and (row.columns is None or row.columns.rank <= RANKS[-1])
            for row in rows
        )

    def logits(self, rows: list[InferenceRow]) -> Tensor:
        """Logits of a batch that is covered, (rows, V), until the next step; rows by placement."""
        shape = shape_of(rows)
        if shape not in self._steps:
            self._steps[shape] = self._capture(shape)
        step = self._steps[shape]
        step.inputs.fill(*self.step.numbers(rows, shape.bucket))
        step.graph.replay()
        self.step.show_queries(rows, step.outputs.queries)
        return step.outputs.logits_BV[: len(rows)]

    def _capture(self, shape: StepShape) -> CapturedStep:
        inputs = self.step.inputs(shape)
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):  # kernels are compiled, and libraries set up
            self.step.run(inputs, shape)
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
            outputs = self.step.run(inputs, shape)
        return CapturedStep(inputs, graph, outputs)


def shape_of(rows: list[InferenceRow]) -> StepShape:
    """The captured step that a batch takes."""
    own = [row.columns for row in rows if row.columns is not None]
    return StepShape(
        _at_least(BUCKETS, len(rows)),
        _at_least(RANKS, max((columns.rank for columns in own), default=0)),
        has_middles=any(columns.middle for columns in own),
        has_heads=any(row.sequence.layout is not None for row in rows),
        is_watched=any(row.watch is not None for row in rows),
    )


def _at_least(sizes: tuple[int, ...], wanted: int) -> int:
    return next(size for size in sizes if size >= wanted)
