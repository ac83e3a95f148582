"""Decode steps as CUDA graphs: one launch for all that a batch of single tokens runs.

A graph is captured for each bucket of rows and of ranks when it is first needed. Nothing here runs
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
from workers.newest_draw import NewestDraw
from workers.padded_step import PaddedStep, StepInputs

BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
RANKS = (0, 16, 32, 64, 128)


@dataclass(frozen=True, slots=True)
class CapturedStep:
    """One graph, the inputs that it reads and the logits (B, V) that it writes."""

    inputs: StepInputs
    graph: torch.cuda.CUDAGraph
    logits_BV: Tensor


class StepGraphs:
    """Captured decode steps of one decoder over one cache."""

    def __init__(self, decoder: Decoder, cache: KVCache, newest_draw: NewestDraw) -> None:
        self.step = PaddedStep(decoder, cache, newest_draw)
        self._steps: dict[tuple[int, int], CapturedStep] = {}
        self._pool = torch.cuda.graph_pool_handle()

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
            and row.sequence.layout is None
            and row.watch is None
            and not row.sequence.request.sampling.prompt_logprobs
            and (row.columns is None or row.columns.rank <= RANKS[-1])
            for row in rows
        )

    def logits(self, rows: list[InferenceRow]) -> Tensor:
        """Logits of a batch that is covered, (rows, V), until the next step; rows by placement."""
        ranks = [row.columns.rank for row in rows if row.columns is not None]
        key = (_at_least(BUCKETS, len(rows)), _at_least(RANKS, max(ranks, default=0)))
        if key not in self._steps:
            self._steps[key] = self._capture(*key)
        step = self._steps[key]
        step.inputs.fill(*self.step.numbers(rows, key[0]))
        step.graph.replay()
        return step.logits_BV[: len(rows)]

    def _capture(self, bucket: int, rank: int) -> CapturedStep:
        inputs = self.step.inputs(bucket)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # kernels are compiled, and libraries set up, before capture
            self.step.run(inputs, rank)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            logits = self.step.run(inputs, rank)
        return CapturedStep(inputs, graph, logits)


def _at_least(sizes: tuple[int, ...], wanted: int) -> int:
    return next(size for size in sizes if size >= wanted)
