"""What each rank of a group does in `test_tensor_parallel`; alone it gives what is to be equalled.

`python -m tests.unit.workers.rank_work RANK SIZE FOLDER` reads the models FOLDER/<family> and
writes FOLDER/rank-RANK.pt.
"""

from __future__ import annotations

import sys
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import torch

from tests.unit.workers.packed_run import PackedRun, random_lora
from tests.unit.workers.tiny_models import CPU, FAMILIES, VOCAB_SIZE
from tests.unit.workers.train_bench import Bench, random_examples
from workers.activations import SaveLevel
from workers.adapter_arena import AdapterArena
from workers.adapter_file import LoadedAdapter
from workers.adapter_pool import AdapterPool
from workers.architecture import decoder_config
from workers.base_weights import WeightFolder, load_weights
from workers.decoder import Decoder
from workers.group import ALONE, Group
from workers.hf_config import read_hf_config
from workers.lowered_adapter import LoweredAdapter
from workers.model import MODULE_PATHS
from workers.process_group import ProcessGroup

if TYPE_CHECKING:
    from torch import Tensor

    from workers.adapter_arena import AdapterColumns

FORWARD = [(family, torch.float64) for family in FAMILIES] + [("mistral_wide", torch.float32)]
BACKWARD = [(family, SaveLevel.FULL) for family in ("llama", "qwen2", "qwen3")] + [
    ("mistral", level) for level in SaveLevel
]
ADAPTERS = ((5, tuple(MODULE_PATHS)), (2, ("q_proj", "down_proj")), (7, ("o_proj", "v_proj")))
LENGTHS = (3, 17, 40, 25)


def hold(pool: AdapterPool, rank: int, modules: tuple[str, ...]) -> AdapterColumns:
    """A random adapter of the whole model, in a slot as the engine brings it there."""
    arena = pool.arena
    method, params = random_lora(arena.model, rank, rank, modules, arena.dtype)
    lowered = LoweredAdapter.of(LoadedAdapter(method, params), arena)
    slot = pool.try_load(f"rank {rank}", lowered, is_pinned=False)
    assert slot is not None
    pool.acquire(slot)
    return slot.columns


def load_part(folder: Path, dtype: torch.dtype, group: Group) -> Decoder:
    """The rank's part of a model."""
    model = decoder_config(read_hf_config(folder))
    weights = load_weights(WeightFolder(folder), model, dtype, CPU, group.shard)
    arena = AdapterArena(model, 64, dtype, CPU, group.shard)
    return Decoder(group.shard.config(model), weights, arena, group)


def logits(decoder: Decoder) -> list[Tensor]:
    """All logits of prompts with and without adapters, in random chunks."""
    random = Random(3)
    pool = AdapterPool(decoder.arena, max_rank=16)
    columns = [None, *(hold(pool, rank, modules) for rank, modules in ADAPTERS)]
    run = PackedRun(decoder, random)
    for length, own in zip(LENGTHS, columns, strict=True):
        run.add([random.randrange(VOCAB_SIZE) for _ in range(length)], own)
    while not run.is_done:
        run.step()
    return [torch.cat(stream.logits) for stream in run.streams]


def training(decoder: Decoder, level: SaveLevel) -> list[Tensor]:
    """Gradients, then parameters and optimizer state as a checkpoint holds them."""
    random = Random(4)
    bench = Bench(decoder, random, level)
    bench.run.add([random.randrange(VOCAB_SIZE) for _ in range(25)], None)
    bench.start_job(4, tuple(MODULE_PATHS), random_examples(random))
    bench.start_job(3, ("o_proj", "v_proj", "up_proj"), random_examples(random))
    bench.start_job(3, tuple(MODULE_PATHS), random_examples(random), "lora_xs")
    bench.finish()
    found: list[Tensor] = []
    for job in (item.job for item in bench.jobs):
        saved = job.snapshot()
        found.append(job.shard.gathered_flat(job.grads.flat))
        found += [*saved.params.values(), *saved.optimizer_state.values()]
    return found


def work(group: Group, folder: Path) -> dict[str, list[Tensor]]:
    """Results by case."""
    results = {}
    for family, dtype in FORWARD:
        results[f"{family}-{dtype}"] = logits(load_part(folder / family, dtype, group))
    for family, level in BACKWARD:
        decoder = load_part(folder / family, torch.float64, group)
        results[f"{family}-{level.name}"] = training(decoder, level)
    return results


def main() -> None:
    """Work as one rank."""
    rank, size, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    group = ProcessGroup(rank, size, (folder / "meeting").as_uri()) if size > 1 else ALONE
    torch.save(work(group, folder), folder / f"rank-{rank}.pt")


if __name__ == "__main__":
    main()
