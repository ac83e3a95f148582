"""The scheduler driven by a clock of its own: every step takes what its plan predicts."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from scheduler.domain.plan import LaneUnits, StepPlan
from scheduler.domain.request import RequestBody, Sequence
from scheduler.policy.blocks import BlockPool
from scheduler.policy.fairness import TRAINING_PRICE, FairShare
from scheduler.policy.iteration import IterationScheduler, StepLimits
from scheduler.policy.latency import ForwardShape, LatencyLaw, RowCosts
from scheduler.policy.pack_cursor import PackCursor
from scheduler.policy.prefix_cache import PrefixCache
from scheduler.policy.slack import SloTargets
from scheduler.policy.training import TrainDemand

NUM_LAYERS = 4
TPOT_MS = 100.0
CLASSES = {
    "default": SloTargets(2000.0, TPOT_MS),
    "relaxed": SloTargets(None, 3 * TPOT_MS),
    "best_effort": SloTargets(None, None),
}


class Demands:
    """Training whose demands a test sets; it borrows nothing."""

    def __init__(self) -> None:
        self.now: list[TrainDemand] = []

    def demands(self, lendable_blocks: int) -> list[TrainDemand]:
        """What the test has set."""
        assert lendable_blocks >= 0
        return self.now

    @property
    def lane_runs(self) -> bool:
        """No lane outlasts a step here."""
        return False

    def finish_lane(self) -> None:
        """None runs."""

    def give_back(self, num_blocks: int) -> None:
        """Nothing was borrowed."""
        raise AssertionError(num_blocks)


@dataclass
class FakeJob:
    """A job that trains packs of one size for ever."""

    tenant_id: str
    num_tokens: int
    weight: float = 1.0
    num_packs: int = 0
    trained_tokens: int = 0
    cursor: PackCursor = field(init=False)

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Start the next pack."""
        self.cursor = PackCursor.begin(
            self.num_tokens, NUM_LAYERS, trains=True, window_tokens=64, range_tokens=64
        )


class FakeEngine:
    """A scheduler, jobs and a clock.

    Tokens leave when the step's packed forward is through, units run after that: as in the engine.
    """

    def __init__(self, num_blocks: int = 400) -> None:
        self.now_s = 0.0
        self.fair = FairShare()
        law = LatencyLaw(RowCosts((1, 64), (10.0, 20.0)), NUM_LAYERS)
        pool = BlockPool(num_blocks, 4)
        self.scheduler = IterationScheduler(
            pool, StepLimits(64, 16), law, CLASSES, self.fair, self, PrefixCache(pool, "base")
        )
        self.jobs: dict[str, FakeJob] = {}
        self.wanted: dict[str, int] = {}
        self.token_s: dict[str, list[float]] = defaultdict(list)
        self.ended: list[Sequence] = []

    def ask(
        self,
        name: str,
        prompt: int = 8,
        output: int = 10,
        service_class: str = "default",
        tenant_id: str = "t",
    ) -> Sequence:
        """A request arrives."""
        body = RequestBody(
            request_id=name,
            tenant_id=tenant_id,
            base_model="m",
            prompt_token_ids=tuple(range(prompt)),
            service_class=service_class,
        )
        sequence = Sequence(body, 0, list(body.prompt_token_ids), self.now_s)
        self.wanted[sequence.id] = output
        self.scheduler.add(sequence)
        return sequence

    def train(self, job_id: str, job: FakeJob) -> None:
        """A job begins."""
        self.jobs[job_id] = job
        self.fair.enter(job.tenant_id)

    def demands(self, lendable_blocks: int = 0) -> list[TrainDemand]:
        """What the jobs could run next; theirs is memory of another kind."""
        del lendable_blocks
        return [
            TrainDemand(job_id, job.cursor, served=self.fair.level(job.tenant_id))
            for job_id, job in self.jobs.items()
        ]

    @property
    def lane_runs(self) -> bool:
        """No lane outlasts a step here."""
        return False

    def finish_lane(self) -> None:
        """None runs."""

    def give_back(self, num_blocks: int) -> None:
        """Nothing was borrowed."""
        raise AssertionError(num_blocks)

    def step(self) -> StepPlan:
        """Plan a step and let it take exactly as long as predicted."""
        plan = self.scheduler.schedule(self.now_s, lambda _: True)
        shape = ForwardShape.of(plan.spans, plan.windows)
        forward_ms = self.scheduler.law.forward_ms(shape)
        end_s = self.now_s + max(plan.predicted_ms, forward_ms, 1.0) / 1e3
        self.now_s += forward_ms / 1e3
        self.scheduler.commit(plan)
        self._draw()
        for window in plan.windows:
            job = self.jobs[window.job_id]
            job.cursor = job.cursor.after_window(window.count)
            self._charge(job, window.count)
        for lane in plan.units:
            self._run(lane)
        self.now_s = end_s
        return plan

    def _draw(self) -> None:
        leads = [sequence for sequence in self.scheduler.running if sequence.member == 0]
        for sequence in leads:
            if sequence.num_uncomputed_tokens == 0:
                self.token_s[sequence.id].append(self.now_s)
                for member in sequence.group:
                    member.token_ids.append(0)
                    member.first_token_s = member.first_token_s or self.now_s
                if sequence.num_output_tokens >= self.wanted[sequence.id]:
                    self.scheduler.remove(sequence)
                    self.ended.append(sequence)

    def _run(self, lane: LaneUnits) -> None:
        job = self.jobs[lane.job_id]
        for _ in range(lane.count):
            unit = job.cursor.next_unit()
            assert unit is not None
            before = job.cursor.num_forward_tokens
            job.cursor = job.cursor.after(unit)
            self._charge(job, job.cursor.num_forward_tokens - before)
        if job.cursor.is_done:
            job.num_packs += 1
            job.begin()

    def _charge(self, job: FakeJob, num_tokens: int) -> None:
        job.trained_tokens += num_tokens
        self.fair.charge(job.tenant_id, job.weight, TRAINING_PRICE * num_tokens)

    def mean_tpot_ms(self, sequence: Sequence) -> float | None:
        """Mean time per output token after the first."""
        times = self.token_s[sequence.id]
        return (times[-1] - times[0]) * 1e3 / (len(times) - 1) if len(times) > 1 else None


def is_training(plan: StepPlan) -> bool:
    """Whether the step has any training in it."""
    return bool(plan.windows or plan.units)
