"""The engine: one loop that serves and trains every base model of this worker.

step:  drain orders -> schedule (ints) -> packed forward -> tokens leave -> units of training
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import structlog
import torch

import workers.models
import workers.optimizers
import workers.peft_methods  # noqa: F401
from scheduler.domain.errors import (
    ContextTooLong,
    DomainError,
    InvalidInput,
    ModelNotFound,
    Overloaded,
)
from scheduler.domain.messages import (
    Abort,
    Drain,
    EngineReady,
    Frames,
    FromEngine,
    Generate,
    JobStopped,
    Replay,
    StartJob,
    StopJob,
    ToEngine,
    TokenFrame,
    WorkerCapabilities,
)
from scheduler.domain.plan import StepPlan
from scheduler.domain.request import FinishReason, RequestBody, Sequence
from scheduler.policy.fairness import FairShare
from scheduler.policy.pack_cursor import Unit
from workers.adapter_arena import AdapterColumns
from workers.adapter_file import LoadedAdapter, read_adapter
from workers.batch_builder import InferenceRow
from workers.checkpoint_writer import CheckpointWriter
from workers.engine_stats import EngineMeter
from workers.job_checkpoint import fingerprint
from workers.live_request import LiveRequest
from workers.model_host import ModelHost, compute_dtype, load_host
from workers.optimizer import OPTIMIZERS
from workers.peft_method import PEFT_METHODS
from workers.sampler import SampledToken
from workers.settings import EngineSettings

log = structlog.get_logger()

IDLE_POLL_S = 0.25  # how long an engine without work sleeps between two looks at the clock


class Connection(Protocol):
    """The engine's end of the pipe to its agent."""

    def poll(self, timeout_s: float) -> list[ToEngine]:
        """Everything that has arrived; waits up to `timeout_s` for the first."""

    def send(self, message: FromEngine) -> None:
        """Report; never waits."""


