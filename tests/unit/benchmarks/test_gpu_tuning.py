"""Constants of the kernels are tried at other values, and are what they were afterwards."""

from __future__ import annotations

import importlib

import pytest
import torch

import workers.kernels.triton.attention as attention_module
from benchmarks.gpu.knobs import Constant, Knob, users_of
from benchmarks.gpu.setting import Setting
from benchmarks.gpu.tuning import ADAPTERS, BACKWARD, CHUNK, DECODE, ROWS, TILES, best, measure
from workers.kernels import span_tiles

KNOBS: list[Knob] = [
    *DECODE,
    *CHUNK,
    *BACKWARD,
    *ADAPTERS,
    *(k for own in ROWS.values() for k in own),
]


def test_a_constant_changes_wherever_it_is_known_and_changes_back() -> None:
    before = span_tiles.BLOCK_KEYS

    with Constant(TILES, "BLOCK_KEYS", ()).set_to(7):
        assert span_tiles.BLOCK_KEYS == attention_module.BLOCK_KEYS == 7

    assert span_tiles.BLOCK_KEYS == attention_module.BLOCK_KEYS == before


def test_constants_of_one_name_are_told_apart() -> None:
    names = {user.__name__ for user in users_of(TILES, "ENOUGH_PROGRAMS")}

    assert TILES in names
    assert "workers.kernels.triton.adapters" not in names  # it has one of its own


@pytest.mark.parametrize("knob", KNOBS, ids=lambda knob: knob.label)
def test_every_knob_is_there_to_be_turned_and_tries_its_present_value(knob: Knob) -> None:
    if isinstance(knob, Constant):
        assert getattr(importlib.import_module(knob.module), knob.name) in knob.values
    assert len(set(knob.values)) >= 2


def test_the_best_value_is_named_with_its_share_of_the_present_time() -> None:
    tried = {"a.B": {"1": 5.0, "2": None}, "_k.num_warps": {"4": 4.0}}

    assert best(10.0, tried) == {"value": "_k.num_warps 4", "share_of_present": 0.4}  # type: ignore[arg-type]
    assert best(None, tried) == {}  # type: ignore[arg-type]


def test_every_kind_of_kernel_is_swept() -> None:
    names = [
        name for piece in measure(Setting(torch.device("cpu"), is_tiny=True)) for name in piece
    ]

    assert {"decode, 3 x 40", "chunk", "training, forward and back", "silu_mul"} <= set(names)
    assert any(name.startswith("adapters") for name in names)
