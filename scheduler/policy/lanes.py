"""Units of training beside decode steps, each on a share of the machine of its own.

Decode waits for memory and training for arithmetic, so together they take less than in turns. A
lane outlasts the step that begins it, and the steps that follow run beside it until it ends:

    lane    |<------- unit ------->|<------- unit ------->|
    decode  |<- step ->|<- step ->|<- step ->|<- step ->|
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

from scheduler.domain.plan import LaneUnits
from scheduler.policy.latency import LatencyLaw
from scheduler.policy.training import TrainDemand, TrainingShare, in_order

MAX_LANE_STEPS = 4
WAIT_SHARE = 0.25  # of a step: a lane that ends sooner is waited for, not decoded beside


@dataclass(frozen=True, slots=True)
class DecodeStep:
    """Expected milliseconds of one and the same decode step.

    Attributes:
        alone_ms: on all of the machine.
        beside_ms: on what a lane leaves of it.
    """

    alone_ms: float
    beside_ms: float

    def steps_beside(self, lane_ms: float) -> int:
        """How many steps a lane of this length spans."""
        return max(1, ceil(lane_ms / self.beside_ms - WAIT_SHARE))


def plan_beside(
    demands: list[TrainDemand],
    slack_ms: float,
    step: DecodeStep,
    law: LatencyLaw,
    beside: LatencyLaw,
) -> TrainingShare:
    """The lane that saves most of its time (or loses least), of those within the slack.

    Every step beside the lane is longer than it would be alone, and `slack_ms` pays for all of
    them at once. Jobs that may take only a part of a step's training time take turns instead.
    """
    best: TrainingShare | None = None
    for units, lane_ms, work_ms in _lanes(demands, MAX_LANE_STEPS * step.beside_ms, law, beside):
        num_steps = step.steps_beside(lane_ms)
        longer_ms = num_steps * (step.beside_ms - step.alone_ms)
        if longer_ms > slack_ms:
            break
        share = TrainingShare(
            beside=units,
            beside_ms=lane_ms,
            num_steps=num_steps,
            expected_ms=longer_ms,
            work_ms=work_ms,
        )
        if best is None or share.saved_share(step.alone_ms) > best.saved_share(step.alone_ms):
            best = share
    return best or TrainingShare()


def _lanes(
    demands: list[TrainDemand], most_ms: float, law: LatencyLaw, beside: LatencyLaw
) -> Iterator[tuple[tuple[LaneUnits, ...], float, float]]:
    """Lanes of one unit, two, and so on up to `most_ms`; what each takes beside, and apart."""
    lane: tuple[LaneUnits, ...] = ()
    lane_ms = work_ms = 0.0
    for demand in in_order(demand for demand in demands if demand.max_share >= 1):
        cursor, count = demand.cursor, 0
        while (unit := cursor.next_unit()) is not None:
            lane_ms, work_ms = lane_ms + beside.unit_ms(unit), work_ms + law.unit_ms(unit)
            if lane_ms > most_ms:
                return
            count, cursor = count + 1, cursor.after(unit)
            yield (*lane, LaneUnits(demand.job_id, count)), lane_ms, work_ms
        if count:
            lane = (*lane, LaneUnits(demand.job_id, count))
