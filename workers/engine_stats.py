"""Counts what the engine does, keeps its newest steps, and reports twice a second."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Sequence
from itertools import islice

from scheduler.domain.adapter_tier import AdapterTier
from scheduler.domain.engine_stats import EngineStats, JobShare, RequestSample, StepSample
from scheduler.domain.plan import StepPlan
from scheduler.policy.pack_cursor import Direction, Unit
from scheduler.policy.slack import SloTargets
from workers.adapter_loader import Load
from workers.histogram import Histogram
from workers.model_host import ModelHost
from workers.slo_tally import SloTally

REPORT_EVERY_S = 0.5
RING_STEPS = 512  # the newest steps that an engine remembers
MAX_REQUESTS = 512  # of one report; more are counted in the totals only
MS_BOUNDS = (
    *(1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 75.0, 100.0, 150.0, 200.0),
    *(300.0, 500.0, 1000.0, 2000.0),
)
ERROR_MS_BOUNDS = (0.1, 0.2, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0)
TOKEN_BOUNDS = (1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0)
KINDS = ("decode", "prefill", "train_forward", "train_backward")


class EngineMeter:
    """The newest steps, the requests since the last report, and totals since the start."""

    def __init__(self) -> None:
        self._due_s = time.monotonic()
        self.steps: deque[StepSample] = deque(maxlen=RING_STEPS)
        self.num_steps = 0
        self._num_reported = 0
        self._requests: list[RequestSample] = []
        self._prompt_tokens = 0
        self._kept_tokens = self._dropped_tokens = 0
        self.output_tokens = 0
        self._tokens = dict.fromkeys(KINDS, 0)
        self._histograms = {
            "step_ms": Histogram(MS_BOUNDS),
            "prediction_error_ms": Histogram(ERROR_MS_BOUNDS),
            "slack_ms": Histogram((0.0, *MS_BOUNDS)),
            "inference_tokens": Histogram(TOKEN_BOUNDS),
            "adapter_load_ms": Histogram(MS_BOUNDS),
            "adapter_expand_ms": Histogram(MS_BOUNDS),
        }
        self._slo = SloTally()

    def is_due(self) -> bool:
        """Whether the next report is due."""
        return time.monotonic() >= self._due_s

    def count_step(
        self, plan: StepPlan, units: list[Unit], step_ms: float, beside: Sequence[Unit] = ()
    ) -> None:
        """Remember one step; one that ran nothing is none.

        `beside` are units of lanes that ended in it, whenever they began.
        """
        if plan.is_empty and not beside:
            return
        step = step_sample(self.num_steps, plan, units, step_ms, beside)
        self.num_steps += 1
        self.steps.append(step)
        for kind in KINDS:
            self._tokens[kind] += getattr(step, f"{kind}_tokens")
        self._histograms["step_ms"].observe(step_ms)
        self._histograms["inference_tokens"].observe(plan.num_inference_tokens)
        if plan.slack_ms is not None:
            self._histograms["slack_ms"].observe(plan.slack_ms)
        if not step.was_cut:  # the prediction was for all of the plan
            self._histograms["prediction_error_ms"].observe(abs(step_ms - plan.predicted_ms))

    def count_request(self, sample: RequestSample, targets: SloTargets) -> None:
        """Remember one ended sequence."""
        self._prompt_tokens += sample.num_prompt_tokens
        if sample.num_kept_tokens is not None:
            self._kept_tokens += sample.num_kept_tokens
            self._dropped_tokens += sample.num_prompt_tokens - sample.num_kept_tokens
        self._slo.count(sample, targets)
        if len(self._requests) < MAX_REQUESTS:
            self._requests.append(sample)

    def count_load(self, load: Load) -> None:
        """Remember how long the requests of a cold adapter waited for it."""
        name = "adapter_expand_ms" if load.was_shelved else "adapter_load_ms"
        self._histograms[name].observe((time.monotonic() - load.began_s) * 1e3)

    def report(
        self,
        hosts: list[ModelHost],
        adapter_tiers: tuple[AdapterTier, ...] = (),
        num_loading: int = 0,
    ) -> EngineStats:
        """Gauges, totals, and the steps and requests since the last report.

        Args:
            hosts: all base models of the engine.
            adapter_tiers: where adapters lie.
            num_loading: sequences that wait for their adapter, not for the scheduler.
        """
        self._due_s = time.monotonic() + REPORT_EVERY_S
        requests, self._requests = tuple(self._requests), []
        blocks = sum(host.scheduler.pool.num_blocks for host in hosts)
        free = sum(host.scheduler.pool.num_free for host in hosts)
        lent = sum(host.scheduler.pool.num_lent for host in hosts)
        return EngineStats(
            num_running=sum(len(host.scheduler.running) for host in hosts),
            num_waiting=sum(len(host.scheduler.waiting) for host in hosts) + num_loading,
            kv_usage=1 - (free + lent) / blocks,
            num_free_blocks=free,
            num_training_blocks=lent,
            num_recalls=sum(host.trainer.num_recalls for host in hosts),
            num_blocks=blocks,
            num_preemptions=sum(host.scheduler.num_preemptions for host in hosts),
            prefix_queries=sum(host.scheduler.prefixes.num_queries for host in hosts),
            prefix_hits=sum(host.scheduler.prefixes.num_hits for host in hosts),
            kv_kept_tokens=self._kept_tokens,
            kv_dropped_tokens=self._dropped_tokens,
            adapter_tiers=adapter_tiers,
            active_jobs=tuple(job for host in hosts for job in host.trainer.active),
            steps=self._new_steps(),
            requests=requests,
            prompt_tokens=self._prompt_tokens,
            generation_tokens=self.output_tokens,
            trained_tokens=sum(host.trainer.trained_tokens for host in hosts),
            tokens_by_kind=dict(self._tokens),
            histograms={name: counts.totals() for name, counts in self._histograms.items()},
            slo=self._slo.totals(),
        )

    def _new_steps(self) -> tuple[StepSample, ...]:
        """Steps since the last report that are still remembered."""
        num_new = min(self.num_steps - self._num_reported, len(self.steps))
        self._num_reported = self.num_steps
        return tuple(islice(self.steps, len(self.steps) - num_new, None))


def step_sample(
    index: int, plan: StepPlan, units: list[Unit], step_ms: float, beside: Sequence[Unit] = ()
) -> StepSample:
    """What there is to say about a step that has run `units` of its plan."""
    was_cut = len(units) < sum(lane.count for lane in plan.units)
    units = [*beside, *units]
    decode = sum(1 for span in plan.spans if span.count == 1)
    forward = [u for u in units if u.direction is Direction.FORWARD]
    backward = [u for u in units if u.direction is Direction.BACKWARD]
    return StepSample(
        index=index,
        began_at=time.time() - step_ms / 1e3,
        num_sequences=len(plan.spans),
        num_rows=plan.num_inference_tokens + plan.num_window_tokens,
        decode_tokens=decode,
        prefill_tokens=plan.num_inference_tokens - decode,
        train_forward_tokens=plan.num_window_tokens + _at_first_layer(forward),
        train_backward_tokens=_at_first_layer(backward),
        train_backward_token_layers=sum(u.num_tokens for u in backward),
        num_units=len(units),
        was_cut=was_cut,
        jobs=_job_shares(plan),
        step_ms=step_ms,
        predicted_ms=plan.predicted_ms,
        slack_ms=plan.slack_ms,
    )


def _at_first_layer(units: list[Unit]) -> int:
    """Tokens of the units at layer 0: there a forward begins and a backward ends."""
    return sum(u.num_tokens for u in units if u.layer == 0)


def _job_shares(plan: StepPlan) -> tuple[JobShare, ...]:
    windows = {window.job_id: window.count for window in plan.windows}
    units: Counter[str] = Counter()
    for lane in (*plan.beside, *plan.units):
        units[lane.job_id] += lane.count
    return tuple(
        JobShare(job_id=job, window_tokens=windows.get(job, 0), num_units=units[job])
        for job in dict.fromkeys([*windows, *units])
    )