class EngineLoop:
    """Orders in, frames and reports out."""

    def __init__(self, settings: EngineSettings, connection: Connection) -> None:
        self.settings = settings
        self.connection = connection
        machine = fingerprint(torch.device(settings.device), compute_dtype(settings))
        self.writer = CheckpointWriter(connection.send, machine)
        fair = FairShare()
        self.hosts = {
            model_id: load_host(model_id, folder, settings, self.writer, connection.send, fair)
            for model_id, folder in settings.model_dirs().items()
        }
        self.live: dict[str, LiveRequest] = {}
        self.pending: list[ToEngine] = []
        self.is_draining = False
        self.meter = EngineMeter()

    def run(self) -> None:
        """Serve until drained, or until the connection closes."""
        self.connection.send(EngineReady(capabilities=self.capabilities()))
        while not (self.is_draining and not self.live):
            self.turn()
            if self.meter.is_due():
                self.connection.send(self.meter.report(list(self.hosts.values())))
        self.writer.close()

    def turn(self) -> None:
        """Handle the orders that have arrived, then one step of every base model."""
        self._take_orders()
        for job_id in self.writer.take_failed():
            self._drop_job(job_id)
        for host in self.hosts.values():
            self.step(host)

    def capabilities(self) -> WorkerCapabilities:
        """What this engine can do, for the gateway to validate against."""
        return WorkerCapabilities(
            base_models=tuple(host.info for host in self.hosts.values()),
            peft_methods={
                n: PEFT_METHODS[n].Config.model_json_schema() for n in PEFT_METHODS.names()
            },
            optimizers={n: OPTIMIZERS[n].Config.model_json_schema() for n in OPTIMIZERS.names()},
            objectives={"supervised": {}},
            max_rank=self.settings.max_rank,
            max_num_sequences=self.settings.max_num_sequences,
        )

    # ---- orders ------------------------------------------------------------------------------

    def _take_orders(self) -> None:
        """Handle what has arrived; sleep when there is nothing to do at all."""
        orders, self.pending = self.pending, []
        has_work = bool(orders) or any(self._has_work(host) for host in self.hosts.values())
        orders += self.connection.poll(0.0 if has_work else IDLE_POLL_S)
        for order in orders:
            self._handle(order)

    @staticmethod
    def _has_work(host: ModelHost) -> bool:
        return bool(host.scheduler.running or host.scheduler.waiting or host.trainer.active)

    def _handle(self, order: ToEngine) -> None:
        match order:
            case Generate():
                self._generate(order)
            case Abort():
                self._abort(order)
            case Replay():
                self._replay(order)
            case StartJob():
                self._start_job(order)
            case StopJob():
                self._stop_job(order)
            case Drain():
                self._drain()

    def _generate(self, order: Generate) -> None:
        if order.request.request_id in self.live:
            return  # sent twice
        try:
            request = self._accept(order)
        except DomainError as error:
            frame = TokenFrame(
                request_id=order.request.request_id,
                index=0,
                seq=0,
                finish_reason=FinishReason.ERROR,
                error=error.message,
                error_code=error.code,
            )
            self.connection.send(Frames(reply_to=order.reply_to, frames=(frame,)))
            return
        self.live[order.request.request_id] = request
        for sequence in request.sequences:
            request.host.scheduler.add(sequence)

    def _accept(self, order: Generate) -> LiveRequest:
        request = order.request
        host = self.hosts.get(request.base_model)
        if host is None:
            raise ModelNotFound(f"This worker does not hold the base model {request.base_model!r}.")
        if self.is_draining:
            raise Overloaded("This worker is shutting down; try again.")
        check_request(request, host)
        live = LiveRequest.of(order, host, time.monotonic())
        if request.adapter is not None and host.adapters.get(request.adapter.digest) is None:
            live.adapter = self._read_adapter(live)
        return live

    @staticmethod
    def _read_adapter(live: LiveRequest) -> LoadedAdapter:
        if live.order.adapter_dir is None:
            raise InvalidInput("The request names an adapter but came without its files.")
        return read_adapter(Path(live.order.adapter_dir), live.host.runner.decoder.config)

    def _admit(self, sequence: Sequence) -> bool:
        """Bring a sequence's adapter into a slot; False while none is free, or if it is refused."""
        live = self.live[sequence.request.request_id]
        try:
            if not self._hold_adapter(live):
                return False
        except DomainError as error:
            self._refuse(live, error)
            return False
        if live.admitted_s is None:
            live.admitted_s = time.monotonic()
        return True

    def _hold_adapter(self, live: LiveRequest) -> bool:
        """Hold the adapter's slot; only from here on, so that waiting requests block no columns."""
        adapter, pool = live.order.request.adapter, live.host.adapters
        if adapter is None or live.slot is not None:
            return True
        slot = pool.get(adapter.digest)
        if slot is None:
            slot = pool.try_load(adapter.digest, live.adapter or self._read_adapter(live))
        if slot is None:
            return False
        pool.acquire(slot)
        live.slot, live.adapter = slot, None
        return True

    def _refuse(self, live: LiveRequest, error: DomainError) -> None:
        """End a request that waits, with the reason."""
        first = next(s for s in live.sequences if s.finish_reason is None)
        self._end_all(live)
        frame = live.frame(first, None, error=error.message, error_code=error.code)
        self.connection.send(Frames(reply_to=live.order.reply_to, frames=(frame,)))
        self._forget_if_done(live)

    def _end_all(self, live: LiveRequest) -> None:
        """End every sequence of a request in error: an error frame is a request's last."""
        for sequence in live.sequences:
            if sequence.finish_reason is None:
                self._end(live, sequence, FinishReason.ERROR)

    def _abort(self, order: Abort) -> None:
        live = self.live.get(order.request_id)
        if live is None:
            return
        for sequence in live.sequences:
            if sequence.finish_reason is None and order.index in (None, sequence.index):
                self._end(live, sequence, FinishReason.ABORT)
        self._forget_if_done(live)

    def _replay(self, order: Replay) -> None:
        live = self.live.get(order.request_id)
        if live is not None and order.from_seq < len(live.frames):
            frames = tuple(live.frames[order.from_seq :])
            self.connection.send(Frames(reply_to=live.order.reply_to, frames=frames))

    def _start_job(self, order: StartJob) -> None:
        host = self.hosts.get(order.spec.base_model)
        epochs = self._epochs_of(order.job_id)
        if any(epoch >= order.epoch for epoch in epochs):
            return  # sent twice
        if epochs:  # what trained under the older lease is nobody's any more
            self._drop_job(order.job_id)
        with self._job_boundary(order.job_id, order.epoch):
            if host is None:
                raise ModelNotFound(f"This worker does not hold {order.spec.base_model!r}.")
            try:
                if self.is_draining:
                    raise Overloaded("This worker is shutting down.")
                host.trainer.start(order)
            except Overloaded as error:  # no failure of the job's: another worker may take it
                log.warning("job_not_taken", job_id=order.job_id, reason=error.message)
                self.writer.submit(JobStopped(job_id=order.job_id, epoch=order.epoch))
                return
            log.info("job_started", job_id=order.job_id, epoch=order.epoch)

    def _epochs_of(self, job_id: str) -> list[int]:
        """Under which leases the job trains here: none or one."""
        found = [host.trainer.active.get(job_id) for host in self.hosts.values()]
        return [active.job.order.epoch for active in found if active is not None]

    def _drop_job(self, job_id: str) -> None:
        for host in self.hosts.values():
            if job_id in host.trainer.active:
                host.trainer.drop(job_id)

    def _stop_job(self, order: StopJob) -> None:
        for host in self.hosts.values():
            active = host.trainer.active.get(order.job_id)
            if active is not None:
                host.trainer.stop(order.job_id, checkpoint=order.checkpoint)
                self.writer.submit(JobStopped(job_id=order.job_id, epoch=active.job.order.epoch))

    def _drain(self) -> None:
        self.is_draining = True
        for host in self.hosts.values():
            for job_id in list(host.trainer.active):
                self._stop_job(StopJob(job_id=job_id, checkpoint=True))

    # ---- one step ------------------------------------------------------------------------------

    def step(self, host: ModelHost) -> None:
        """Run one co-serving iteration of a base model."""
        if not self._has_work(host):
            return
        plan = host.scheduler.schedule(time.monotonic(), host.trainer.demands(), self._admit)
        began_s = time.perf_counter()
        if plan.spans or plan.windows:
            self._forward(host, plan)
        units = self._run_lane(host, plan)
        self._advance_jobs(host)
        self.meter.count_step(plan, units, (time.perf_counter() - began_s) * 1e3)

    def _forward(self, host: ModelHost, plan: StepPlan) -> None:
        """The packed forward; tokens leave before any backward begins."""
        shape = host.scheduler.forward_shape(
            plan.spans, tuple((w.start, w.count) for w in plan.windows)
        )
        began_s = time.perf_counter()
        by_id = {sequence.id: sequence for sequence in host.scheduler.running}
        rows = [
            InferenceRow(span, by_id[span.sequence_id], self._columns(by_id[span.sequence_id]))
            for span in plan.spans
        ]
        host.runner.cache.clear(list(plan.fresh_blocks))
        starts = {span.sequence_id: span.start for span in plan.spans}
        result = host.runner.run(rows, host.trainer.pack_windows(plan.windows))
        host.scheduler.commit(plan)
        for sequence_id, scores in result.prompt_logprobs.items():
            sequence = by_id[sequence_id]
            if sequence.index == 0 and sequence.num_output_tokens == 0:
                known = self.live[sequence.request.request_id].prompt_scores
                known[starts[sequence_id] :] = scores  # a preempted prompt is scored again
        self.meter.output_tokens += len(result.sampled)
        self._emit(host, [by_id[i] for i in result.sampled], list(result.sampled.values()))
        host.trainer.finish_windows(plan.windows, result.hidden)
        host.scheduler.law.observe_forward(shape, (time.perf_counter() - began_s) * 1e3)

    def _run_lane(self, host: ModelHost, plan: StepPlan) -> list[Unit]:
        """Units of training, until done or until somebody new asks for service."""
        done: list[Unit] = []
        for lane in plan.units:
            active = host.trainer.active[lane.job_id]
            with self._job_boundary(lane.job_id, active.job.order.epoch):
                began_s = time.perf_counter()
                for unit in host.trainer.run_units(lane, self._nobody_new):
                    now_s = time.perf_counter()
                    host.scheduler.law.observe_unit(unit, (now_s - began_s) * 1e3)
                    began_s = now_s
                    done.append(unit)
        return done

    def _advance_jobs(self, host: ModelHost) -> None:
        for job_id, active in list(host.trainer.active.items()):
            if active.pack.cursor.is_done:
                with self._job_boundary(job_id, active.job.order.epoch):
                    host.trainer.advance(job_id)

    def _nobody_new(self) -> bool:
        """Look for orders between two units; the lane yields to any."""
        if not self.pending:
            self.pending = self.connection.poll(0.0)
        return not self.pending

    @contextmanager
    def _job_boundary(self, job_id: str, epoch: int) -> Iterator[None]:
        """A job that raises fails alone; serving and other jobs go on."""
        try:
            yield
        except DomainError as error:
            self._fail_job(job_id, epoch, error.message, error.code)
        except Exception:
            log.exception("job_crashed", job_id=job_id)
            self._fail_job(
                job_id, epoch, "The engine hit an internal error in this job.", "internal"
            )

    def _fail_job(self, job_id: str, epoch: int, message: str, code: str) -> None:
        self._drop_job(job_id)
        self.writer.submit(JobStopped(job_id=job_id, epoch=epoch, error=message, error_code=code))

    # ---- tokens leave ----------------------------------------------------------------------------

    def _columns(self, sequence: Sequence) -> AdapterColumns | None:
        slot = self.live[sequence.request.request_id].slot
        return None if slot is None else slot.columns

    def _emit(self, host: ModelHost, sequences: list[Sequence], tokens: list[SampledToken]) -> None:
        """Append the drawn tokens and send one message of frames to each gateway."""
        now_s = time.monotonic()
        frames: dict[str, list[TokenFrame]] = defaultdict(list)
        for sequence, token in zip(sequences, tokens, strict=True):
            live = self.live.get(sequence.request.request_id)
            if live is None or sequence.finish_reason is not None:
                continue  # another answer of the request has just failed
            frames[live.order.reply_to].append(self._deliver(host, live, sequence, token, now_s))
            self._forget_if_done(live)
        for reply_to, batch in frames.items():
            self.connection.send(Frames(reply_to=reply_to, frames=tuple(batch)))

    def _deliver(
        self,
        host: ModelHost,
        live: LiveRequest,
        sequence: Sequence,
        token: SampledToken,
        now_s: float,
    ) -> TokenFrame:
        if token.token_id is None:
            self._end_all(live)
            return live.frame(
                sequence,
                None,
                error="The model gave logits that are not finite.",
                error_code="not_finite",
            )
        if sequence.request.sampling.max_tokens == 0:
            self._end(live, sequence, FinishReason.LENGTH)
            return live.frame(sequence, None)
        sequence.token_ids.append(token.token_id)
        if sequence.first_token_s is None:
            sequence.first_token_s = now_s
        live.token_times_s.setdefault(sequence.index, []).append(now_s)
        reason = finish_reason(sequence, host)
        if reason is not None:
            self._end(live, sequence, reason)
        return live.frame(sequence, token)

    def _end(self, live: LiveRequest, sequence: Sequence, reason: FinishReason) -> None:
        sequence.finish_reason = reason
        live.host.scheduler.remove(sequence)
        training = bool(live.host.trainer.active)
        self.meter.count_request(live.sample(sequence, training_active=training))

    def _forget_if_done(self, live: LiveRequest) -> None:
        if live.is_done:
            del self.live[live.order.request.request_id]
            if live.slot is not None:
                live.host.adapters.release(live.slot)


