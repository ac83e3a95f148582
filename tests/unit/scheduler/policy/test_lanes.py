"""Plans beside the forward: within the step, and chosen only where they save time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from scheduler.policy.latency import LatencyLaw, RowCosts
from scheduler.policy.pack_cursor import PackCursor, Unit
from scheduler.policy.training import TrainDemand, TrainingShare, plan_beside

COSTS = RowCosts((1, 256), (1.0, 40.0))


class Price(LatencyLaw):
    """So many milliseconds for any unit."""

    def __init__(self, unit_price_ms: float) -> None:
        super().__init__(COSTS, num_layers=4)
        self.unit_price_ms = unit_price_ms

    def unit_ms(self, unit: Unit, *, is_cold: bool = False) -> float:
        """The price."""
        del unit, is_cold
        return self.unit_price_ms


def demand(job_id: str, num_tokens: int) -> TrainDemand:
    cursor = PackCursor.begin(
        num_tokens, num_layers=4, trains=True, window_tokens=64, range_tokens=64
    )
    return TrainDemand(job_id, cursor, served=0.0)


@given(
    step_ms=st.floats(0, 100),
    share=st.floats(0.01, 1),
    apart_ms=st.floats(0.1, 20),
    slower=st.floats(1, 3),
    sizes=st.lists(st.integers(1, 600), max_size=3),
)
def test_a_plan_beside_the_forward_stays_within_the_step_and_counts_what_it_is_worth(
    step_ms: float, share: float, apart_ms: float, slower: float, sizes: list[int]
) -> None:
    lane_ms = share * step_ms
    law, beside = Price(apart_ms), Price(slower * apart_ms)
    demands = [demand(f"job{i}", size) for i, size in enumerate(sizes)]

    plan = plan_beside(demands, step_ms, lane_ms, law, beside)

    lane = sum(units.count for units in plan.beside)
    after = sum(units.count for units in plan.units)
    assert plan.expected_ms <= step_ms + 1e-6
    assert abs(plan.expected_ms - max(lane_ms, lane * slower * apart_ms) - after * apart_ms) < 1e-6
    assert abs(plan.work_ms - (lane + after) * apart_ms) < 1e-6
    if lane:  # the last unit was worth more than it lengthened the step
        longer_ms = max(lane_ms, lane * slower * apart_ms)
        longer_ms -= max(lane_ms, (lane - 1) * slower * apart_ms)
        assert longer_ms < apart_ms + 1e-6


def test_taking_turns_saves_nothing_and_a_lane_that_overlaps_does() -> None:
    law, beside = Price(4.0), Price(7.0)
    inference_ms, lane_ms = 5.0, 8.0

    plan = plan_beside([demand("job", 64)], 9.0, lane_ms, law, beside)

    assert (plan.work_ms, plan.expected_ms) == (4.0, 8.0)
    saved_ms = plan.work_ms + inference_ms - plan.expected_ms
    assert saved_ms == 1.0
    assert TrainingShare(work_ms=4.0, expected_ms=4.0).saved_ms() == 0
