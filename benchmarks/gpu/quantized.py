"""Decode and training over a base whose linears are held in int8, int4 or fp8; the largest shape.

`weights_gb` is what a step reads of them; decode stands beside the roofline of these bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from benchmarks.gpu.card_memory import release
from benchmarks.gpu.ceilings import Ceilings
from benchmarks.gpu.decode import DecodeRunner
from benchmarks.gpu.random_model import random_decoder, token_bytes
from benchmarks.gpu.setting import Figures, Setting
from benchmarks.gpu.training_run import TrainingRun
from workers.activations import SaveLevel
from workers.decoder import Decoder
from workers.weight_format import NO_FORMAT

FORMATS = (NO_FORMAT, "int8", "int4", "fp8")
BATCHES, TINY_BATCHES = (1, 16, 64), (1, 4)


def measure(setting: Setting) -> Iterator[Figures]:
    """Every format; or that torchao is missing."""
    if find_spec("torchao") is None:
        yield {"missing": "torchao"}
        return
    ceilings = Ceilings.of(setting)
    yield {"model": setting.largest}
    for name in FORMATS:
        decoder = random_decoder(setting.largest, setting, 1, weight_format=name)
        yield {name: format_figures(setting, decoder, ceilings)}
        del decoder
        release(setting)


def format_figures(setting: Setting, decoder: Decoder, ceilings: Ceilings) -> Figures:
    """One format."""
    batches, tokens = (TINY_BATCHES, 64) if setting.is_tiny else (BATCHES, 2048)
    num_bytes = read_bytes(decoder)
    figures: Figures = {"weights_gb": num_bytes / 1e9}
    runner = DecodeRunner(decoder, setting, max(batches))
    cached = token_bytes(decoder.config, setting) * runner.context
    for batch in batches:
        step_s = setting.time_s(runner.step_of(batch, 0))
        bound_s = ceilings.seconds(num_bytes + batch * cached, 0)
        figures[f"decode, batch {batch}"] = {
            "step_ms": step_s * 1e3,
            "times_roofline": step_s / bound_s,
        }
    train = TrainingRun(decoder, setting, SaveLevel.FULL, tokens)
    return figures | {"train_tokens_per_s": tokens / setting.time_s(train.step, warm=1)}


def read_bytes(decoder: Decoder) -> int:
    """Weights that a step reads: every layer's, as they are held, and the vocabulary's."""
    weights = decoder.weights
    layers = sum(linear.num_bytes for layer in weights.layers for linear in layer.linears)
    return layers + weights.lm_head.num_bytes
