"""Quantized bases beside the plain one: decode against the bytes that are held, and training.

weights_gb        what a step reads: the layers' linears in their format, the vocabulary's wide
training_peak_gb  what a training step takes beside the weights, blocks that are widened included

Formats need torchao; without it only the plain base is measured.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.gpu.card_memory import peak_bytes, release
from benchmarks.gpu.ceilings import Ceilings
from benchmarks.gpu.decode import DecodeRunner
from benchmarks.gpu.random_model import held_bytes, random_decoder
from benchmarks.gpu.setting import Figures, Setting
from benchmarks.gpu.training_run import TrainingRun
from scheduler.devices import BYTES_IN_FORMAT
from workers.activations import SaveLevel
from workers.decoder import Decoder
from workers.weight_format import NO_FORMAT

FORMATS = (NO_FORMAT, *BYTES_IN_FORMAT)
BATCHES = (1, 16, 64)
TINY_BATCHES = (1, 4)


def measure(setting: Setting) -> Iterator[Figures]:
    """The largest shape in every format."""
    ceilings = Ceilings.of(setting)
    yield {"model": setting.largest}
    for name in FORMATS:
        decoder = random_decoder(setting.largest, setting, 1, weight_format=name)
        figures: Figures = {"weights_gb": held_bytes(decoder.weights) / 1e9}
        figures |= {"decode": decode_figures(setting, decoder, ceilings)}
        yield {name: figures}
        yield {name: figures | training_figures(setting, decoder)}
        del decoder
        release(setting)


def decode_figures(setting: Setting, decoder: Decoder, ceilings: Ceilings) -> list[Figures]:
    """Steps of several batches without adapters."""
    batches = TINY_BATCHES if setting.is_tiny else BATCHES
    runner = DecodeRunner(decoder, setting, max(batches))
    return [runner.figures(batch, 0, ceilings) for batch in batches]


def training_figures(setting: Setting, decoder: Decoder) -> Figures:
    """One LoRA on all linears, examples of one length at the level that keeps all."""
    tokens = 64 if setting.is_tiny else 2048
    train = TrainingRun(decoder, setting, SaveLevel.FULL, tokens)
    rate = tokens / setting.time_s(train.step)
    peak = peak_bytes(setting, train.step)
    return {
        "train_tokens_per_s": rate,
        "training_peak_gb": None if peak is None else peak / 1e9,
    }
