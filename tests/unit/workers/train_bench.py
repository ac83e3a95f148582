"""A trainer driven through random schedules, for tests that look at its gradients."""

from __future__ import annotations

import time
from concurrent.futures import wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

import numpy as np

from scheduler.domain.job import FinetuneSpec
from scheduler.domain.messages import StartJob
from scheduler.domain.plan import LaneUnits, WindowSpan
from scheduler.policy.blocks import BlockPool
from scheduler.policy.fairness import FairShare
from scheduler.policy.training import can_ride
from scheduler.text import dataset
from tests.unit.workers.packed_run import PackedRun, random_params
from tests.unit.workers.tiny_models import CPU, VOCAB_SIZE
from workers.activations import SaveLevel
from workers.adapter_file import BaseIdentity
from workers.adapter_pool import AdapterPool
from workers.checkpoint_writer import CheckpointWriter
from workers.job_checkpoint import fingerprint
from workers.job_desk import units_beside
from workers.kv_cache import KVCache
from workers.pack_placement import PackPlacement, TrainerLimits
from workers.peft_methods import PEFT_METHODS
from workers.trainer import Trainer
from workers.training_memory import TrainingMemory

if TYPE_CHECKING:
    from random import Random

    import torch
    from torch import Tensor

    from scheduler.policy.pack_cursor import PackCursor
    from workers.decoder import Decoder
    from workers.model import DecoderConfig
    from workers.pack_layout import PackLayout
    from workers.train_job import TrainJob
    from workers.train_pack import PackWork

NUM_BLOCKS = 1024
POLL_S = 1e-3  # between two looks at a lane: whoever spins keeps the interpreter from it
WEIGHTS = (0.0, 0.0, 1.0, 1.0, 0.5, 0.3, 2.0)
Example = tuple[list[int], list[float]]


@dataclass
class Job:
    """A job of one optimizer step, what it trains on, and the parameters it starts from.

    Attributes:
        scale: of the method's update.
    """

    job: TrainJob
    examples: list[Example]
    params: dict[str, Tensor]
    scale: float

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

    def __init__(self, decoder: Decoder, random: Random, level: SaveLevel) -> None:
        self.dtype = dtype = decoder.weights.dtype
        self.random = random
        self.folder = Path(mkdtemp())
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

    def follow_memory(self) -> None:
        """Let free memory choose the save levels, as in the engine."""
        trainer = self.trainer
        trainer.placement = PackPlacement(
            trainer.decoder, trainer.spec, trainer.limits, self.memory
        )

    def start_job(
        self,
        rank: int,
        modules: tuple[str, ...],
        examples: list[Example],
        method: str = "lora",
    ) -> Job:
        name = f"job{len(self.jobs)}"
        path = self.folder / f"{name}.bin"
        dataset.write(path, encode(examples))
        options: dict[str, object] = {"rank": rank, "target_modules": modules}
        is_scaled = "alpha" in PEFT_METHODS[method].Config.model_fields
        spec = FinetuneSpec(
            base_model="m",
            method=method,
            method_config=options | ({"alpha": 2 * rank} if is_scaled else {}),
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
        active = self.trainer.active[name]
        if active.preparing is not None:
            wait([active.preparing])
            self.trainer.advance(name)
        job = active.job
        params = random_params(job.shard.whole, rank, self.dtype)
        for key, tensor in job.shard.part(params).items():
            job.params.views[key].copy_(tensor)
        job.method.lower(job.params.views, job.term_views)
        self.jobs.append(Job(job, examples, params, 2.0 if is_scaled else 1.0))
        return self.jobs[-1]

    def finish(self, num_recalls: int = 0) -> None:
        """Run everything to the end, in random steps, and recall memory between some of them."""
        while self.trainer.active or not self.run.is_done:
            if num_recalls and self.random.random() < 0.1:
                num_recalls -= 1
                self.trainer.give_back(self.random.randint(1, 40))
            self.trainer.demands(self.random.choice((0, 10, 40, NUM_BLOCKS)))
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

    def finish_beside(self, num_recalls: int = 0) -> None:
        """Run everything to the end in lanes beside inference, as the engine does.

        Some are waited for, some are recalled in mid-way, and some end by themselves.
        """
        trainer = self.trainer
        while trainer.active or not self.run.is_done:
            if not trainer.lane_runs:
                self.take_ended()
                self._begin_lanes()
            if not self.run.is_done:
                self.run.step()
            time.sleep(POLL_S)
            act = self.random.randrange(8)
            if act == 0 and num_recalls:
                num_recalls -= 1
                trainer.give_back(self.random.randint(1, 40))
            elif act == 1:
                trainer.finish_lane()
        self.writer.close()

    def take_ended(self) -> None:
        """Raise what lanes have raised; jobs whose packs are done go on."""
        for _, future in self.trainer.side.take_ended():
            future.result()
        for job_id, active in list(self.trainer.active.items()):
            if active.pack is not None and active.pack.cursor.is_done:
                self.trainer.advance(job_id)

    def _begin_lanes(self) -> None:
        demands = self.trainer.demands(self.random.choice((40, NUM_BLOCKS)))
        for demand in self.random.sample(demands, self.random.randint(0, len(demands))):
            lane = LaneUnits(demand.job_id, self.random.randint(1, 20))
            self.trainer.side.begin(lane, partial(units_beside, self.trainer, lane))

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
