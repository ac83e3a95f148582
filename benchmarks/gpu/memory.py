"""Memory of training: bytes by token, and the longest example that fits the card.

bytes by token   what one more token takes at the peak of a training step: two lengths are run, and
                 their difference is divided. What does not grow with the example is no part of it.
longest          of rows that peft trains in full; ours is the longest whose last window runs
                 forward and last range back, which is when most is held
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from benchmarks.gpu.card_memory import Search, is_within_memory, peak_bytes, release
from benchmarks.gpu.peers import PeftTraining
from benchmarks.gpu.random_model import random_decoder
from benchmarks.gpu.setting import Figures, Setting
from benchmarks.gpu.training_run import TrainingRun
from workers.activations import SaveLevel
from workers.decoder import Decoder

LENGTHS = (2048, 6144)
SEARCH = Search(grain=2048, start=32_768, most=1 << 19, seconds=7.0)
TINY_LENGTHS = (32, 64)
TINY_SEARCH = Search(grain=16, start=32, most=128, seconds=1.0)
FOR_LONG = (SaveLevel.INPUTS, SaveLevel.WINDOW_OUTER)


def measure(setting: Setting) -> Iterator[Figures]:
    """Ours at each save level, then peft with and without checkpointing, on the largest shape."""
    search = TINY_SEARCH if setting.is_tiny else SEARCH
    decoder = random_decoder(setting.largest, setting, 1, positions=search.most)
    yield {"model": setting.largest}
    yield from ours(setting, decoder, search)
    del decoder
    release(setting)
    for name, is_checkpointed in {"peft": False, "peft, checkpointed": True}.items():
        peft = PeftTraining(setting, is_checkpointed=is_checkpointed)
        yield {name: by_token(setting, peft.step)}
        if is_checkpointed:
            yield {f"longest, {name}": search.run(fitting(setting, peft.step))}
        del peft
        release(setting)


def ours(setting: Setting, decoder: Decoder, search: Search) -> Iterator[Figures]:
    """Bytes by token at every save level, and the longest example of those for long ones."""

    def step(level: SaveLevel, tokens: int) -> None:
        TrainingRun(decoder, setting, level, tokens).step()

    def heaviest(level: SaveLevel, tokens: int) -> None:
        TrainingRun(decoder, setting, level, tokens).run_heaviest()

    for level in SaveLevel:
        yield {level.value: by_token(setting, partial(step, level))}
    for level in FOR_LONG:
        found = search.run(fitting(setting, partial(heaviest, level)))
        yield {f"longest, {level.value}": found}


def by_token(setting: Setting, step: Callable[[int], None]) -> Figures:
    """Bytes by token between two lengths, and the peak at the longer; None: out of memory."""
    short, long = TINY_LENGTHS if setting.is_tiny else LENGTHS
    step(short)  # what is allocated once has been
    at_short, at_long = (peak_bytes(setting, partial(step, tokens)) for tokens in (short, long))
    if at_short is None or at_long is None:
        return {"bytes_per_token": None, "peak_gb": None}
    return {"bytes_per_token": (at_long - at_short) / (long - short), "peak_gb": at_long / 1e9}


def fitting(setting: Setting, step: Callable[[int], None]) -> Callable[[int], bool]:
    """Whether a step of so many tokens fits."""
    return lambda tokens: is_within_memory(setting, partial(step, tokens))
