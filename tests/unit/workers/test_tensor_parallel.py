"""Two ranks in processes of their own compute what one does, forward and backward."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from scheduler.domain.errors import InvalidInput
from tests.unit.workers.rank_work import BACKWARD, FORWARD, work
from tests.unit.workers.tiny_models import FAMILIES, make_model, save_oracle
from workers.group import ALONE
from workers.shard import Shard

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from workers.activations import SaveLevel

PATIENCE_S = 120.0
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-4}  # of numbers of size 1 to 10
NUM_RANKS = 2
Results = dict[str, list["Tensor"]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of every family."""
    folder = tmp_path_factory.mktemp("models")
    for family in FAMILIES:
        save_oracle(family, folder / family)
    return folder


@pytest.fixture(scope="module")
def ranks(models: Path) -> list[Results]:
    """What each of two ranks finds."""
    command = (sys.executable, "-m", "tests.unit.workers.rank_work")
    children = [
        subprocess.Popen([*command, str(rank), str(NUM_RANKS), str(models)])
        for rank in range(NUM_RANKS)
    ]
    assert [child.wait(PATIENCE_S) for child in children] == [0] * NUM_RANKS
    return [torch.load(models / f"rank-{rank}.pt") for rank in range(NUM_RANKS)]


@pytest.fixture(scope="module")
def alone(models: Path) -> Results:
    """What one rank finds."""
    return work(ALONE, models)


def _assert_close(ranks: list[Results], alone: Results, case: str, dtype: torch.dtype) -> None:
    for got in (results[case] for results in ranks):
        assert len(got) == len(alone[case])
        for found, wanted in zip(got, alone[case], strict=True):
            assert found.shape == wanted.shape
            scale = max(1.0, float(wanted.abs().max()))
            assert float((found - wanted).abs().max()) <= TOLERANCE[dtype] * scale


@pytest.mark.parametrize(("family", "dtype"), FORWARD, ids=str)
def test_logits_under_adapters_of_mixed_ranks_are_those_of_one_rank(
    ranks: list[Results], alone: Results, family: str, dtype: torch.dtype
) -> None:
    _assert_close(ranks, alone, f"{family}-{dtype}", dtype)


@pytest.mark.parametrize(("family", "level"), BACKWARD, ids=str)
def test_gradients_and_checkpoints_are_those_of_one_rank(
    ranks: list[Results], alone: Results, family: str, level: SaveLevel
) -> None:
    _assert_close(ranks, alone, f"{family}-{level.name}", torch.float64)


def test_all_ranks_hold_the_same_bits(ranks: list[Results]) -> None:
    for case, found in ranks[0].items():
        assert all(torch.equal(a, b) for a, b in zip(found, ranks[1][case], strict=True)), case


def test_a_model_whose_heads_cannot_be_shared_out_is_refused(tmp_path: Path) -> None:
    config = make_model("llama", tmp_path).decoder.config

    with pytest.raises(InvalidInput, match="num_kv_heads = 2 cannot be shared by 3 ranks"):
        Shard(0, 3).config(replace(config, intermediate_size=81))
