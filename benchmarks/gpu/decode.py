"""Decode steps of the model runner against the roofline of the same run.

roofline  the larger of bytes that a step must read (weights, adapters in use, K/V) at the copy
          bandwidth, and products at the GEMM rate
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

from benchmarks.gpu.ceilings import Ceilings
from benchmarks.gpu.random_model import (
    adapter_bytes,
    adapter_columns,
    random_decoder,
    token_bytes,
    weight_bytes,
)
from benchmarks.gpu.sequences import PAGE, DecodeSteps, sequence_of
from benchmarks.gpu.setting import Figures, Setting
from scheduler.domain.request import Sequence
from workers.decoder import Decoder
from workers.kv_cache import KVCache
from workers.model_runner import ModelRunner


def measure(setting: Setting) -> Iterator[Figures]:
    """Step times by model, batch and adapters, and how far they are from the roofline."""
    ceilings = Ceilings.of(setting)
    batches = (1, 4) if setting.is_tiny else (1, 16, 64, 256)
    adapters = (0, 2) if setting.is_tiny else (0, 1, 64)
    for shape in setting.models:
        decoder = random_decoder(shape, setting, max(adapters))
        runner = DecodeRunner(decoder, setting, max(batches))
        figures: list[Figures] = []
        for batch, count in itertools.product(batches, adapters):
            figures.append(runner.figures(batch, count, ceilings))
            yield {shape: figures}
        del decoder, runner


class DecodeRunner:
    """Sequences with a context of random keys, all decoding."""

    def __init__(self, decoder: Decoder, setting: Setting, most: int) -> None:
        self.decoder, self.setting = decoder, setting
        self.context = 60 if setting.is_tiny else 512
        self.blocks = -(-2 * self.context // PAGE)
        cache = KVCache(decoder.config, 1 + most * self.blocks, PAGE, setting.dtype, setting.device)
        cache.storage.normal_()
        self.runner = ModelRunner(decoder, cache)

    def figures(self, batch: int, num_adapters: int, ceilings: Ceilings) -> Figures:
        """A step's time beside its roofline."""
        step_s = self.setting.time_s(self.step_of(batch, num_adapters))
        bound_s = self._roofline_s(batch, num_adapters, ceilings)
        return {
            "batch": batch,
            "adapters": num_adapters,
            "step_ms": step_s * 1e3,
            "tokens_per_s": batch / step_s,
            "roofline_ms": bound_s * 1e3,
            "times_roofline": step_s / bound_s,
        }

    def step_of(self, batch: int, num_adapters: int) -> Callable[[], None]:
        """A step of so many sequences, which take turns with the adapters."""
        sequences = [self._sequence(place) for place in range(batch)]
        columns = [
            adapter_columns(i % num_adapters) if num_adapters else None for i in range(batch)
        ]
        return DecodeSteps(self.runner, sequences, columns).run

    def _sequence(self, place: int) -> Sequence:
        first = 1 + place * self.blocks
        blocks = list(range(first, first + self.blocks))
        return sequence_of(place, self.context, blocks, num_computed=self.context - 1)

    def _roofline_s(self, batch: int, num_adapters: int, ceilings: Ceilings) -> float:
        config, setting = self.decoder.config, self.setting
        num_bytes = weight_bytes(config, setting)
        flop = 2 * num_bytes / setting.dtype.itemsize * batch
        num_bytes += token_bytes(config, setting) * self.context * batch
        num_bytes += min(batch, num_adapters) * adapter_bytes(self.decoder)
        return ceilings.seconds(num_bytes, flop)
