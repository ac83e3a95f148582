"""LoRA's terms and their gradients, where sites differ in rank and alpha."""

from __future__ import annotations

import pytest
import torch

from scheduler.domain.errors import InvalidInput
from tests.unit.workers.tiny_adapters import tiny_config
from workers.adapter_arena import Term
from workers.model import DecoderConfig, fused_linears
from workers.peft_method import Params, Terms
from workers.peft_methods.lora import Lora
from workers.plugin_options import plugin_options

OPTIONS = {
    "rank": 4,
    "alpha": 8,
    "target_modules": ("q_proj", "v_proj", "down_proj"),
    "rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 6},
    "alpha_pattern": {"v_proj": 3},
}


@pytest.fixture(params=[False, True], ids=["plain", "rslora"])
def method(request: pytest.FixtureRequest) -> Lora:
    options = Lora.Config.model_validate({**OPTIONS, "use_rslora": request.param})
    return Lora(options, tiny_config())


def random_terms(method: Lora, config: DecoderConfig) -> Terms:
    rank = method.rank
    return {
        (layer, index): Term(
            torch.randn(len(linear.slices) * rank, linear.in_features, dtype=torch.float64),
            tuple(
                torch.randn(rank, part.num_features, dtype=torch.float64) for part in linear.slices
            ),
        )
        for layer in range(config.num_layers)
        for index, linear in enumerate(fused_linears(config))
        if any(part.module in method.modules for part in linear.slices)
    }


def random_params(method: Lora) -> Params:
    return {n: torch.randn(s, dtype=torch.float64) for n, s in method.shapes().items()}


def inner(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    return sum(float((x * y).sum()) for x, y in zip(a, b, strict=True))


def adapted(terms: Terms, method: Lora) -> list[torch.Tensor]:
    """The blocks of projections that have an adapter."""
    blocks = []
    for (_, index), term in terms.items():
        for j, part in enumerate(fused_linears(method.model)[index].slices):
            if part.module in method.modules:
                blocks += [
                    term.shrink_CI[j * method.rank : (j + 1) * method.rank],
                    term.expand_RO[j],
                ]
    return blocks


def test_a_slot_takes_the_largest_rank_and_each_site_has_its_own(method: Lora) -> None:
    shapes = method.shapes()
    prefix = "base_model.model.model.layers"

    assert method.rank == 6
    assert shapes[f"{prefix}.0.self_attn.q_proj.lora_A.weight"][0] == 2
    assert shapes[f"{prefix}.0.mlp.down_proj.lora_B.weight"][1] == 4
    assert shapes[f"{prefix}.1.mlp.down_proj.lora_B.weight"][1] == 6


def test_pulling_back_is_the_adjoint_of_lowering(method: Lora) -> None:
    """Both are linear, so one random inner product shows a wrong place or factor."""
    params, gradients = random_params(method), random_terms(method, method.model)
    terms, pulled = random_terms(method, method.model), random_params(method)

    method.lower(params, terms)
    method.pull_back(gradients, pulled)

    forward = inner(adapted(terms, method), adapted(gradients, method))
    assert forward == pytest.approx(inner(list(params.values()), list(pulled.values())))


def test_what_a_slot_held_before_does_not_show(method: Lora) -> None:
    params = random_params(method)
    first, second = random_terms(method, method.model), random_terms(method, method.model)

    method.lower(params, first)
    method.lower(params, second)

    pairs = zip(adapted(first, method), adapted(second, method), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_names_that_end_one_another_are_refused(method: Lora) -> None:
    options = method.config.model_dump() | {"rank_pattern": {"q_proj": 2, "self_attn.q_proj": 3}}

    with pytest.raises(InvalidInput, match="name the same projection"):
        plugin_options(Lora.Config, options)
