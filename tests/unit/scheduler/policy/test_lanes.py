"""Lanes beside decode steps: within the slack, worth what they claim, and waited for in time."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.domain.plan import Span, StepPlan
from scheduler.domain.request import RequestBody, Sequence
from scheduler.policy.blocks import BlockPool
from scheduler.policy.fairness import FairShare
from scheduler.policy.iteration import IterationScheduler, StepLimits
from scheduler.policy.lanes import MAX_LANE_STEPS, WAIT_SHARE, DecodeStep, plan_beside
from scheduler.policy.latency import ForwardShape, LatencyLaw, RowCosts
from scheduler.policy.pack_cursor import PackCursor, Unit
from scheduler.policy.prefix_cache import PrefixCache
from scheduler.policy.training import TrainDemand, TrainingShare
from scheduler.policy.training_planner import TrainingPlanner
from tests.unit.scheduler.policy.fake_engine import CLASSES, Demands

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


def demand(job_id: str, num_tokens: int, max_share: float = 1.0) -> TrainDemand:
    cursor = PackCursor.begin(
        num_tokens, num_layers=4, trains=True, window_tokens=64, range_tokens=64
    )
    return TrainDemand(job_id, cursor, served=0.0, max_share=max_share)


def every_lane(num_units: int, step: DecodeStep, apart_ms: float, beside_ms: float) -> list[float]:
    """What each lane of up to `num_units` units saves of its time apart; the obvious way."""
    saved = []
    for count in range(1, num_units + 1):
        steps, time_ms = 1, step.beside_ms
        while count * beside_ms - time_ms > WAIT_SHARE * step.beside_ms:
            steps, time_ms = steps + 1, time_ms + step.beside_ms
        longer_ms = steps * (step.beside_ms - step.alone_ms)
        apart_all_ms = steps * step.alone_ms + count * apart_ms
        saved.append((count * apart_ms - longer_ms) / apart_all_ms)
    return saved


@given(
    alone_ms=st.floats(0.5, 20),
    slower=st.floats(1, 3),
    slack_ms=st.floats(0, 50),
    apart_ms=st.floats(0.2, 20),
    unit_slower=st.floats(1, 3),
    sizes=st.lists(st.integers(1, 600), max_size=3),
)
def test_a_lane_stays_within_the_slack_and_none_saves_more(
    alone_ms: float,
    slower: float,
    slack_ms: float,
    apart_ms: float,
    unit_slower: float,
    sizes: list[int],
) -> None:
    step = DecodeStep(alone_ms, slower * alone_ms)
    law, beside = Price(apart_ms), Price(unit_slower * apart_ms)
    demands = [demand(f"job{i}", size) for i, size in enumerate(sizes)]

    lane = plan_beside(demands, slack_ms, step, law, beside)

    count = sum(units.count for units in lane.beside)
    assert lane.expected_ms <= slack_ms
    assert lane.work_ms == pytest.approx(count * apart_ms)
    assert lane.beside_ms == pytest.approx(count * unit_slower * apart_ms)
    assert lane.beside_ms <= MAX_LANE_STEPS * step.beside_ms
    if count:
        shares = every_lane(count, step, apart_ms, unit_slower * apart_ms)
        assert lane.saved_share(alone_ms) == pytest.approx(max(shares), abs=1e-6)


def test_a_unit_of_two_steps_is_worth_their_longer_time() -> None:
    law, beside = Price(5.0), Price(10.0)

    lane = plan_beside([demand("job", 64)], 10.0, DecodeStep(4.0, 5.5), law, beside)

    assert (lane.beside[0].count, lane.num_steps) == (1, 2)
    assert (lane.work_ms, lane.expected_ms) == (5.0, 3.0)
    assert lane.saved_share(4.0) == pytest.approx(2.0 / 13.0)
    assert TrainingShare(work_ms=4.0, expected_ms=4.0).saved_share(4.0) == 0


class OneLane(Demands):
    """Training whose lane runs from when a test says so until it is waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.is_running = False

    @property
    def lane_runs(self) -> bool:
        """What the test has set."""
        return self.is_running

    def finish_lane(self) -> None:
        """It ends."""
        self.is_running = False


def ask(scheduler: IterationScheduler, name: str, prompt: int) -> Sequence:
    body = RequestBody(
        request_id=name,
        tenant_id="t",
        base_model="m",
        prompt_token_ids=tuple(range(prompt, 2 * prompt)),
        service_class="default",
    )
    sequence = Sequence(body, 0, list(body.prompt_token_ids), 0.0)
    scheduler.add(sequence)
    return sequence


def test_decode_goes_on_beside_a_lane_and_a_prompt_waits_for_its_end() -> None:
    training = OneLane()
    pool = BlockPool(40, 4)
    scheduler = IterationScheduler(
        pool,
        StepLimits(64, 16),
        Price(1.0),
        CLASSES,
        FairShare(),
        training,
        PrefixCache(pool, "base"),
        Price(2.0),
    )
    first = ask(scheduler, "first", 5)

    def step(now_s: float) -> StepPlan:
        plan = scheduler.schedule(now_s, lambda _: True)
        scheduler.commit(plan)
        first.token_ids.append(7)
        return plan

    step(0.0)
    first.first_token_s = -0.086
    training.now = [replace(demand("job", 640), may_ride=False)]
    begins = step(0.0)
    training.is_running = True
    ask(scheduler, "second", 9)
    during = step(0.0)
    after = step(60.0)

    assert begins.beside
    assert (during.is_beside, during.beside) == (True, ())
    assert [span.sequence_id for span in during.spans] == [first.id]
    assert not training.is_running, "it was waited for"
    assert sorted(span.count for span in after.spans) == [1, 9]


@pytest.mark.parametrize("share_idles", [True, False])
@pytest.mark.parametrize("is_awaited", [True, False])
def test_a_lane_near_its_end_is_waited_for_where_that_saves_time(
    share_idles: bool, is_awaited: bool
) -> None:
    planner = TrainingPlanner(Price(1.0), Price(2.0), 100.0, share_idles=share_idles)
    demands = [replace(demand("job", 640), may_ride=False)]
    shape = ForwardShape(num_rows=1, num_spans=1, context_tokens=8, score_pairs=0)
    spans = (Span("first", 8, 1),)

    lane = planner.share(demands, shape, 60.0, 5.0)
    begins = planner.decodes_beside(spans, 5.0, is_awaited=is_awaited)
    ends = planner.decodes_beside(spans, 5.0 + lane.beside_ms / 1e3, is_awaited=is_awaited)

    assert begins
    assert ends == (not share_idles and not is_awaited)


def test_a_lane_that_seems_to_save_nothing_is_tried_again_after_a_while() -> None:
    """The law of lanes learns from lanes only; what it thinks of them may be stale."""
    planner = TrainingPlanner(Price(1.0), Price(20.0), idle_quantum_ms=100.0)
    demands = [replace(demand("job", 640), may_ride=False)]
    shape = ForwardShape(num_rows=1, num_spans=1, context_tokens=8, score_pairs=0)
    assert planner.beside is not None
    planner.beside.costs = RowCosts((1, 256), (10.0, 40.0))

    plans = [planner.share(demands, shape, 60.0, now_s) for now_s in (5.0, 5.5, 5.9, 6.1)]

    assert [bool(plan.beside) for plan in plans] == [True, False, False, True]


def test_a_job_that_may_take_only_a_part_has_no_lane() -> None:
    law, beside = Price(5.0), Price(5.0)

    lane = plan_beside([demand("job", 64, max_share=0.5)], 10.0, DecodeStep(4.0, 5.0), law, beside)

    assert not lane.beside