def check_request(request: RequestBody, host: ModelHost) -> None:
    """Refuse what would index outside of a table, or could never finish.

    Raises:
        ContextTooLong: the prompt is longer than the model's context or the K/V cache.
        InvalidInput: a token id outside the vocabulary, or an unknown service class.
    """
    biased = request.sampling.logit_bias
    for name, token_ids in (("prompt", request.prompt_token_ids), ("logit_bias", biased)):
        if token_ids and not 0 <= min(token_ids) <= max(token_ids) < host.info.vocab_size:
            raise InvalidInput(f"A token id of {name} is outside the vocabulary.", param=name)
    if request.service_class not in host.scheduler.classes:
        raise InvalidInput(f"Unknown service class {request.service_class!r}.")
    longest = max_tokens(host)
    if len(request.prompt_token_ids) > longest:
        raise ContextTooLong(
            f"The prompt has {len(request.prompt_token_ids)} tokens; this worker holds {longest}.",
            param="prompt",
        )


def max_tokens(host: ModelHost) -> int:
    """Longest sequence that the model's positions and the K/V cache hold."""
    pool = host.scheduler.pool
    return min(host.info.max_model_len, pool.num_blocks * pool.block_size - 1)


def finish_reason(sequence: Sequence, host: ModelHost) -> FinishReason | None:
    """Why a sequence ends with its newest token, if it does."""
    sampling = sequence.request.sampling
    token = sequence.token_ids[-1]
    if token in sampling.stop_token_ids or (token in host.eos_ids and not sampling.ignore_eos):
        return FinishReason.STOP
    if sequence.num_output_tokens >= sampling.max_tokens:
        return FinishReason.LENGTH
    if len(sequence.token_ids) >= max_tokens(host):
        return FinishReason.LENGTH
    return None
