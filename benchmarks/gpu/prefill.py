"""Prompts through the model runner, as a share of the GEMM rate."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.gpu.ceilings import gemm_flop_per_s
from benchmarks.gpu.random_model import random_decoder
from benchmarks.gpu.sequences import PAGE, sequence_of
from benchmarks.gpu.setting import Figures, Setting, linear_parameters
from scheduler.domain.plan import Span
from workers.batch_builder import InferenceRow
from workers.decoder import Decoder
from workers.kv_cache import KVCache
from workers.model_runner import ModelRunner


def measure(setting: Setting) -> Iterator[Figures]:
    """Tokens a second of one whole prompt a step; only products of the linears are counted."""
    rate, tokens = gemm_flop_per_s(setting), 64 if setting.is_tiny else 4096
    for shape in setting.models:
        decoder = random_decoder(shape, setting, 0)
        step_s = setting.time_s(PromptRunner(decoder, setting, tokens).step)
        flop = 2 * linear_parameters(decoder.config) * tokens
        yield {shape: {"tokens_per_s": tokens / step_s, "share_of_gemm_rate": flop / step_s / rate}}
        del decoder


class PromptRunner:
    """A runner whose cache holds one prompt."""

    def __init__(self, decoder: Decoder, setting: Setting, tokens: int) -> None:
        blocks = -(-tokens // PAGE)
        cache = KVCache(decoder.config, 1 + blocks, PAGE, setting.dtype, setting.device)
        self.runner = ModelRunner(decoder, cache)
        sequence = sequence_of(0, tokens, list(range(1, 1 + blocks)))
        self.row = InferenceRow(Span(sequence.id, 0, tokens), sequence, None)

    def step(self) -> None:
        """The whole prompt at once."""
        self.runner.run([self.row], [])
