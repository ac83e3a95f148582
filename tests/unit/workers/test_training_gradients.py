"""The gradient of a job is plain autograd's on whole sequences, whatever the schedule was."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from scheduler.domain.job import FinetuneSpec
from scheduler.domain.messages import StartJob
from scheduler.domain.plan import LaneUnits, WindowSpan
from scheduler.policy.blocks import BlockPool
from scheduler.policy.fairness import FairShare
from scheduler.policy.training import can_ride
from scheduler.text import dataset
from tests.unit.workers.autograd_decoder import AutogradDecoder
from tests.unit.workers.packed_run import PackedRun, make_resident, random_lora
from tests.unit.workers.tiny_models import CPU, FAMILIES, VOCAB_SIZE, TinyModel, make_model
from workers.activations import SaveLevel
from workers.adapter_file import BaseIdentity
from workers.adapter_pool import AdapterPool
from workers.checkpoint_writer import CheckpointWriter
from workers.job_checkpoint import fingerprint
from workers.kv_cache import KVCache
from workers.model import MODULE_PATHS
from workers.pack_placement import PackPlacement, TrainerLimits
from workers.trainer import Trainer
from workers.training_memory import TrainingMemory

if TYPE_CHECKING:
    from torch import Tensor

    from scheduler.policy.pack_cursor import PackCursor
    from workers.model import DecoderConfig
    from workers.pack_layout import PackLayout
    from workers.train_job import TrainJob
    from workers.train_pack import PackWork

# Shares of the largest gradient. float32 runs on the machine's kernels, where it has them.
NUM_BLOCKS = 1024
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-4}
SEEDS = settings(max_examples=2, deadline=None, phases=(Phase.generate,))  # seeds do not shrink
WEIGHTS = (0.0, 0.0, 1.0, 1.0, 0.5, 0.3, 2.0)
Example = tuple[list[int], list[float]]


@cache
def model(family: str, dtype: torch.dtype = torch.float64) -> TinyModel:
    return make_model(family, Path(mkdtemp()), dtype)


@cache
def oracle(family: str) -> AutogradDecoder:
    return AutogradDecoder(model(family).decoder.config, model(family).folder)


@dataclass
class Job:
    """A job of one optimizer step, what it trains on, and the parameters it starts from."""

    job: TrainJob
    examples: list[Example]
    params: dict[str, Tensor]

    @property
    def gradient(self) -> dict[str, Tensor]:
        """The mean gradient that its optimizer step used."""
        return self.job.grads.views


class FixedLevel(PackPlacement):
    """A placement that is told what to save."""

    level = SaveLevel.FULL

    def choices(self, work: PackWork, share_blocks: int) -> list[PackLayout]:
        del share_blocks
        return [self._layout(self.level, work.tokens.num_tokens, trains=work.trains)]


class Bench:
    """A trainer, inference rows beside it, and a random schedule over both."""

    def __init__(
        self,
        family: str,
        random: Random,
        level: SaveLevel,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        self.dtype = dtype
        self.random = random
        self.folder = Path(mkdtemp())
        decoder = model(family, dtype).decoder
        self.pool = AdapterPool(decoder.arena, max_rank=16)
        self.run = PackedRun(decoder, random)
        self.writer = CheckpointWriter(lambda _: None, fingerprint(CPU, dtype))
        self.memory = borrowed_memory(decoder.config, dtype)
        base = BaseIdentity("m", "digest")
        self.trainer = Trainer(
            decoder,
            self.pool,
            base,
            TrainerLimits(max_jobs=4),
            self.memory,
            self.writer,
            lambda _: None,
            FairShare(),
        )
        self.limit(
            TrainerLimits(
                max_jobs=4,
                pack_tokens=random.choice((20, 45, 512)),
                window_tokens=random.choice((1, 7, 30, 256)),
                range_tokens=random.choice((1, 7, 30, 256)),
            ),
            level,
        )
        self.jobs: list[Job] = []

    def limit(self, limits: TrainerLimits, level: SaveLevel = SaveLevel.FULL) -> None:
        """Set shapes and save level."""
        trainer = self.trainer
        trainer.limits = limits
        trainer.placement = FixedLevel(trainer.decoder, trainer.spec, limits, self.memory)
        trainer.placement.level = level

    def start_job(self, rank: int, modules: tuple[str, ...], examples: list[Example]) -> Job:
        name = f"job{len(self.jobs)}"
        path = self.folder / f"{name}.bin"
        dataset.write(path, encode(examples))
        spec = FinetuneSpec(
            base_model="m",
            method_config={"rank": rank, "alpha": 2 * rank, "target_modules": modules},
            n_epochs=1,
            batch_size=len(examples),
            max_grad_norm=1e30,
        )
        order = StartJob(
            job_id=name,
            tenant_id="t",
            epoch=1,
            spec=spec,
            train_path=str(path),
            checkpoint_root=str(self.folder / name),
        )
        self.trainer.start(order)
        job = self.trainer.active[name].job
        config = self.trainer.decoder.config
        _, params = random_lora(config, rank, rank, modules, self.dtype)
        for key, tensor in params.items():
            job.params.views[key].copy_(tensor)
        job.method.lower(job.params.views, job.term_views)
        self.jobs.append(Job(job, examples, params))
        return self.jobs[-1]

    def finish(self, num_recalls: int = 0) -> None:
        """Run everything to the end, in random steps, and recall memory between some of them."""
        while self.trainer.active or not self.run.is_done:
            if num_recalls and self.random.random() < 0.1:
                num_recalls -= 1
                self.trainer.give_back(self.random.randint(1, 40))
            self.trainer.demands(NUM_BLOCKS)
            windows = tuple(self._windows())
            if windows or not self.run.is_done:
                hidden = self.run.step(self.trainer.pack_windows(windows))
                self.trainer.finish_windows(windows, hidden)
            for job_id in list(self.trainer.active):
                if self.trainer.active[job_id].pack is None:
                    continue
                lane = LaneUnits(job_id, self.random.randint(0, 6))
                list(self.trainer.run_units(lane, lambda: True))
                if self._cursor(job_id).is_done:
                    self.trainer.advance(job_id)
        self.writer.close()

    def _windows(self) -> list[WindowSpan]:
        riders = [demand.job_id for demand in self.trainer.demands(0) if can_ride(demand)]
        windows = []
        for job_id in self.random.sample(riders, self.random.randint(0, len(riders))):
            cursor = self._cursor(job_id)
            count = self.random.randint(1, min(30, cursor.num_uncomputed_tokens))
            windows.append(WindowSpan(job_id, cursor.num_forward_tokens, count))
        return windows

    def _cursor(self, job_id: str) -> PackCursor:
        return self.trainer.active[job_id].running_pack().cursor


def borrowed_memory(config: DecoderConfig, dtype: torch.dtype) -> TrainingMemory:
    """Memory in which nothing but NaN has been left."""
    cache = KVCache(config, NUM_BLOCKS, 16, dtype, CPU)
    cache.storage.fill_(float("nan"))
    return TrainingMemory(BlockPool(NUM_BLOCKS, 16), cache, 1 << 40)


def encode(examples: list[Example]) -> dataset.EncodedDataset:
    lengths = [len(ids) for ids, _ in examples]
    return dataset.EncodedDataset(
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        np.concatenate([ids for ids, _ in examples]).astype(np.int32),
        np.concatenate([weights for _, weights in examples]).astype(np.float32),
    )


def random_examples(random: Random) -> list[Example]:
    """Mixed lengths; a weight at an example's start predicts nothing and must count for nothing."""
    examples = []
    for length in random.sample((2, 5, 13, 30, 41), 4):
        weights = [float(np.float32(random.choice(WEIGHTS))) for _ in range(length)]
        weights[-1] = 1.0
        examples.append(([random.randrange(VOCAB_SIZE) for _ in range(length)], weights))
    return examples


