"""Decides what training does in each step: within it, after it, beside it, or nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from scheduler.domain.plan import Span, StepPlan
from scheduler.policy.lanes import WAIT_SHARE, DecodeStep, plan_beside
from scheduler.policy.latency import ForwardShape, LatencyLaw
from scheduler.policy.training import TrainDemand, TrainingShare, plan_training

LONG_TURN = 8.0  # a turn of so many times a lane's work: more credit than lanes can use
RETRY_S = 1.0  # a lane is tried this often though it seems to save nothing: the law may be stale
MAX_STANDSTILL_S = 1.0  # training moves at least this often while every caller is ahead


class TrainingPlanner:
    """Spends a step's slack by expected times.

    Attributes:
        law: of steps and units that have the whole machine.
        beside: of decode steps and units beside one another; None: nothing runs beside a step.

    Args:
        idle_quantum_ms: training time of a step that nobody waits for.
        share_idles: whether a lane's share of the machine idles from its end to that of the step
            beside it.
    """

    def __init__(
        self,
        law: LatencyLaw,
        beside: LatencyLaw | None,
        idle_quantum_ms: float,
        *,
        share_idles: bool = True,
    ) -> None:
        self.law = law
        self.beside = beside
        self._idle_quantum_ms = idle_quantum_ms
        self._share_idles = share_idles
        self._ran_s = 0.0
        self._lane_ends_s = 0.0
        self._lane_began_s = 0.0

    def decodes_beside(self, spans: tuple[Span, ...], now_s: float, *, is_awaited: bool) -> bool:
        """Whether these single tokens should run beside the lane in work, not wait for its end.

        `is_awaited` tells whether others do.
        """
        if self.beside is None or not spans:
            return False
        if not (self._share_idles or is_awaited):
            return True
        left_ms = (self._lane_ends_s - now_s) * 1e3
        return left_ms > WAIT_SHARE * self.beside.forward_ms(ForwardShape.of(spans, ()))

    def share(
        self, demands: list[TrainDemand], shape: ForwardShape, slack_ms: float | None, now_s: float
    ) -> TrainingShare:
        """What the demands get of a step whose inference has this shape.

        Args:
            demands: of the jobs.
            shape: of the step's inference.
            slack_ms: how much longer the step may become; None: nobody waits.
            now_s: monotonic time.
        """
        share = self._best(demands, shape, slack_ms, now_s)
        if share.windows or share.units or share.beside:
            self._ran_s = now_s
        if share.beside:
            self._lane_began_s = now_s
            self._lane_ends_s = now_s + share.beside_ms / 1e3
        return share

    def expected_ms(self, shape: ForwardShape, share: TrainingShare, *, is_beside: bool) -> float:
        """What the step should take."""
        if is_beside and self.beside is not None:
            return self.beside.forward_ms(replace(shape, begins_lane=bool(share.beside)))
        return self.law.forward_ms(shape) + share.expected_ms

    def observe_forward(self, plan: StepPlan, elapsed_ms: float) -> None:
        """Learn what a plan's packed forward took."""
        law = self.beside if plan.is_beside and self.beside is not None else self.law
        shape = ForwardShape.of(plan.spans, plan.windows)
        law.observe_forward(replace(shape, begins_lane=bool(plan.beside)), elapsed_ms)

    def _best(
        self, demands: list[TrainDemand], shape: ForwardShape, slack_ms: float | None, now_s: float
    ) -> TrainingShare:
        """Units in turn, or windows, or a lane: what saves most time.

        Longer spans (prefill) use the whole machine: beside them nothing is gained.
        """
        turn = plan_training(
            demands,
            self._idle_quantum_ms if slack_ms is None else slack_ms,
            self.law,
            self._window_cost(shape) if shape.num_rows else None,
            must_advance=self._is_starving(now_s, slack_ms),
        )
        if self.beside is None or slack_ms is None or not shape.num_rows or shape.score_pairs:
            return turn
        begins = replace(shape, begins_lane=True)
        beside_ms = self.beside.forward_ms(begins) + self.beside.margin_ms(begins)
        step = DecodeStep(self.law.forward_ms(shape), beside_ms)
        lane = plan_beside(demands, slack_ms, step, self.law, self.beside)
        if lane.beside and now_s - self._lane_began_s > RETRY_S:
            return lane
        if turn.work_ms >= LONG_TURN * lane.work_ms:
            return turn
        return max(turn, lane, key=lambda share: share.saved_share(step.alone_ms))

    def _is_starving(self, now_s: float, slack_ms: float | None) -> bool:
        """Nobody waits; or nobody is late, and training has stood still for long."""
        if slack_ms is None:
            return True
        return slack_ms > 0 and now_s - self._ran_s > MAX_STANDSTILL_S

    def _window_cost(self, shape: ForwardShape) -> Callable[[int, int], float]:
        """What so many tokens and pairs of a window add to a packed forward of this shape."""
        base_ms = self.law.forward_ms(shape)

        def cost_ms(count: int, num_pairs: int) -> float:
            wider = replace(
                shape,
                num_rows=shape.num_rows + count,
                num_spans=shape.num_spans + 1,
                score_pairs=shape.score_pairs + num_pairs,
                num_window_rows=count,
                num_adapters=shape.num_adapters + 1,
            )
            return max(0.0, self.law.forward_ms(wider) - base_ms) if count else 0.0

        return cost_ms
