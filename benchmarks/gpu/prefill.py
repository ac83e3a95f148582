"""Prompts through the model runner, as a share of the GEMM rate."""

from __future__ import annotations

from benchmarks.gpu.ceilings import gemm_flop_per_s
from benchmarks.gpu.random_model import random_decoder
from benchmarks.gpu.setting import Figures, Setting, linear_parameters
from scheduler.domain.plan import Span
from scheduler.domain.request import RequestBody, SamplingParams, Sequence
from workers.batch_builder import InferenceRow
from workers.kv_cache import KVCache
from workers.model_runner import ModelRunner

PAGE = 32


def measure(setting: Setting) -> Figures:
    """Tokens a second of one whole prompt a step; only products of the linears are counted."""
    rate, tokens = gemm_flop_per_s(setting), 64 if setting.is_tiny else 4096
    result: Figures = {}
    for shape in setting.models:
        decoder = random_decoder(shape, setting, 0)
        blocks = -(-tokens // PAGE)
        cache = KVCache(decoder.config, 1 + blocks, PAGE, setting.dtype, setting.device)
        runner = ModelRunner(decoder, cache)
        row = prompt_row(tokens, blocks)
        step_s = setting.time_s(lambda runner=runner, row=row: runner.run([row], []))  # type: ignore[misc]
        flop = 2 * linear_parameters(decoder.config) * tokens
        result[shape] = {
            "tokens_per_s": tokens / step_s,
            "share_of_gemm_rate": flop / step_s / rate,
        }
        del decoder, cache, runner
    return result


def prompt_row(tokens: int, blocks: int) -> InferenceRow:
    """A whole prompt in one span."""
    body = RequestBody(
        request_id="r",
        tenant_id="t",
        base_model="m",
        prompt_token_ids=tuple([2] * tokens),
        sampling=SamplingParams(temperature=0),
    )
    sequence = Sequence(body, 0, list(body.prompt_token_ids), 0.0)
    sequence.block_table = list(range(1, 1 + blocks))
    return InferenceRow(Span(sequence.id, 0, tokens), sequence, None)