def autograd(family: str, job: Job) -> dict[str, Tensor]:
    """The mean gradient over target tokens, example by example."""
    lora = {name: tensor.double().requires_grad_() for name, tensor in job.params.items()}
    losses = [oracle(family).loss(ids, weights, lora, 2.0) for ids, weights in job.examples]
    total = sum(sum(weights[1:]) for _, weights in job.examples)
    torch.autograd.backward(sum(losses, torch.zeros(())) / total)
    return {name: tensor.grad for name, tensor in lora.items() if tensor.grad is not None}


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
    bench = Bench(family, random, level, dtype)
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


@pytest.mark.parametrize("family", FAMILIES)
@SEEDS
@given(seed=st.integers(0, 2**32))
def test_memory_that_is_recalled_at_any_moment_changes_no_gradient(family: str, seed: int) -> None:
    random = Random(seed)
    bench = Bench(family, random, random.choice(list(SaveLevel)))
    bench.run.add([random.randrange(VOCAB_SIZE) for _ in range(40)], None)
    bench.start_job(4, tuple(MODULE_PATHS), random_examples(random))
    bench.start_job(3, ("k_proj", "down_proj"), random_examples(random))

    bench.finish(num_recalls=6)

    for job in bench.jobs:
        assert_same(job.gradient, autograd(family, job))
    assert bench.memory.num_left == bench.memory.max_blocks


def test_accumulating_over_many_packs_gives_the_gradient_of_one_big_batch() -> None:
    examples = random_examples(Random(5))
    gradients = []
    for pack_tokens in (1, 1000):
        bench = Bench("qwen3", Random(6), SaveLevel.FULL)
        bench.limit(TrainerLimits(max_jobs=4, pack_tokens=pack_tokens))
        job = bench.start_job(4, tuple(MODULE_PATHS), examples)
        bench.finish()
        gradients.append({name: view.clone() for name, view in job.gradient.items()})

    assert_same(gradients[0], gradients[1])


def test_a_foreign_job_changes_no_bit_of_a_gradient_when_nothing_is_fused() -> None:
    gradients = []
    for other_seed in (1, 2):
        bench = Bench("llama", Random(0), SaveLevel.FULL)
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
