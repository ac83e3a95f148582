"""Decode steps of the model runner against the roofline of the same run.

A step is issued before the tokens of the one before are read, as the engine does it.

roofline  the larger of bytes that a step must read (weights, adapters in use, K/V) at the copy
          bandwidth, and products at the GEMM rate
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from benchmarks.gpu.ceilings import copy_bytes_per_s, gemm_flop_per_s
from benchmarks.gpu.random_model import adapter_bytes, adapter_columns, random_decoder
from benchmarks.gpu.setting import Figures, Setting, linear_parameters
from scheduler.domain.plan import Span
from scheduler.domain.request import RequestBody, SamplingParams, Sequence, unread_token
from workers.batch_builder import InferenceRow
from workers.decoder import Decoder
from workers.drawn_tokens import DrawnTokens
from workers.kv_cache import KVCache
from workers.model_runner import ModelRunner

PAGE = 32


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Bytes and operations a second, at most."""

    bytes_per_s: float
    flop_per_s: float


def measure(setting: Setting) -> Figures:
    """Step times by model, batch and adapters, and how far they are from the roofline."""
    ceilings = Ceilings(copy_bytes_per_s(setting), gemm_flop_per_s(setting))
    batches = (1, 4) if setting.is_tiny else (1, 16, 64, 256)
    adapters = (0, 2) if setting.is_tiny else (0, 1, 64)
    result: Figures = {}
    for shape in setting.models:
        decoder = random_decoder(shape, setting, max(adapters))
        runner = DecodeRunner(decoder, setting, max(batches))
        result[shape] = [
            runner.figures(batch, count, ceilings)
            for batch, count in itertools.product(batches, adapters)
        ]
        del decoder, runner
    return result


class DecodeRunner:
    """Sequences with a context of random keys, all decoding."""

    def __init__(self, decoder: Decoder, setting: Setting, most: int) -> None:
        self.decoder, self.setting = decoder, setting
        self.context = 60 if setting.is_tiny else 512
        self.blocks = -(-2 * self.context // PAGE)
        cache = KVCache(decoder.config, 1 + most * self.blocks, PAGE, setting.dtype, setting.device)
        cache.storage.normal_()
        self.runner = ModelRunner(decoder, cache)
        self.unread: DrawnTokens | None = None

    def figures(self, batch: int, num_adapters: int, ceilings: Ceilings) -> dict[str, float]:
        """A step's time beside its roofline."""
        self.unread, sequences = None, [self._sequence(place) for place in range(batch)]
        step_s = self.setting.time_s(lambda: self._step(sequences, num_adapters))
        bound_s = self._roofline_s(batch, num_adapters, ceilings)
        return {
            "batch": batch,
            "adapters": num_adapters,
            "step_ms": step_s * 1e3,
            "tokens_per_s": batch / step_s,
            "roofline_ms": bound_s * 1e3,
            "times_roofline": step_s / bound_s,
        }

    def _step(self, sequences: list[Sequence], num_adapters: int) -> None:
        rows = []
        for place, sequence in enumerate(sequences):
            columns = adapter_columns(place % num_adapters) if num_adapters else None
            span = Span(sequence.id, sequence.num_computed_tokens, 1)
            rows.append(InferenceRow(span, sequence, columns))
        drawn, before = self.runner.run(rows, []).drawn, self.unread
        assert drawn is not None
        for row, lead in enumerate(drawn.leads):
            lead.token_ids[-1] = unread_token(row)
        if before is not None:
            before.read()
        self.unread = drawn

    def _sequence(self, place: int) -> Sequence:
        body = RequestBody(
            request_id=f"r{place}",
            tenant_id="t",
            base_model="m",
            prompt_token_ids=tuple([2] * self.context),
            sampling=SamplingParams(temperature=0, ignore_eos=True),
        )
        sequence = Sequence(body, 0, list(body.prompt_token_ids), 0.0)
        sequence.num_computed_tokens = self.context - 1
        first = 1 + place * self.blocks
        sequence.block_table = list(range(first, first + self.blocks))
        return sequence

    def _roofline_s(self, batch: int, num_adapters: int, ceilings: Ceilings) -> float:
        config, item = self.decoder.config, self.setting.dtype.itemsize
        parameters = linear_parameters(config) + config.vocab_size * config.hidden_size
        cached = 2 * config.num_layers * config.kv_size * self.context * batch
        num_bytes = (parameters + cached) * item
        num_bytes += min(batch, num_adapters) * adapter_bytes(self.decoder)
        flop = 2 * parameters * batch
        return max(num_bytes / ceilings.bytes_per_s, flop / ceilings.flop_per_s)
