"""Merges that peft has too give peft's numbers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from peft import PeftModel
from peft.utils import merge_utils

from tests.unit.workers.tiny_adapters import SHAPE, make_lora
from workers.adapter_file import BaseIdentity, LoadedAdapter, write_adapter
from workers.dropped import drop_mask
from workers.lora_factors import sites_of
from workers.merges import MERGES

if TYPE_CHECKING:
    from pathlib import Path

from transformers import LlamaConfig, LlamaForCausalLM

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Already found a .peft_config.:UserWarning"),
]
WEIGHTS = [0.7, 0.4, -0.3]
TOLERANCE = 2e-6  # float32 products in another order; entries are near 0.1
BASE = BaseIdentity("base", "digest")
DENSITY = {"density": 0.6}


@pytest.fixture(scope="module")
def adapters() -> list[LoadedAdapter]:
    return [make_lora(1), make_lora(2, alpha=3.0), make_lora(3)]


@pytest.fixture
def peft_model(adapters: list[LoadedAdapter], tmp_path: Path) -> PeftModel:
    base = LlamaForCausalLM(LlamaConfig(**{k: v for k, v in SHAPE.items() if k != "architectures"}))
    for i, adapter in enumerate(adapters):
        write_adapter(tmp_path / f"a{i}", adapter.method, adapter.params, BASE, 0, {})
    model = PeftModel.from_pretrained(base, str(tmp_path / "a0"), adapter_name="a0")
    for i in range(1, len(adapters)):
        model.load_adapter(str(tmp_path / f"a{i}"), adapter_name=f"a{i}")
    return model


def theirs(model: PeftModel, kind: str, **options: Any) -> dict[str, torch.Tensor]:
    """Dense updates of peft's merged adapter, by site."""
    names = [f"a{i}" for i in range(len(WEIGHTS))]
    model.add_weighted_adapter(names, WEIGHTS, "merged", combination_type=kind, **options)
    return {
        f"base_model.model.{name.removeprefix('base_model.model.')}": module.get_delta_weight(
            "merged"
        ).detach()
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }


def ours(adapters: list[LoadedAdapter], name: str, **options: Any) -> dict[str, torch.Tensor]:
    merge = MERGES[name](MERGES[name].Config.model_validate(options))
    return {s: f.update() for s, f in sites_of(merge.merge(adapters, WEIGHTS)).items()}


def assert_equal(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> None:
    assert got.keys() == want.keys()
    for site in want:
        assert float((got[site] - want[site]).abs().max()) < TOLERANCE


@pytest.mark.parametrize(
    ("kind", "name", "options", "peft_options"),
    [
        ("linear", "linear", {}, {}),
        ("cat", "cat", {}, {}),
        ("cat", "task_arithmetic", {}, {}),
        ("svd", "svd", {}, {}),
        ("svd", "svd", {"rank": 7}, {"svd_rank": 7}),
        ("svd", "task_arithmetic", {"rank": 4}, {}),
        ("ties", "ties", DENSITY, DENSITY),
        ("ties", "ties", DENSITY | {"majority_sign": "frequency"},
         DENSITY | {"majority_sign_method": "frequency"}),
        ("ties_svd", "ties", DENSITY | {"space": "update"}, DENSITY),
        ("magnitude_prune", "magnitude_prune", DENSITY, DENSITY),
        ("magnitude_prune_svd", "magnitude_prune", DENSITY | {"space": "update"}, DENSITY),
    ],
    ids=str,
)  # fmt: skip
def test_the_merged_update_is_that_of_peft(
    kind: str,
    name: str,
    options: dict[str, Any],
    peft_options: dict[str, Any],
    adapters: list[LoadedAdapter],
    peft_model: PeftModel,
) -> None:
    assert_equal(ours(adapters, name, **options), theirs(peft_model, kind, **peft_options))


@pytest.mark.parametrize(
    ("kind", "name", "options"),
    [
        ("dare_linear", "dare_linear", DENSITY),
        ("dare_ties", "dare_ties", DENSITY),
        ("dare_linear_svd", "dare_linear", DENSITY | {"space": "update"}),
        ("dare_ties_svd", "dare_ties", DENSITY | {"space": "update"}),
    ],
)
def test_with_the_same_masks_dare_is_that_of_peft(
    kind: str,
    name: str,
    options: dict[str, Any],
    adapters: list[LoadedAdapter],
    peft_model: PeftModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = [n for n, m in peft_model.named_modules() if hasattr(m, "get_delta_weight")]
    parts = ["update"] if kind.endswith("_svd") else ["A", "B"]
    places = iter(
        (f"{site}:{part}", index)
        for site in names
        for part in parts
        for index in range(len(adapters))
    )

    def masked(tensor: torch.Tensor, density: float, rescale: bool) -> torch.Tensor:
        assert rescale
        place, index = next(places)
        return tensor * drop_mask(tensor, density, 0, place, index) / density

    monkeypatch.setattr(merge_utils, "random_pruning", masked)

    assert_equal(ours(adapters, name, **options), theirs(peft_model, kind, **DENSITY))


def test_clamped_factors_are_those_of_peft(
    adapters: list[LoadedAdapter], peft_model: PeftModel
) -> None:
    got, want = ours(adapters, "svd", clamp=0.99), theirs(peft_model, "svd", svd_clamp=0.99)

    for site in want:  # the sign of a singular pair is free, and so is what its clamp cuts
        assert float((got[site] - want[site]).norm() / want[site].norm()) < 0.2


def test_peft_computes_with_a_merged_adapter_what_its_own_merge_computes(
    adapters: list[LoadedAdapter], peft_model: PeftModel, tmp_path: Path
) -> None:
    merge = MERGES["ties"](MERGES["ties"].Config.model_validate(DENSITY))
    merged = merge.merge(adapters, WEIGHTS)
    write_adapter(tmp_path / "merged", merged.method, merged.params, BASE, 0, {})
    names = [f"a{i}" for i in range(3)]
    peft_model.add_weighted_adapter(names, WEIGHTS, "ties", combination_type="ties", **DENSITY)
    token_ids = torch.arange(20)[None]

    with torch.no_grad():
        peft_model.set_adapter("ties")
        want = peft_model(token_ids).logits
        peft_model.load_adapter(str(tmp_path / "merged"), adapter_name="ours")
        peft_model.set_adapter("ours")
        got = peft_model(token_ids).logits

    assert json.loads((tmp_path / "merged" / "adapter_config.json").read_text())["lora_alpha"] == 4
    assert float((got - want).abs().max()) < 1e-4
