"""The gradient of a job is plain autograd's on whole sequences, whatever the schedule was."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from random import Random
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from scheduler.domain.plan import LaneUnits
from tests.unit.workers.autograd_decoder import AutogradDecoder
from tests.unit.workers.packed_run import make_resident, random_lora, random_params
from tests.unit.workers.tiny_models import FAMILIES, VOCAB_SIZE, TinyModel, make_model
from tests.unit.workers.train_bench import NUM_BLOCKS, Bench, Job, random_examples
from workers.activations import SaveLevel
from workers.job_desk import units_beside
from workers.model import MODULE_PATHS
from workers.pack_placement import TrainerLimits
from workers.peft_method import PEFT_METHODS

# Shares of the largest gradient. float32 runs on the machine's kernels, where it has them.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-4}
SEEDS = settings(max_examples=2, deadline=None, phases=(Phase.generate,))  # seeds do not shrink


@cache
def model(family: str, dtype: torch.dtype = torch.float64) -> TinyModel:
    return make_model(family, Path(mkdtemp()), dtype)


@cache
def oracle(family: str) -> AutogradDecoder:
    return AutogradDecoder(model(family).decoder.config, model(family).folder)


def autograd(family: str, job: Job) -> dict[str, Tensor]:
    """The mean gradient over target tokens, example by example."""
    lora = {name: tensor.double().requires_grad_() for name, tensor in job.params.items()}
    losses = [oracle(family).loss(ids, weights, lora, job.scale) for ids, weights in job.examples]
    total = sum(sum(weights[1:]) for _, weights in job.examples)
    torch.autograd.backward(sum(losses, torch.zeros(())) / total)
    grads = {name: lora[name].grad for name in job.gradient}
    return {name: grad for name, grad in grads.items() if grad is not None}


def assert_same(
    got: dict[str, Any], want: dict[str, Any], dtype: torch.dtype = torch.float64
) -> None:
    assert set(got) == set(want)
    for name, tensor in want.items():
        scale = max(1.0, float(tensor.abs().max()))
        assert float((got[name] - tensor).abs().max()) <= TOLERANCE[dtype] * scale, name


@pytest.mark.parametrize("family", FAMILIES)
def test_the_autograd_oracle_gives_the_logits_of_transformers(family: str) -> None:
    token_ids = [Random(i).randrange(VOCAB_SIZE) for i in range(60)]

    with torch.no_grad():
        want = model(family).oracle(torch.tensor([token_ids])).logits[0]

    assert (oracle(family).logits(token_ids, {}, 1.0) - want).abs().max() < 1e-4


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("level", SaveLevel)
@pytest.mark.parametrize("family", FAMILIES)
@SEEDS
@given(seed=st.integers(0, 2**32))
def test_gradients_under_a_random_schedule_are_those_of_autograd(
    family: str, level: SaveLevel, dtype: torch.dtype, seed: int
) -> None:
    random = Random(seed)
    bench = Bench(model(family, dtype).decoder, random, level)
    config = model(family, dtype).decoder.config
    served = random_lora(config, 9, 5, ("q_proj", "down_proj"), dtype)
    columns = make_resident(bench.pool, "served", *served)
    for adapter in (None, columns, columns):
        bench.run.add([random.randrange(VOCAB_SIZE) for _ in range(25)], adapter)
    bench.start_job(4, tuple(MODULE_PATHS), random_examples(random))
    bench.start_job(3, ("k_proj", "v_proj", "up_proj"), random_examples(random))

    bench.finish()

    for job in bench.jobs:
        assert_same(job.gradient, autograd(family, job), dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("level", SaveLevel)
@pytest.mark.parametrize("family", ["mistral_wide", "qwen3"])
@SEEDS
@given(seed=st.integers(0, 2**32))
def test_gradients_of_every_kind_of_adapter_beside_one_another_are_those_of_autograd(
    family: str, level: SaveLevel, dtype: torch.dtype, seed: int
) -> None:
    random = Random(seed)
    bench = Bench(model(family, dtype).decoder, random, level)
    method = PEFT_METHODS["lora_xs"]
    served = method(method.Config.model_validate({"rank": 6}), bench.trainer.decoder.config)
    columns = make_resident(bench.pool, "served", served, random_params(served, 9, dtype))
    for adapter in (None, columns, columns):
        bench.run.add([random.randrange(VOCAB_SIZE) for _ in range(25)], adapter)
    bench.start_job(5, tuple(MODULE_PATHS), random_examples(random), "lora_xs")
    bench.start_job(3, ("k_proj", "v_proj", "up_proj"), random_examples(random), "svfit")
    bench.start_job(2, ("q_proj", "down_proj"), random_examples(random), "lora")

    bench.finish()

    for job in bench.jobs:
        assert_same(job.gradient, autograd(family, job), dtype)


@pytest.mark.parametrize("family", FAMILIES)
@SEEDS
@given(seed=st.integers(0, 2**32))
def test_memory_that_is_recalled_at_any_moment_changes_no_gradient(family: str, seed: int) -> None:
    random = Random(seed)
    bench = Bench(model(family).decoder, random, random.choice(list(SaveLevel)))
    bench.run.add([random.randrange(VOCAB_SIZE) for _ in range(40)], None)
    bench.start_job(4, tuple(MODULE_PATHS), random_examples(random))
    bench.start_job(3, ("k_proj", "down_proj"), random_examples(random))

    bench.finish(num_recalls=6)

    for job in bench.jobs:
        assert_same(job.gradient, autograd(family, job))
    assert bench.memory.num_left == bench.memory.max_blocks


@pytest.mark.parametrize("level", SaveLevel)
@SEEDS
@given(seed=st.integers(0, 2**32))
def test_lanes_beside_inference_that_are_ended_and_recalled_change_no_gradient(
    level: SaveLevel, seed: int
) -> None:
    random = Random(seed)
    bench = Bench(model("qwen3").decoder, random, level)
    served = bench.run.add([random.randrange(VOCAB_SIZE) for _ in range(60)], None)
    bench.start_job(4, tuple(MODULE_PATHS), random_examples(random))
    bench.start_job(3, ("k_proj", "down_proj"), random_examples(random))

    bench.finish_beside(num_recalls=4)

    for job in bench.jobs:
        assert_same(job.gradient, autograd("qwen3", job))
    assert bench.memory.num_left == bench.memory.max_blocks
    want = oracle("qwen3").logits(served.sequence.token_ids, {}, 1.0)
    assert (torch.cat(served.logits) - want).abs().max() < TOLERANCE[torch.float64]


@SEEDS
@given(seed=st.integers(0, 2**32))
def test_a_job_that_is_dropped_from_its_lane_changes_no_other_gradient(seed: int) -> None:
    random = Random(seed)
    bench = Bench(model("llama").decoder, random, random.choice(list(SaveLevel)))
    first = bench.start_job(4, tuple(MODULE_PATHS), random_examples(random))
    bench.start_job(3, ("k_proj", "down_proj"), random_examples(random))
    bench.trainer.demands(NUM_BLOCKS)

    for job_id in bench.trainer.active:
        lane = LaneUnits(job_id, 60)
        bench.trainer.side.begin(lane, partial(units_beside, bench.trainer, lane))
    bench.trainer.drop("job1")
    bench.finish_beside()

    assert_same(first.gradient, autograd("llama", first))
    assert bench.memory.num_left == bench.memory.max_blocks


@SEEDS
@given(seed=st.integers(0, 2**32))
def test_levels_that_rise_and_fall_with_free_memory_change_no_gradient(seed: int) -> None:
    random = Random(seed)
    bench = Bench(model("qwen3").decoder, random, SaveLevel.FULL)
    bench.follow_memory()
    for rank in (4, 3):
        bench.start_job(rank, tuple(MODULE_PATHS), random_examples(random))

    bench.finish(num_recalls=6)

    for job in bench.jobs:
        assert_same(job.gradient, autograd("qwen3", job))
    assert bench.memory.num_left == bench.memory.max_blocks


def test_a_pack_keeps_more_once_memory_is_free_unless_it_has_begun() -> None:
    bench = Bench(model("qwen3").decoder, Random(1), SaveLevel.FULL)
    bench.follow_memory()
    bench.start_job(4, ("q_proj",), random_examples(Random(2)))
    (active,) = bench.trainer.active.values()
    next(count for count in range(NUM_BLOCKS) if bench.trainer.demands(count))
    small = active.running_pack()

    bench.trainer.demands(0)
    assert active.running_pack() is small
    assert small.level is SaveLevel.WINDOW_OUTER
    bench.trainer.demands(NUM_BLOCKS)
    large = active.running_pack()
    assert large.level is SaveLevel.FULL
    assert bench.memory.num_left == bench.memory.max_blocks - len(large.loan.run)

    bench.trainer.give_back(1)
    list(bench.trainer.run_units(LaneUnits("job0", 1), lambda: True))
    bench.trainer.demands(NUM_BLOCKS)
    assert active.running_pack() is large
    assert large.level is SaveLevel.INPUTS


def test_accumulating_over_many_packs_gives_the_gradient_of_one_big_batch() -> None:
    examples = random_examples(Random(5))
    gradients = []
    for pack_tokens in (1, 1000):
        bench = Bench(model("qwen3").decoder, Random(6), SaveLevel.FULL)
        bench.limit(TrainerLimits(max_jobs=4, pack_tokens=pack_tokens))
        job = bench.start_job(4, tuple(MODULE_PATHS), examples)
        bench.finish()
        gradients.append({name: view.clone() for name, view in job.gradient.items()})

    assert_same(gradients[0], gradients[1])


def test_a_foreign_job_changes_no_bit_of_a_gradient_when_nothing_is_fused() -> None:
    gradients = []
    for other_seed in (1, 2):
        bench = Bench(model("llama").decoder, Random(0), SaveLevel.FULL)
        bench.limit(TrainerLimits(max_jobs=4))
        job = bench.start_job(4, tuple(MODULE_PATHS), random_examples(Random(7)))
        bench.start_job(8, ("q_proj",), random_examples(Random(other_seed)))
        while bench.trainer.active:
            bench.trainer.demands(NUM_BLOCKS)
            for job_id in list(bench.trainer.active):
                list(bench.trainer.run_units(LaneUnits(job_id, other_seed), lambda: True))
                if bench.trainer.active[job_id].running_pack().cursor.is_done:
                    bench.trainer.advance(job_id)
        bench.writer.close()
        gradients.append(job.job.grads.flat.clone())

    assert torch.equal(gradients[0], gradients[1])
