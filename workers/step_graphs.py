"""Decode steps as CUDA graphs: one launch for all that a batch of single tokens runs.

There is a graph for each shape of step: a bucket of rows and of ranks, with or without middles of
adapters, compressed sequences and policies that watch. The usual ones are captured before anybody
is served, others when they are first needed.

Shape suffixes: B rows of a bucket, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Protocol

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
    """The inputs that a step reads, the outputs that it writes, and what makes it run again."""

    inputs: StepInputs
    outputs: StepOutputs
    replay: Callable[[], None]


class Capture(Protocol):
    """Makes a step out of what runs it."""

    def __call__(self, inputs: StepInputs, run: Callable[[], StepOutputs]) -> CapturedStep:
        """`run` reads `inputs` and always does the same."""


class CudaCapture:
    """Captures into graphs that share their memory: one of them runs at a time.

    A replayed kernel has the priority of the stream that it was captured on.
    """

    def __init__(self, device: torch.device) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = step_stream(device)

    def __call__(self, inputs: StepInputs, run: Callable[[], StepOutputs]) -> CapturedStep:
        """See Capture."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):  # kernels are compiled, and libraries set up
            run()
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
            outputs = run()
        return CapturedStep(inputs, outputs, graph.replay)


class StepGraphs:
    """Captured decode steps of one decoder over one cache."""

    def __init__(self, step: PaddedStep, capture: Capture) -> None:
        self.step = step
        self._capture = capture
        self._steps: dict[StepShape, CapturedStep] = {}

    @classmethod
    def try_of(cls, decoder: Decoder, cache: KVCache, newest_draw: NewestDraw) -> StepGraphs | None:
        """Graphs for a decoder; None where it does not run on CUDA with kernels."""
        if not cache.keys.is_cuda or gpu_kernels_for(cache.keys) is None:
            return None
        return cls(PaddedStep(decoder, cache, newest_draw), CudaCapture(cache.keys.device))

    def prepare(self, num_rows: int, rank: int) -> None:
        """Capture all steps of up to so many rows, with plain adapters of up to that rank."""
        for bucket, most in product(_up_to(BUCKETS, num_rows), _up_to(RANKS, rank)):
            self._step_of(StepShape(bucket, most))

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
        step = self._step_of(shape)
        step.inputs.fill(*self.step.numbers(rows, shape.bucket))
        step.replay()
        self.step.show_queries(rows, step.outputs.queries)
        return step.outputs.logits_BV[: len(rows)]

    def _step_of(self, shape: StepShape) -> CapturedStep:
        if shape not in self._steps:
            inputs = self.step.inputs(shape)
            self._steps[shape] = self._capture(inputs, lambda: self.step.run(inputs, shape))
        return self._steps[shape]


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


def _up_to(sizes: tuple[int, ...], wanted: int) -> list[int]:
    """The sizes below, and the first that holds `wanted`; all where none does."""
    return [size for place, size in enumerate(sizes) if place == 0 or sizes[place - 1] < wanted]
