"""Every family's logits are transformers' and peft's, however tokens are batched and chunked."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from random import Random
from tempfile import mkdtemp
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model

from tests.unit.workers.packed_run import PackedRun, make_resident, random_lora
from tests.unit.workers.tiny_models import FAMILIES, VOCAB_SIZE, TinyModel, make_model
from workers.adapter_pool import AdapterPool
from workers.model import MODULE_PATHS

if TYPE_CHECKING:
    from workers.peft_method import Params
    from workers.peft_methods.lora import Lora

pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"  # peft still asks for it
)
TOLERANCE = 1e-4
LENGTHS = (1, 3, 17, 40)
SEEDS = settings(max_examples=4, deadline=None, phases=(Phase.generate,))  # seeds do not shrink


@cache
def model(family: str) -> TinyModel:
    return make_model(family, Path(mkdtemp()), num_columns=64)


@cache
def peft_model(family: str, seed: int, rank: int, modules: tuple[str, ...]) -> PeftModel:
    """A fresh oracle under peft, with the parameters of `random_lora`."""
    method, params = random_lora(model(family).decoder.config, seed, rank, modules)
    oracle = make_model(family, Path(mkdtemp())).oracle
    return with_lora(oracle, method, params)


def with_lora(oracle: torch.nn.Module, method: Lora, params: Params) -> PeftModel:
    config = LoraConfig(
        r=method.rank, lora_alpha=int(method.config.alpha), target_modules=list(method.modules)
    )
    adapted = get_peft_model(oracle, config)
    named = dict(adapted.named_parameters())
    with torch.no_grad():
        for name, tensor in params.items():
            named[name.replace(".weight", ".default.weight")].copy_(tensor)
    return adapted.eval()


def oracle_logits(oracle: torch.nn.Module, token_ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = oracle(torch.tensor([token_ids])).logits[0]
    return logits


def random_ids(random: Random, count: int) -> list[int]:
    return [random.randrange(VOCAB_SIZE) for _ in range(count)]


@pytest.mark.parametrize("family", FAMILIES)
@SEEDS
@given(seed=st.integers(0, 2**32))
def test_packed_and_chunked_logits_are_those_of_transformers(family: str, seed: int) -> None:
    random = Random(seed)
    run = PackedRun(model(family).decoder, random)
    for length in LENGTHS:
        run.add(random_ids(random, length), None)

    while not run.is_done:
        run.step()

    for stream in run.streams:
        want = oracle_logits(model(family).oracle, stream.sequence.token_ids)
        assert (torch.cat(stream.logits) - want).abs().max() <= TOLERANCE


MIXED: tuple[tuple[int, tuple[str, ...]] | None, ...] = (
    None,
    (1, ("q_proj", "v_proj")),
    (4, tuple(MODULE_PATHS)),
    (7, ("k_proj", "o_proj", "up_proj")),
    (16, ("gate_proj", "down_proj")),
)


@pytest.mark.parametrize("family", FAMILIES)
@SEEDS
@given(seed=st.integers(0, 2**32))
def test_mixed_adapters_and_the_bare_base_in_one_batch_are_those_of_peft(
    family: str, seed: int
) -> None:
    random = Random(seed)
    decoder = model(family).decoder
    for matrix in decoder.arena.matrices():
        matrix.zero_()
    pool = AdapterPool(decoder.arena, max_rank=16)
    run = PackedRun(decoder, random)
    wanted = []
    for i, adapter in enumerate([*random.sample(MIXED, len(MIXED)), MIXED[1], MIXED[2]]):
        token_ids = random_ids(random, random.choice(LENGTHS))
        if adapter is None:
            run.add(token_ids, None)
            wanted.append(oracle_logits(model(family).oracle, token_ids))
            continue
        rank, modules = adapter
        method, params = random_lora(decoder.config, rank, rank, modules)
        run.add(token_ids, make_resident(pool, str(i), method, params))
        wanted.append(oracle_logits(peft_model(family, rank, rank, modules), token_ids))

    while not run.is_done:
        run.step()

    for stream, want in zip(run.streams, wanted, strict=True):
        scale = max(1.0, float(want.abs().max()) / 10)
        assert (torch.cat(stream.logits) - want).abs().max() <= TOLERANCE * scale
