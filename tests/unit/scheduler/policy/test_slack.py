"""Training takes measured slack and nothing else: bursts end it, credit pays for it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.domain.plan import StepPlan
from scheduler.domain.request import RequestBody, Sequence
from scheduler.policy.blocks import BlockPool
from scheduler.policy.fairness import FairShare
from scheduler.policy.iteration import IterationScheduler, StepLimits
from scheduler.policy.latency import ForwardShape, LatencyLaw, RowCosts
from scheduler.policy.pack_cursor import PackCursor
from scheduler.policy.prefix_cache import PrefixCache
from scheduler.policy.slack import AIM, SloTargets, step_slack_ms, token_slack_ms
from scheduler.policy.training import TrainDemand
from scheduler.policy.training_planner import MAX_STANDSTILL_S
from tests.unit.scheduler.policy.fake_engine import Demands

TPOT_MS = 100.0
CLASSES = {"default": SloTargets(500.0, TPOT_MS), "best_effort": SloTargets(None, None)}


def new_scheduler(num_blocks: int = 200, budget: int = 64) -> IterationScheduler:
    costs = RowCosts((1, 64), (10.0, 20.0))
    law = LatencyLaw(costs, num_layers=4)
    pool = BlockPool(num_blocks, 4)
    prefixes = PrefixCache(pool, "base")
    limits = StepLimits(budget, 16)
    return IterationScheduler(pool, limits, law, CLASSES, FairShare(), Demands(), prefixes)


def new_sequence(
    name: str, prompt: int = 8, service_class: str = "default", tenant_id: str = "t"
) -> Sequence:
    body = RequestBody(
        request_id=name,
        tenant_id=tenant_id,
        base_model="m",
        prompt_token_ids=tuple(range(prompt)),
        service_class=service_class,
    )
    return Sequence(body, 0, list(body.prompt_token_ids), 0.0)


def new_demand(job_id: str = "job", num_tokens: int = 400, *, may_ride: bool = True) -> TrainDemand:
    cursor = PackCursor.begin(
        num_tokens, num_layers=4, trains=True, window_tokens=64, range_tokens=64
    )
    return TrainDemand(job_id, cursor, 0.0, may_ride=may_ride)


def decoding(
    name: str, first_token_s: float, outputs: int, service_class: str = "default"
) -> Sequence:
    sequence = new_sequence(name, service_class=service_class)
    sequence.first_token_s = first_token_s
    sequence.token_ids += [0] * outputs
    return sequence


def schedule(scheduler: IterationScheduler, now_s: float, demands: list[TrainDemand]) -> StepPlan:
    assert isinstance(scheduler.training, Demands)
    scheduler.training.now = demands
    return scheduler.schedule(now_s, lambda _: True)


def step(scheduler: IterationScheduler, now_s: float, demands: list[TrainDemand]) -> StepPlan:
    """Plan and commit a step, and draw a token for every sequence that is through."""
    plan = schedule(scheduler, now_s, demands)
    scheduler.commit(plan)
    for sequence in scheduler.running:
        if sequence.num_uncomputed_tokens == 0:
            sequence.token_ids.append(0)
            sequence.first_token_s = sequence.first_token_s or now_s
    return plan


def test_a_request_ahead_of_its_target_grants_the_time_it_is_ahead() -> None:
    sequence = decoding("r", first_token_s=10.0, outputs=3)  # the next is due at 10 + 0.3 * AIM s

    assert token_slack_ms(sequence, CLASSES["default"], 10.2) == pytest.approx(300 * AIM - 200)
    assert token_slack_ms(sequence, CLASSES["default"], 10.5) == pytest.approx(300 * AIM - 500)


def test_credit_pays_for_a_longer_step_but_not_for_an_endless_one() -> None:
    slacks = [
        token_slack_ms(decoding("r", 10.0, outputs), CLASSES["default"], 10.0)
        for outputs in (1, 2, 3, 50)
    ]

    assert slacks == pytest.approx([100 * AIM, 200 * AIM, 250, 250])


def test_the_most_pressed_request_bounds_the_step_and_best_effort_bounds_nothing() -> None:
    ahead, behind = decoding("a", 10.0, 5), decoding("b", 10.0, 1)
    patient = decoding("c", 0.0, 1, service_class="best_effort")

    assert step_slack_ms([ahead, behind, patient], CLASSES, 10.0, 30.0) == pytest.approx(
        100 * AIM - 30
    )
    assert step_slack_ms([ahead, behind], CLASSES, 11.0, 30.0) == 0
    assert step_slack_ms([patient], CLASSES, 11.0, 30.0) is None
    assert step_slack_ms([], CLASSES, 11.0, 30.0) is None
    assert step_slack_ms([new_sequence("new")], CLASSES, 0.0, 0.0) == 0


def is_training(plan: StepPlan) -> bool:
    return bool(plan.windows or plan.units)


def test_a_burst_squeezes_training_to_zero_within_one_step_and_idleness_brings_it_back() -> None:
    scheduler = new_scheduler()
    assert is_training(step(scheduler, 0.0, [new_demand()]))

    burst = [new_sequence(f"r{i}", prompt=40) for i in range(4)]
    for sequence in burst:
        scheduler.add(sequence)
    during = [step(scheduler, 0.1 + 0.05 * i, [new_demand()]) for i in range(2)]
    for sequence in burst:
        scheduler.remove(sequence)
    after = step(scheduler, 0.3, [new_demand()])

    assert all(plan.slack_ms == 0 and not is_training(plan) for plan in during)
    assert after.slack_ms is None
    assert is_training(after)


def test_a_decoding_request_that_is_ahead_leaves_room_for_training_beside_it() -> None:
    scheduler = new_scheduler()
    scheduler.add(new_sequence("r"))
    step(scheduler, 0.0, [])

    plan = step(scheduler, 0.01, [new_demand()])

    assert len(plan.spans) == 1
    assert is_training(plan)
    assert plan.slack_ms is not None
    assert plan.predicted_ms <= TPOT_MS - 10 + 1e-6


def test_training_that_stood_still_for_long_moves_by_one_unit_while_nobody_is_late() -> None:
    scheduler = new_scheduler()
    scheduler.add(new_sequence("r"))
    step(scheduler, 5.0, [])
    for _ in range(300):  # units have turned out to be far slower than any slack
        unit = new_demand().cursor.next_unit()
        assert unit is not None
        scheduler.law.observe_unit(unit, 1e5)
    huge = new_demand(may_ride=False)

    stuck = step(scheduler, 5.0 + 0.5 * MAX_STANDSTILL_S, [huge])
    scheduler.running[0].first_token_s = 5.0 + 2 * MAX_STANDSTILL_S
    moved = step(scheduler, 5.0 + 2 * MAX_STANDSTILL_S, [huge])

    assert not is_training(stuck)
    assert [unit.count for unit in moved.units] == [1]


@settings(max_examples=60, deadline=None)
@given(
    prompts=st.lists(st.integers(1, 60), max_size=8),
    tokens=st.integers(1, 3000),
    num_steps=st.integers(1, 12),
    step_s=st.floats(0.001, 0.3),
)
def test_training_never_changes_what_is_served(
    prompts: list[int], tokens: int, num_steps: int, step_s: float
) -> None:
    without, beside = new_scheduler(num_blocks=40), new_scheduler(num_blocks=40)
    for i, prompt in enumerate(prompts):
        without.add(new_sequence(f"r{i}", prompt))
        beside.add(new_sequence(f"r{i}", prompt))

    for i in range(num_steps):
        plain = step(without, i * step_s, [])
        mixed = step(beside, i * step_s, [new_demand("a", tokens), new_demand("b", 7)])
        assert mixed.spans == plain.spans
        assert mixed.fresh_blocks == plain.fresh_blocks
        assert mixed.slack_ms == plain.slack_ms


@settings(max_examples=100, deadline=None)
@given(
    tokens=st.lists(st.integers(1, 2000), min_size=1, max_size=4),
    outputs=st.integers(1, 4),
    late_s=st.floats(0, 0.2),
)
def test_what_training_plans_fits_into_the_slack(
    tokens: list[int], outputs: int, late_s: float
) -> None:
    scheduler = new_scheduler()
    scheduler.add(new_sequence("r"))
    step(scheduler, 0.0, [])
    scheduler.running[0].token_ids += [0] * (outputs - 1)
    demands = [new_demand(f"j{i}", count) for i, count in enumerate(tokens)]

    plan = schedule(scheduler, late_s, demands)

    inference_ms = scheduler.law.forward_ms(ForwardShape.of(plan.spans, ()))
    assert plan.slack_ms is not None
    assert plan.predicted_ms - inference_ms <= plan.slack_ms + 1e-6
    assert len({w.job_id for w in plan.windows}) <= 1
    for window in plan.windows:
        assert window.start == 0
        assert 0 < window.count <= 64


def test_small_prompts_do_not_starve_a_long_one_of_another_tenant() -> None:
    scheduler = new_scheduler(num_blocks=12)
    long = new_sequence("long", prompt=38, tenant_id="a")
    small = [new_sequence(f"s{i}", prompt=4, tenant_id="b") for i in range(3)]
    for sequence in [*small, long]:
        scheduler.add(sequence)
    for i in range(60):
        step(scheduler, 0.01 * i, [])
        for sequence in list(scheduler.running):
            if sequence is not long and sequence.num_output_tokens >= 4 + int(sequence.id[1]):
                scheduler.remove(sequence)
                again = new_sequence(f"s{i % 3}x{i}", prompt=4, tenant_id="b")
                scheduler.add(again)

    assert long.num_output_tokens > 0


def test_a_first_token_without_a_target_leaves_the_second_its_time() -> None:
    targets = SloTargets(ttft_ms=None, tpot_ms=100.0)

    assert token_slack_ms(new_sequence("r"), targets, 5.0) == AIM * 100.0
