"""The search finds the smallest archive inside the guard, and stops there."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import pytest
import torch

from scheduler.domain.errors import InvalidInput
from tests.unit.workers.tiny_adapters import make_lora
from workers.adapter_archive import pack_archive, read_archive
from workers.adapter_file import BaseIdentity, LoadedAdapter
from workers.codec_search import Ladder, search
from workers.codecs import CODECS
from workers.codecs.compeft import Compeft

if TYPE_CHECKING:
    from pathlib import Path

    from workers.peft_method import Params

BASE = BaseIdentity("base", "digest")
SEED = 7
LADDER = Ladder(densities=(0.5, 0.1, 0.3), alphas=(2.0, 1.0), guard=0.5)


@pytest.fixture(scope="module")
def adapter() -> LoadedAdapter:
    return make_lora(SEED)


def closeness(adapter: LoadedAdapter, params: Params) -> float:
    """Minus the relative distance from the trained adapter's B."""
    names = [n for n in params if "lora_B" in n]
    gap = torch.cat([(params[n] - adapter.params[n]).flatten() for n in names]).norm()
    return -float(gap / torch.cat([adapter.params[n].flatten() for n in names]).norm())


def test_it_is_the_smallest_archive_of_all_within_the_guard(
    adapter: LoadedAdapter, tmp_path: Path
) -> None:
    good_sizes = []
    for density, alpha in itertools.product(LADDER.densities, LADDER.alphas):
        codec = Compeft(Compeft.Config(density=density, alpha=alpha))
        path = tmp_path / "adapter.tnd"
        path.write_bytes(pack_archive(adapter, codec, BASE, SEED))
        decoded = read_archive(path, adapter.method.model).adapter()
        if closeness(adapter, decoded.params) >= -LADDER.guard:
            good_sizes.append(len(path.read_bytes()))

    found = search(adapter, lambda params: closeness(adapter, params), LADDER, SEED)

    assert found.reference == 0
    assert found.score >= -LADDER.guard
    assert len(pack_archive(adapter, found.codec, BASE, SEED)) == min(good_sizes)
    assert len(good_sizes) < 6  # so that the guard does decide


def test_of_the_scales_of_a_density_the_best_is_taken(adapter: LoadedAdapter) -> None:
    found = search(adapter, lambda params: closeness(adapter, params), LADDER, SEED)

    same = [t for t in found.trials if t.codec.config.density == found.codec.config.density]
    assert found.score == max(t.score for t in same)
    assert len(same) == 2


def test_nothing_denser_is_tried_once_one_is_good_enough(adapter: LoadedAdapter) -> None:
    found = search(adapter, lambda _: 1.0, LADDER, SEED)

    assert found.codec.config.density == 0.1
    assert found.codec.config.alpha == 2  # of equal scores the first
    assert len(found.trials) == 2


@pytest.mark.parametrize(("worst_gap", "name"), [(0.2, "int4"), (0.01, "int8"), (1e-9, "none")])
def test_above_the_ladder_come_integers_and_then_the_adapter_as_it_is(
    worst_gap: float, name: str, adapter: LoadedAdapter, tmp_path: Path
) -> None:
    ladder = LADDER.model_copy(update={"guard": worst_gap})

    found = search(adapter, lambda params: closeness(adapter, params), ladder, SEED)

    assert isinstance(found.codec, CODECS[name])
    assert found.score >= found.reference - worst_gap
    path = tmp_path / "adapter.tnd"
    path.write_bytes(pack_archive(adapter, found.codec, BASE, SEED))
    archived = read_archive(path, adapter.method.model).adapter()
    assert closeness(adapter, archived.params) == pytest.approx(found.score)


def test_a_score_that_is_not_a_number_is_the_worst(adapter: LoadedAdapter) -> None:
    def score(params: Params) -> float:
        return 1.0 if params is adapter.params else math.nan

    assert isinstance(search(adapter, score, LADDER, SEED).codec, CODECS["none"])


def test_an_adapter_without_a_score_is_refused(adapter: LoadedAdapter) -> None:
    with pytest.raises(InvalidInput, match="finite"):
        search(adapter, lambda _: math.nan, LADDER)


def test_the_adapter_itself_is_left_alone(adapter: LoadedAdapter) -> None:
    before = {n: t.clone() for n, t in adapter.params.items()}

    search(adapter, lambda params: closeness(adapter, params), LADDER, SEED)

    assert all(torch.equal(adapter.params[n], t) for n, t in before.items())
