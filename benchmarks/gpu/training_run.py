"""One job on one example at one save level, in memory of just that size and without an engine."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.gpu.random_job import lora_job, write_dataset
from benchmarks.gpu.random_model import BASE, RANK
from benchmarks.gpu.sequences import PAGE
from benchmarks.gpu.setting import Setting
from scheduler.domain.plan import LaneUnits
from scheduler.policy.blocks import BlockPool
from scheduler.policy.fairness import FairShare
from scheduler.policy.pack_cursor import PackCursor
from workers.activations import ActivationSpec, SaveLevel
from workers.adapter_file import BaseIdentity
from workers.adapter_pool import AdapterPool
from workers.checkpoint_writer import CheckpointWriter
from workers.decoder import Decoder
from workers.job_checkpoint import fingerprint
from workers.kv_cache import KVCache
from workers.model_host import TRAINING_SHAPES
from workers.pack_layout import PackLayout
from workers.pack_placement import TrainerLimits
from workers.train_pack import TrainPack
from workers.trainer import Trainer
from workers.training_memory import TrainingMemory

JOB = "job"


class TrainingRun:
    """A trainer whose memory holds one pack, and so keeps it at the level that was asked for."""

    def __init__(self, decoder: Decoder, setting: Setting, level: SaveLevel, tokens: int) -> None:
        self.tokens = tokens
        memory = self._memory(decoder, setting, level)
        shapes = {"pack_tokens": tokens} | {
            name: min(size, tokens)
            for name, size in TRAINING_SHAPES[setting.device.type].items()
            if name != "pack_tokens"
        }
        self.trainer = Trainer(
            decoder,
            AdapterPool(decoder.arena, RANK),
            BaseIdentity(BASE, "0"),
            TrainerLimits(max_jobs=1, **shapes),
            memory,
            CheckpointWriter(lambda _: None, fingerprint(setting.device, setting.dtype)),
            lambda _: None,
            FairShare(),
        )
        folder = Path(tempfile.mkdtemp(prefix="tandem-gpu-"))
        write_dataset(folder / "train.bin", 1, tokens, decoder.config.vocab_size)
        self.trainer.start(lora_job(JOB, folder / "train.bin", folder, batch_size=1))

    @property
    def pack(self) -> TrainPack:
        """The example in memory."""
        self.trainer.demands(self.trainer.memory.max_blocks)
        return self.trainer.active[JOB].running_pack()

    def step(self) -> None:
        """The example forward and back, and the optimizer's step."""
        while not self.pack.cursor.is_done:
            self.run_units(1 << 20)
        self.trainer.advance(JOB)

    def run_heaviest(self) -> None:
        """What ends with the last token: its window, its loss, its range back through the layers.

        No more is held at any other time, and it takes seconds where the whole would take minutes.
        """
        pack = self.pack
        pack.cursor = last_window(pack.cursor)
        while (unit := pack.cursor.next_unit()) is not None and unit.stop == self.tokens:
            self.run_units(1)

    def run_units(self, count: int) -> None:
        """Up to so many of the pack's units."""
        for _ in self.trainer.run_units(LaneUnits(JOB, count), lambda: True):
            pass

    def _memory(self, decoder: Decoder, setting: Setting, level: SaveLevel) -> TrainingMemory:
        config, dtype = decoder.config, setting.dtype
        spec = ActivationSpec.of(config, dtype)
        layout = PackLayout(spec, level, self.tokens, config.num_layers)
        blocks = 1 + -(-layout.num_bytes // KVCache.bytes_per_block(config, PAGE, dtype))
        cache = KVCache(config, blocks, PAGE, dtype, setting.device)
        cache.storage.zero_()
        return TrainingMemory(BlockPool(blocks, PAGE), cache, cache.storage.nbytes)


def last_window(cursor: PackCursor) -> PackCursor:
    """A fresh pack's cursor where only the last window's forward and loss are to come."""
    rest = cursor.num_tokens % cursor.window_tokens or cursor.window_tokens
    before = cursor.num_tokens - rest
    loss = cursor.num_tokens - min(cursor.loss_tokens, rest)
    return replace(cursor.after_window(before), num_loss_tokens=loss)
