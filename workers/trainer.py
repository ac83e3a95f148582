"""Drives the jobs of one base model: windows in the packed forward, units in the lane after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from scheduler.domain.errors import InvalidInput, Overloaded
from scheduler.domain.job import FinetuneSpec
from scheduler.domain.messages import JobProgress, StartJob
from scheduler.domain.plan import LaneUnits, WindowSpan
from scheduler.policy.fairness import TRAINING_PRICE, FairShare
from scheduler.policy.pack_cursor import Unit
from scheduler.policy.training import TrainDemand
from workers.activations import ActivationSpec, SaveLevel
from workers.active_job import ActiveJob
from workers.adapter_file import BaseIdentity
from workers.adapter_pool import JOB_PREFIX, AdapterPool, AdapterSlot
from workers.batch_builder import PackWindow
from workers.checkpoint_writer import CheckpointWriter, WriteRequest
from workers.decoder import Decoder
from workers.flat_params import FlatParams
from workers.job_checkpoint import CheckpointData, read_checkpoint
from workers.job_preparer import JobPreparer
from workers.lane_device import lane_device
from workers.optimizers import OPTIMIZERS
from workers.pack_placement import PackPlacement, TrainerLimits
from workers.param_shard import ParamShard
from workers.peft_method import PeftMethod
from workers.peft_methods import PEFT_METHODS
from workers.plugin_options import plugin_options
from workers.side_lane import SideLane
from workers.term_grads import TermGrads
from workers.train_data import TrainData, read_examples
from workers.train_job import TrainJob
from workers.train_pack import TrainPack
from workers.training_memory import TrainingMemory
from workers.unit_runner import UnitRunner


class Trainer:
    """The jobs that train on one base model."""

    def __init__(
        self,
        decoder: Decoder,
        pool: AdapterPool,
        base: BaseIdentity,
        limits: TrainerLimits,
        memory: TrainingMemory,
        writer: CheckpointWriter,
        report: Callable[[JobProgress], None],
        fair: FairShare,
    ) -> None:
        self.decoder = decoder
        self.pool = pool
        self.base = base
        self.limits = limits
        self.writer = writer
        self.report = report
        self.fair = fair
        self.memory = memory
        self.spec = ActivationSpec.of(decoder.config, decoder.weights.dtype)
        self.placement = PackPlacement(decoder, self.spec, limits, memory)
        self.units = UnitRunner(decoder, self.spec)
        self.preparer = JobPreparer(decoder)
        self.device = decoder.weights.device
        self.active: dict[str, ActiveJob] = {}
        self._tokens_of_dropped = 0
        # Inference alone replays captured steps on CUDA; with a window in it a step is eager.
        self.windows_ride = self.device.type == "cpu"
        self.num_recalls = 0
        self.side = SideLane(lane_device(self.device))

    # ---- jobs come and go ----------------------------------------------------------------

    def start(self, order: StartJob) -> bool:
        """Begin or resume a job; False if it had nothing left to do.

        Raises:
            DomainError: its rank, data or checkpoint cannot be used.
        """
        shard = self._make_shard(order.spec)
        slot = self._reserve(order.job_id, shard.own)
        with ExitStack() as undo:
            undo.callback(self.pool.discard, slot)
            job = self._make_job(order, shard, slot)
            if order.resume_from is not None:
                job.restore(read_checkpoint(Path(order.resume_from), job.shard.whole))
            active = ActiveJob.of(job, self.preparer.prepare(job))
            if active.preparing is None and not active.begin():
                return False
            undo.pop_all()
        self.active[order.job_id] = active
        self.fair.enter(order.tenant_id)
        return True

    def stop(self, job_id: str, *, checkpoint: bool) -> None:
        """Drop a job; a checkpoint holds its state after the last optimizer step.

        One that is still being prepared has no state.
        """
        active = self.active[job_id]
        if checkpoint and active.preparing is None:
            self._write(active.job, active.job.snapshot(), False)
        self.drop(job_id)

    def demands(self, lendable_blocks: int) -> list[TrainDemand]:
        """See Training: what each job could run next, once packs that wait have found memory."""
        self._place_packs(lendable_blocks)
        return [
            self._demand(active, active.pack)
            for job_id, active in self.active.items()
            if active.pack is not None and not self.side.has_failed(job_id)
        ]

    def give_back(self, num_blocks: int) -> None:
        """See Training: saves that can be computed again go first, then packs start over.

        The last in order yields first.
        """
        self.finish_lane()
        freed = 0
        for give in (self._drop_saves, self._start_over):
            for active in reversed(self._in_order()):
                if freed >= num_blocks:
                    return
                if active.pack is not None:
                    freed += give(active, active.pack)

    @property
    def trained_tokens(self) -> int:
        """Tokens of all optimizer steps taken here; it never falls."""
        return self._tokens_of_dropped + sum(job.trained_tokens for job in self.active.values())

    @property
    def lane_runs(self) -> bool:
        """See Training."""
        return self.side.is_running

    def finish_lane(self) -> None:
        """See Training."""
        self.side.finish()

    def _place_packs(self, lendable_blocks: int) -> None:
        """Memory for packs that have none, in order; nobody is let past."""
        waiting = [
            active
            for active in self._in_order()
            if active.pack is None and active.preparing is None
        ]
        room = min(lendable_blocks, self.memory.num_left)
        for i, active in enumerate(waiting):
            is_fixed = active.job.order.spec.deterministic
            share = room // (len(waiting) - i)
            if is_fixed:
                share = self.memory.max_blocks // self.limits.max_jobs
            pack = self.placement.try_place(active.work, room, share, is_fixed=is_fixed)
            if pack is None:
                return
            active.pack = pack
            room -= len(pack.loan.run)
        self._raise_levels(room)

    def _raise_levels(self, room: int) -> None:
        """Let packs of which nothing has run keep more, where memory has become free since."""
        for active in self._in_order():
            pack = active.pack
            if pack is None or pack.cursor.has_begun or active.job.order.spec.deterministic:
                continue
            fuller = self.placement.try_raise(active.work, pack, room)
            if fuller is not None:
                room += active.release() - len(fuller.loan.run)
                active.pack = fuller

    def _in_order(self) -> list[ActiveJob]:
        """Highest priority first, then the tenant that was served least."""

        def place(active: ActiveJob) -> tuple[int, float, str]:
            order = active.job.order
            return -order.spec.priority, self.fair.level(order.tenant_id), order.job_id

        return sorted(self.active.values(), key=place)

    def _drop_saves(self, active: ActiveJob, pack: TrainPack) -> int:
        if pack.level is not SaveLevel.FULL or active.job.order.spec.deterministic:
            return 0
        return pack.drop_saves(self.memory.blocks_for(pack.layout.lasting_bytes))

    def _start_over(self, active: ActiveJob, pack: TrainPack) -> int:
        del pack
        self.num_recalls += 1
        return active.start_over()

    def _demand(self, active: ActiveJob, pack: TrainPack) -> TrainDemand:
        order = active.job.order
        return TrainDemand(
            order.job_id,
            pack.cursor,
            served=self.fair.level(order.tenant_id),
            priority=order.spec.priority,
            may_ride=self.windows_ride and not order.spec.deterministic,
            max_share=order.spec.max_share,
        )

    # ---- windows that ride in a packed forward --------------------------------------------

    def pack_windows(self, windows: tuple[WindowSpan, ...]) -> list[PackWindow]:
        """The planned windows as packs and columns."""
        return [
            PackWindow(
                self.active[w.job_id].running_pack(),
                w.start,
                w.count,
                self.active[w.job_id].job.slot.columns,
            )
            for w in windows
        ]

    @torch.inference_mode()
    def finish_windows(self, windows: tuple[WindowSpan, ...], hidden: Tensor) -> None:
        """Keep the windows' hidden rows for the loss; their cursors move on."""
        row = 0
        for window in windows:
            active = self.active[window.job_id]
            pack = active.running_pack()
            pack.keep_hidden(window.start, hidden[row : row + window.count])
            pack.cursor = pack.cursor.after_window(window.count)
            self._count(active, window.count)
            row += window.count

    # ---- the lane of units -----------------------------------------------------------------

    @torch.inference_mode()
    def run_units(self, plan: LaneUnits, may_go_on: Callable[[], bool]) -> Iterator[Unit]:
        """Run up to `plan.count` units of a job, yielding each once it is done."""
        active = self.active[plan.job_id]
        pack = active.running_pack()
        for _ in range(plan.count):
            unit = pack.cursor.next_unit()
            if unit is None or not may_go_on():
                return
            self.units.run(active, unit)
            num_before, pack.cursor = pack.cursor.num_forward_tokens, pack.cursor.after(unit)
            self._count(active, pack.cursor.num_forward_tokens - num_before)
            yield unit

    def advance(self, job_id: str) -> bool:
        """Ask a job that waits for work for some; False when the job has ended.

        Raises:
            DomainError: see ActiveJob.
        """
        if self.active[job_id].advance():
            return True
        self.drop(job_id)
        return False

    def drop(self, job_id: str) -> None:
        """Forget a job that has ended or raised."""
        self.side.discard(job_id)
        active = self.active.pop(job_id)
        self.fair.leave(active.job.order.tenant_id)
        self._tokens_of_dropped += active.trained_tokens
        active.close()
        self.pool.discard(active.job.slot)

    # ---- inside ------------------------------------------------------------------------------

    def _count(self, active: ActiveJob, tokens: int) -> None:
        order = active.job.order
        self.fair.charge(order.tenant_id, order.tenant_weight, TRAINING_PRICE * tokens)

    def _make_shard(self, spec: FinetuneSpec) -> ParamShard:
        method_type = PEFT_METHODS[spec.method]
        options = plugin_options(method_type.Config, spec.method_config)
        whole = method_type(options, self.decoder.arena.model)
        return ParamShard(whole, method_type(options, self.decoder.config), self.decoder.group)

    def _reserve(self, job_id: str, method: PeftMethod) -> AdapterSlot:
        if len(self.active) >= self.limits.max_jobs:
            raise Overloaded(f"This worker trains at most {self.limits.max_jobs} jobs at once.")
        slot = self.pool.try_reserve(f"{JOB_PREFIX}{job_id}", method)
        if slot is None:
            raise Overloaded("No adapter columns are free for this job's rank.")
        self.pool.acquire(slot)
        return slot

    def _make_job(self, order: StartJob, shard: ParamShard, slot: AdapterSlot) -> TrainJob:
        spec = order.spec
        optimizer_type = OPTIMIZERS[spec.optimizer]
        optimizer = optimizer_type(optimizer_type.Config.model_validate(spec.optimizer_config))
        wide = self.spec.wide_dtype
        params = FlatParams(shard.own.file_shapes(), wide, self.device)
        if order.resume_from is None:
            shard.init(params, spec.seed)
        grads = FlatParams(shard.own.shapes(), wide, self.device)
        return TrainJob(
            order=order,
            shard=shard,
            optimizer=optimizer,
            slot=slot,
            term_views=self.pool.arena.terms(slot.columns),
            data=self._data(order.train_path, order),
            valid=self._data(order.valid_path, order) if order.valid_path else None,
            params=params,
            grads=grads,
            term_grads=TermGrads(
                self.decoder.config, slot.columns, wide, self.device, shard.own.trained_parts
            ),
            optimizer_state=optimizer.init_state(params.flat[: len(grads.flat)]),
            report=self.report,
            checkpoint=self._write,
        )

    def _data(self, path: str, order: StartJob) -> TrainData:
        spec = order.spec
        examples, longest = read_examples(Path(path), self.decoder.config)
        if not self.placement.fits(longest):
            raise InvalidInput(
                f"An example of {longest} tokens does not fit into this worker's memory for "
                "training; kv_cache_tokens and training_memory_bytes bound it."
            )
        pack_tokens = self.limits.pack_tokens
        return TrainData(
            examples,
            spec.examples_per_step,
            spec.n_epochs,
            spec.seed,
            pack_tokens if self.placement.fits(pack_tokens) else longest,
        )

    def _write(self, job: TrainJob, data: CheckpointData, is_final: bool) -> None:
        self.writer.submit(
            WriteRequest(
                root=Path(job.order.checkpoint_root),
                job_id=job.job_id,
                epoch=job.order.epoch,
                method=job.shard.whole,
                data=data,
                base=self.base,
                seed=None if job.method.fixed_shapes() else job.order.spec.seed,
                is_final=is_final,
            )
        )
