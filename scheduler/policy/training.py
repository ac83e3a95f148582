"""What training does with a step's slack.

With inference in the step, a pack's forward rides along in the packed batch as a window of what
the slack affords, or its units follow (or run beside it: see `lanes`); with none, units run until
the idle quantum is over. The job that was served least, relative to its weight, goes first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from scheduler.domain.plan import LaneUnits, WindowSpan
from scheduler.policy.latency import LatencyLaw
from scheduler.policy.pack_cursor import Direction, PackCursor, Unit

MIN_WINDOW_TOKENS = 16  # below this a window costs more in overhead than it advances


@dataclass(frozen=True, slots=True)
class TrainDemand:
    """A job that has a pack in work.

    Attributes:
        served: the tenant's fair-share counter.
        may_ride: whether its windows may share a packed batch with other rows.
        max_share: most of a step's training time that it may take.
    """

    job_id: str
    cursor: PackCursor
    served: float
    priority: int = 0
    may_ride: bool = True
    max_share: float = 1.0


@dataclass(frozen=True, slots=True)
class TrainingShare:
    """Windows and units of one step, and the time they should take.

    Attributes:
        beside: units that run beside the packed forward, and those of the steps that follow.
        beside_ms: how long these take.
        num_steps: during how many steps.
        expected_ms: what the share adds to its steps.
        work_ms: what it would take apart from everything else: its worth.
    """

    windows: tuple[WindowSpan, ...] = ()
    units: tuple[LaneUnits, ...] = ()
    beside: tuple[LaneUnits, ...] = ()
    beside_ms: float = 0.0
    num_steps: int = 1
    expected_ms: float = 0.0
    work_ms: float = 0.0

    def saved_share(self, inference_ms: float) -> float:
        """Part of the time apart that is saved: 0 for units that take their turn.

        `inference_ms` is what inference alone takes in each step.
        """
        apart_ms = self.num_steps * inference_ms + self.work_ms
        return (self.work_ms - self.expected_ms) / apart_ms if apart_ms else 0.0


class Training(Protocol):
    """Those who train, as the scheduler sees them; they borrow blocks that serving leaves free."""

    def demands(self, lendable_blocks: int) -> list[TrainDemand]:
        """What each job could run next; up to `lendable_blocks` more may be borrowed for it."""

    def give_back(self, num_blocks: int) -> None:
        """Free at least so many borrowed blocks at once, or all there are."""

    @property
    def lane_runs(self) -> bool:
        """Whether units of an earlier step still run beside the engine."""

    def finish_lane(self) -> None:
        """Wait until none does; no more are begun."""


def in_order(demands: Iterable[TrainDemand]) -> list[TrainDemand]:
    """Higher priority first, then least served, then by name."""
    return sorted(demands, key=lambda d: (-d.priority, d.served, d.job_id))


def affordable_tokens(budget_ms: float, most: int, window_ms: Callable[[int], float]) -> int:
    """Most tokens up to `most` whose window costs at most `budget_ms` (bisection)."""
    if window_ms(most) <= budget_ms:
        return most
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        if window_ms(middle) <= budget_ms:
            low = middle
        else:
            high = middle
    return low


def plan_training(
    demands: list[TrainDemand],
    budget_ms: float,
    law: LatencyLaw,
    window_ms: Callable[[int, int], float] | None,
    *,
    must_advance: bool,
) -> TrainingShare:
    """Spend `budget_ms` on the demands, in order.

    `window_ms` is the extra cost of so many tokens, and query-key pairs, in this step's packed
    forward; None
    when the step has no inference rows to ride along with. `must_advance` runs one unit even if
    none is thought to fit, so that nothing starves and a wrong law meets an observation. Without a
    budget nothing runs, not even what a law in error thinks is free.
    """
    if budget_ms <= 0:
        return TrainingShare()
    windows: list[WindowSpan] = []
    units: list[LaneUnits] = []
    left_ms = affordable_ms = max(0.0, budget_ms - law.unit_margin_ms)
    work_ms = 0.0
    is_cold = window_ms is not None
    for demand in in_order(demands):
        cursor = demand.cursor
        own_ms = min(left_ms, budget_ms * demand.max_share)
        if window_ms is not None and not windows and can_ride(demand):
            most = min(cursor.num_uncomputed_tokens, cursor.window_tokens)
            count = affordable_tokens(own_ms, most, _cost_of_next(cursor, window_ms))
            if count >= min(MIN_WINDOW_TOKENS, most):
                start = cursor.num_forward_tokens
                pairs = cursor.num_pairs(start, start + count)
                windows.append(WindowSpan(demand.job_id, start, count, pairs))
                own_ms -= window_ms(count, pairs)
                left_ms -= window_ms(count, pairs)
                work_ms += window_work_ms(cursor, count, law)
                cursor = cursor.after_window(count)
        count, spent_ms = affordable_units(cursor, own_ms, law, is_cold=is_cold and not units)
        left_ms -= spent_ms
        work_ms += spent_ms
        if count:
            units.append(LaneUnits(demand.job_id, count))
    if must_advance and demands and not (windows or units):
        first = in_order(demands)[0]
        return TrainingShare(units=(LaneUnits(first.job_id, 1),), expected_ms=budget_ms)
    return TrainingShare(
        tuple(windows), tuple(units), expected_ms=affordable_ms - left_ms, work_ms=work_ms
    )


def _cost_of_next(
    cursor: PackCursor, window_ms: Callable[[int, int], float]
) -> Callable[[int], float]:
    """The extra cost of the pack's next so many tokens."""
    start = cursor.num_forward_tokens
    return lambda count: window_ms(count, cursor.num_pairs(start, start + count))


def window_work_ms(cursor: PackCursor, count: int, law: LatencyLaw) -> float:
    """What a window's tokens would take as units of their own."""
    start = cursor.num_forward_tokens
    pairs = cursor.num_pairs(start, start + count)
    layer = Unit(Direction.FORWARD, 0, start, start + count, pairs)
    return cursor.num_layers * law.unit_ms(layer)


def can_ride(demand: TrainDemand) -> bool:
    """Whether the job's next work is a forward window that may join a packed batch."""
    cursor = demand.cursor
    return demand.may_ride and cursor.num_uncomputed_tokens > 0 and not cursor.is_suspended


def affordable_units(
    cursor: PackCursor, budget_ms: float, law: LatencyLaw, *, is_cold: bool
) -> tuple[int, float]:
    """How many of a pack's next units fit in `budget_ms`, and what they cost.

    `is_cold` says that a packed forward comes right before the first.
    """
    count, spent_ms = 0, 0.0
    while (unit := cursor.next_unit()) is not None:
        cost_ms = law.unit_ms(unit, is_cold=is_cold and not count)
        if spent_ms + cost_ms > budget_ms:
            break
        count, spent_ms, cursor = count + 1, spent_ms + cost_ms, cursor.after(unit)
    return count, spent_ms
