"""What the card's benchmark says of memory: the longest length that fits, and packs at a level."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.gpu.card_memory import TOLERANCE, Search, is_within_memory
from benchmarks.gpu.random_model import random_decoder
from benchmarks.gpu.setting import Setting
from benchmarks.gpu.training_run import TrainingRun
from workers.activations import SaveLevel
from workers.decoder import Decoder

TINY = Setting(torch.device("cpu"), is_tiny=True)


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return random_decoder("tiny", TINY, 1)


@given(st.integers(1, 100_000), st.integers(1, 64), st.integers(1, 50))
def test_the_longest_that_fits_is_found_to_within_its_tolerance(
    bound: int, grain: int, start: int
) -> None:
    search = Search(grain, start * grain, most=1 << 17, seconds=10)

    found = search.run(lambda tokens: tokens <= bound)

    good, bad = found["tokens"], found["too_many"]
    assert isinstance(good, int)
    assert good % grain == 0
    assert good <= bound
    if bad is None:
        assert 2 * good > search.most
    else:
        assert isinstance(bad, int)
        assert good <= bound < bad
        assert bad - good <= max(2 * grain, TOLERANCE * bad + grain)


def test_a_search_without_time_tries_nothing() -> None:
    assert Search(1, 1, 100, seconds=0).run(lambda _: True) == {"tokens": 0, "too_many": None}


def test_work_that_asks_for_too_much_memory_does_not_fit() -> None:
    def too_much() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    assert not is_within_memory(TINY, too_much)
    assert is_within_memory(TINY, lambda: None)


@pytest.mark.parametrize("level", SaveLevel)
def test_a_run_keeps_what_it_is_asked_to_and_trains(decoder: Decoder, level: SaveLevel) -> None:
    run = TrainingRun(decoder, TINY, level, 48)

    assert run.pack.level is level
    assert run.pack.num_tokens == 48
    run.step()
    assert run.trainer.trained_tokens == 48


@pytest.mark.parametrize("level", SaveLevel)
def test_the_heaviest_part_ends_with_the_last_range(decoder: Decoder, level: SaveLevel) -> None:
    run = TrainingRun(decoder, TINY, level, 600)  # ranges of 256

    run.run_heaviest()

    cursor = run.pack.cursor
    assert cursor.num_forward_tokens == cursor.num_loss_tokens == 600
    assert cursor.range_stop == 600 - 256
    sums = len(run.pack.grad_kv)
    assert sums == (run.pack.layout.num_layers if level is SaveLevel.WINDOW_OUTER else 1)
