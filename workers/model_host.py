"""One base model on this worker: its weights, cache, adapters, scheduler and trainer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from scheduler.domain.messages import BaseModelInfo, JobProgress
from scheduler.policy.blocks import BlockPool
from scheduler.policy.fairness import FairShare
from scheduler.policy.iteration import IterationScheduler, StepLimits
from scheduler.policy.latency import LatencyLaw, RowCosts
from scheduler.policy.prefix_cache import PrefixCache
from scheduler.policy.slack import SloTargets
from scheduler.text.model_files import read_model_files
from workers.adapter_arena import AdapterArena
from workers.adapter_file import BaseIdentity
from workers.adapter_pool import AdapterPool
from workers.architecture import decoder_config
from workers.base_weights import WeightFolder, load_weights
from workers.checkpoint_writer import CheckpointWriter
from workers.decoder import Decoder
from workers.flight import Flight
from workers.group import ALONE, Group
from workers.hf_config import read_hf_config
from workers.kernels.cpu_kernels import cpu_kernels
from workers.kv_cache import KVCache
from workers.model import DecoderConfig, DecoderWeights
from workers.model_runner import ModelRunner
from workers.pack_placement import TrainerLimits
from workers.row_costs import measure_row_costs
from workers.settings import EngineSettings
from workers.trainer import Trainer
from workers.training_memory import TrainingMemory

COLUMNS_PER_SLOT = 16  # an adapter slot is counted at rank 16

TRAINING_SHAPES = {
    "cpu": {"pack_tokens": 512, "window_tokens": 256, "range_tokens": 256},
    "cuda": {"pack_tokens": 4096, "window_tokens": 1024, "range_tokens": 2048},
}


@dataclass(frozen=True, slots=True)
class LoadedBase:
    """A base model in memory, before anything is set up around it.

    Attributes:
        config: of the whole model; `weights` may be a rank's part.
    """

    identity: BaseIdentity
    config: DecoderConfig
    weights: DecoderWeights
    eos_ids: frozenset[int]


@dataclass(slots=True)
class ModelHost:
    """Everything that belongs to one base model.

    Attributes:
        flight: its newest packed forward, until its tokens are read.
        landed_s: when tokens were read last, on the host's clock.
    """

    info: BaseModelInfo
    eos_ids: frozenset[int]
    runner: ModelRunner
    adapters: AdapterPool
    scheduler: IterationScheduler
    trainer: Trainer
    flight: Flight | None = None
    landed_s: float = 0.0

    @property
    def has_work(self) -> bool:
        """Whether anybody runs, waits or trains, or tokens are to be read."""
        queued = self.scheduler.running or self.scheduler.waiting or self.flight
        return bool(queued or self.trainer.active)

    def most_tokens(self, num_members: int) -> int:
        """Longest sequence that the model's positions hold, and the cache once for each member."""
        pool = self.scheduler.pool
        most = pool.num_blocks // num_members * pool.block_size - 1
        return min(self.info.max_model_len, most)


def load_host(
    model_id: str,
    folder: Path,
    settings: EngineSettings,
    writer: CheckpointWriter,
    report: Callable[[JobProgress], None],
    fair: FairShare,
    group: Group = ALONE,
) -> ModelHost:
    """Load a base model and set up everything around it.

    Raises:
        InvalidInput: the folder is not a model that this engine runs.
    """
    device, dtype = torch.device(settings.device), compute_dtype(settings)
    config = decoder_config(read_hf_config(folder))
    files = WeightFolder(folder)
    base = LoadedBase(
        BaseIdentity(model_id, files.digest(), settings.weight_format),
        config,
        load_weights(files, config, dtype, device, group.shard, settings.weight_format),
        read_model_files(folder).eos_ids,
    )
    return make_host(base, settings, writer, report, fair, group)


def make_host(
    base: LoadedBase,
    settings: EngineSettings,
    writer: CheckpointWriter,
    report: Callable[[JobProgress], None],
    fair: FairShare,
    group: Group = ALONE,
) -> ModelHost:
    """Set up cache, adapters, scheduler and trainer around a base model."""
    config, weights, shard = group.shard.config(base.config), base.weights, group.shard
    device, dtype = weights.device, weights.dtype
    columns = max(settings.adapter_slots * COLUMNS_PER_SLOT, 2 * settings.max_rank)
    arena = AdapterArena(base.config, columns, dtype, device, shard)
    decoder = Decoder(config, weights, arena, group)
    num_blocks = 1 + _num_blocks(
        settings, KVCache.bytes_per_block(config, settings.page_tokens, dtype)
    )
    cache = KVCache(config, num_blocks, settings.page_tokens, dtype, device)
    adapters = AdapterPool(arena, settings.max_rank)
    pool = BlockPool(num_blocks, settings.page_tokens)
    memory = TrainingMemory(pool, cache, settings.training_memory_bytes)
    limits = TrainerLimits(settings.max_jobs, **TRAINING_SHAPES[device.type])
    identity = base.identity
    trainer = Trainer(decoder, adapters, identity, limits, memory, writer, report, fair)
    lanes, law, beside = trainer.side.device, _law(weights, torch.get_num_threads(), group), None
    if lanes.can_share and group.is_alone:  # ranks meet on one thread
        beside = _law(weights, lanes.step_threads, group)
    return ModelHost(
        info=BaseModelInfo(
            id=base.identity.model,
            digest=base.identity.digest,
            max_model_len=config.max_model_len,
            vocab_size=config.vocab_size,
            num_parameters=weights.num_parameters + (shard.size - 1) * weights.num_cut_parameters,
            dtype=str(dtype).removeprefix("torch."),
            weight_format=weights.weight_format,
        ),
        eos_ids=base.eos_ids,
        runner=ModelRunner(decoder, cache, settings.max_num_sequences),
        adapters=adapters,
        scheduler=IterationScheduler(
            pool,
            StepLimits(settings.max_batched_tokens, settings.max_num_sequences),
            law,
            slo_classes(settings),
            fair,
            trainer,
            PrefixCache(pool, identity.computed_digest, is_on=settings.prefix_caching),
            beside,
            share_idles=lanes.share_idles,
        ),
        trainer=trainer,
    )


def _law(weights: DecoderWeights, num_threads: int, group: Group) -> LatencyLaw:
    """What steps take on so many threads, as the leader has measured it."""
    costs = measure_row_costs(weights, num_threads)
    shared = RowCosts(costs.rows, tuple(group.tell(costs.ms)))
    is_captured = weights.device.type == "cuda" and group.is_alone
    return LatencyLaw(shared, len(weights.layers), captures_decode=is_captured)


def slo_classes(settings: EngineSettings) -> dict[str, SloTargets]:
    """Targets by service class, as the scheduler reads them."""
    return {
        name: SloTargets(targets.ttft_ms, targets.tpot_ms)
        for name, targets in settings.service_classes().items()
    }


def compute_dtype(settings: EngineSettings) -> torch.dtype:
    """Dtype of weights and K/V; `auto` is what the device multiplies fast."""
    if settings.dtype != "auto":
        dtype = getattr(torch, settings.dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype
    if settings.device == "cpu" and cpu_kernels(torch.bfloat16) is None:
        return torch.float32
    return torch.bfloat16


def _num_blocks(settings: EngineSettings, block_bytes: int) -> int:
    if settings.kv_cache_bytes is not None:
        return max(1, settings.kv_cache_bytes // block_bytes)
    return max(1, settings.kv_cache_tokens // settings.page_tokens)
