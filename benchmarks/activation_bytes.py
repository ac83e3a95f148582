"""Memory of training per token: what each save level keeps, and a whole pack's peak.

kept  buffers that stay from a pack's forward to its backward, by specification and as laid out
peak  all that a pack borrows from the memory pool, and the highest climb of allocated bytes while
      packs run: key and value gradients, logits of the loss, and all temporaries
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.allocation import peak_rise_bytes
from benchmarks.closed_loop import Bench
from benchmarks.saved_graph import graph_figures
from workers.activations import SaveLevel
from workers.active_job import ActiveJob
from workers.pack_layout import PackLayout
from workers.pack_placement import PackPlacement
from workers.train_pack import PackWork, TrainPack
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


class FixedLevel(PackPlacement):
    """A placement that keeps as much as it is told, whatever memory allows.

    Attributes:
        placed: the pack that was placed last.
    """

    placed: TrainPack

    def __init__(self, before: PackPlacement, level: SaveLevel) -> None:
        super().__init__(before.decoder, before.spec, before.limits, before.memory)
        self.level = level

    def choices(self, work: PackWork, share_blocks: int) -> list[PackLayout]:
        """The layout of the one level."""
        del share_blocks
        return [self._layout(self.level, work.tokens.num_tokens, trains=work.trains)]

    def try_place(
        self, work: PackWork, room_blocks: int, share_blocks: int, *, is_fixed: bool
    ) -> TrainPack | None:
        """The pack, which is remembered."""
        pack = super().try_place(work, room_blocks, share_blocks, is_fixed=is_fixed)
        if pack is not None:
            self.placed = pack
        return pack


@contextmanager
def fixed_level(trainer: Trainer, level: SaveLevel) -> Iterator[FixedLevel]:
    """While entered, packs are kept at one save level."""
    before = trainer.placement
    trainer.placement = placement = FixedLevel(before, level)
    try:
        yield placement
    finally:
        trainer.placement = before


def level_figures(bench: Bench, level: SaveLevel) -> dict[str, float]:
    """Bytes per token of packs at one save level."""
    trainer = bench.host.trainer
    with fixed_level(trainer, level) as placement:
        jobs = bench.start(None, 1)
        rise = peak_rise_bytes(lambda: _run_packs(bench, jobs[0]))
        bench.stop(jobs)
    pack = placement.placed
    borrowed = pack.layout.num_bytes
    layers = bench.host.runner.decoder.config.num_layers
    return {
        "specified": trainer.spec.bytes_per_token(level) * layers,
        "kept": (borrowed - pack.grad_out.nbytes) / pack.num_tokens,
        "peak": (borrowed + rise) / pack.num_tokens,
    }


def _run_packs(bench: Bench, job_id: str) -> None:
    """Go on until the work at hand has been followed by PACKS others."""
    for _ in range(PACKS + 1):
        _run_pack(bench, bench.host.trainer.active[job_id])


def _run_pack(bench: Bench, job: ActiveJob) -> None:
    work = job.work
    bench.drive(lambda: job.work is not work)
