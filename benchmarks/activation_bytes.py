"""Memory of training per token: what each save level keeps, and a whole pack's peak.

kept  buffers that stay from a pack's forward to its backward, by specification and as allocated
peak  the highest climb of allocated bytes while packs run: kept, gradients, logits of the loss, and
      all temporaries
"""

from __future__ import annotations

import torch

from benchmarks.allocation import peak_rise_bytes
from benchmarks.closed_loop import Bench
from benchmarks.saved_graph import graph_figures
from workers.activations import SaveLevel
from workers.train_pack import TrainPack
from workers.trainer import Trainer

PACKS = 2  # begun and ended under the profiler: at least one whole


def measure_activation_bytes(bench: Bench) -> dict[str, object]:
    """Bytes per training token at every save level, and those of autograd graphs."""
    dtype = bench.host.runner.decoder.weights.dtype
    tokens = bench.host.trainer.limits.pack_tokens
    return {
        "tandem": {level.value: level_figures(bench, level) for level in SaveLevel},
        "autograd": graph_figures(bench.model.folder, dtype, tokens),
    }


class FixedLevel:
    """While entered, packs are allocated at one save level, whatever memory allows."""

    def __init__(self, trainer: Trainer, level: SaveLevel) -> None:
        self.trainer, self.level = trainer, level

    def __enter__(self) -> None:
        setattr(self.trainer, "_level", lambda num_tokens: self.level)  # noqa: ARG005, B010

    def __exit__(self, *_: object) -> None:
        delattr(self.trainer, "_level")


def level_figures(bench: Bench, level: SaveLevel) -> dict[str, float]:
    """Bytes per token of packs at one save level."""
    trainer = bench.host.trainer
    with FixedLevel(trainer, level):
        jobs = bench.start(None, 1)
        peak = peak_rise_bytes(lambda: _run_packs(bench, jobs[0]))
        pack = trainer.active[jobs[0]].pack  # has just begun, so that it holds all its buffers
        kept = pack_bytes(pack) / pack.num_tokens
        bench.stop(jobs)
    layers = bench.host.runner.decoder.config.num_layers
    return {
        "specified": trainer.spec.bytes_per_token(level) * layers,
        "kept": kept,
        "peak": peak / pack.num_tokens,
    }


def pack_bytes(pack: TrainPack) -> int:
    """Bytes that a pack's activation buffers hold."""
    tensors: list[torch.Tensor] = [t for layer in pack.layers for t in layer.buffers.values()]
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


def _run_packs(bench: Bench, job_id: str) -> None:
    """Go on until the pack in work has been followed by PACKS others."""
    trainer = bench.host.trainer
    for _ in range(PACKS + 1):
        pack = trainer.active[job_id].pack
        bench.drive(lambda pack=pack: trainer.active[job_id].pack is not pack)  # type: ignore[misc]
