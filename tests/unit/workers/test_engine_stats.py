"""What the engine counts: steps by kind in a ring, totals that never go back, targets kept."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.domain.engine_stats import JobShare, RequestSample
from scheduler.domain.plan import LaneUnits, Span, StepPlan, WindowSpan
from scheduler.domain.request import FinishReason
from scheduler.policy.pack_cursor import Direction, Unit
from scheduler.policy.slack import SloTargets
from workers.engine_stats import RING_STEPS, EngineMeter, step_sample
from workers.histogram import Histogram
from workers.slo_tally import SloTally

TARGETS = SloTargets(ttft_ms=100.0, tpot_ms=10.0)
PLAN = StepPlan(
    spans=(Span("a", 9, 1), Span("b", 4, 1), Span("c", 0, 30)),
    windows=(WindowSpan("ride", 0, 20),),
    units=(LaneUnits("ride", 1), LaneUnits("lane", 3)),
    predicted_ms=12.0,
    slack_ms=5.0,
)
UNITS = [
    Unit(Direction.FORWARD, 0, 0, 8),
    Unit(Direction.FORWARD, 1, 0, 8),
    Unit(Direction.BACKWARD, 1, 0, 8),
    Unit(Direction.BACKWARD, 0, 2, 8),
]


class Gauges:
    """As much of a model host as a report looks at; nothing runs there."""

    num_blocks, num_free, num_lent = 4, 3, 0
    num_preemptions = num_recalls = trained_tokens = num_queries = num_hits = 0
    running = waiting = resident = active = ()

    def __init__(self) -> None:
        self.scheduler = self.trainer = self.adapters = self.pool = self.prefixes = self


def sample(**changes: object) -> RequestSample:
    """An answer of three tokens, the first after 50 ms, then one every 10 ms."""
    fields: dict[str, object] = {
        "base_model": "m", "service_class": "default", "finish_reason": FinishReason.STOP,
        "num_prompt_tokens": 5, "num_output_tokens": 3, "queue_s": 0.0,
        "ttft_s": 0.05, "e2e_s": 0.07, "inter_token_s": (0.01, 0.01),
    }  # fmt: skip
    return RequestSample(**(fields | changes))


def test_a_step_is_told_by_kinds_of_tokens_and_by_jobs() -> None:
    step = step_sample(7, PLAN, UNITS, 20.0)

    assert (step.index, step.num_sequences, step.num_rows) == (7, 3, 52)
    assert (step.decode_tokens, step.prefill_tokens) == (2, 30)
    assert step.train_forward_tokens == 20 + 8
    assert (step.train_backward_tokens, step.train_backward_token_layers) == (6, 14)
    assert step.jobs == (
        JobShare(job_id="ride", window_tokens=20, num_units=1),
        JobShare(job_id="lane", num_units=3),
    )
    assert (step.step_ms, step.predicted_ms, step.slack_ms) == (20.0, 12.0, 5.0)
    assert (step.num_units, step.was_cut) == (4, False)


def test_units_beside_the_forward_are_of_the_plan_and_counted_where_their_lane_ends() -> None:
    beside = (LaneUnits("lane", 2), LaneUnits("only-beside", 1))
    plan = replace(PLAN, beside=beside)

    step = step_sample(0, plan, UNITS, 20.0)

    assert [(share.job_id, share.num_units) for share in step.jobs] == [
        ("ride", 1),
        ("lane", 5),
        ("only-beside", 1),
    ]
    assert not step.was_cut  # those of the lanes go on
    ended = step_sample(1, StepPlan(is_beside=True), [], 5.0, UNITS)
    assert (ended.num_units, ended.train_backward_tokens) == (4, 6)


def test_the_error_of_a_prediction_counts_only_where_the_whole_plan_ran() -> None:
    meter = EngineMeter()

    meter.count_step(PLAN, UNITS, 20.0)
    meter.count_step(PLAN, UNITS[:2], 11.0)

    histograms = meter.report([Gauges()]).histograms
    assert histograms["prediction_error_ms"].total == 8.0
    assert histograms["step_ms"].total == 31.0
    assert sum(histograms["slack_ms"].counts) == 2
    assert [step.was_cut for step in meter.steps] == [False, True]


def test_the_newest_steps_stay_and_each_is_reported_once() -> None:
    meter = EngineMeter()
    meter.count_step(StepPlan(), [], 1.0)  # nothing ran: no step
    for _ in range(3):
        meter.count_step(PLAN, UNITS, 20.0)

    first = meter.report([Gauges()])
    for _ in range(RING_STEPS + 10):
        meter.count_step(PLAN, UNITS, 20.0)
    second = meter.report([Gauges()])
    third = meter.report([Gauges()])

    assert [step.index for step in first.steps] == [0, 1, 2]
    assert [step.index for step in second.steps] == list(range(13, RING_STEPS + 13))
    assert third.steps == ()
    assert len(meter.steps) == RING_STEPS
    assert second.tokens_by_kind["decode"] == 2 * (RING_STEPS + 13)
    assert third.tokens_by_kind == second.tokens_by_kind


def test_only_prompts_under_a_policy_count_as_kept_and_dropped() -> None:
    meter = EngineMeter()
    for kept in (None, 2, 5):
        meter.count_request(sample(num_kept_tokens=kept), TARGETS)

    totals = meter.report([Gauges()])
    assert (totals.kv_kept_tokens, totals.kv_dropped_tokens) == (7, 3)
    assert totals.prompt_tokens == 15


@given(values=st.lists(st.floats(0, 100), max_size=50))
def test_a_histogram_counts_every_value_in_the_first_bucket_that_holds_it(
    values: list[float],
) -> None:
    histogram = Histogram((0.0, 1.0, 50.0))
    for value in values:
        histogram.observe(value)

    totals = histogram.totals()
    assert sum(totals.counts[:2]) == sum(value <= 1 for value in values)
    assert sum(totals.counts) == len(values)
    assert totals.total == pytest.approx(sum(values))


@pytest.mark.parametrize(
    ("changes", "outcomes"),
    [
        ({}, {("ttft", True): 1, ("tpot", True): 1}),  # 50 of 100 ms, 10 of 10 ms
        ({"ttft_s": 0.101}, {("ttft", False): 1, ("tpot", True): 1}),
        ({"inter_token_s": (0.001, 0.02)}, {("ttft", True): 1, ("tpot", False): 1}),
        ({"inter_token_s": ()}, {("ttft", True): 1}),
        ({"ttft_s": None, "inter_token_s": (), "e2e_s": 0.2}, {("ttft", False): 1}),
        ({"ttft_s": None, "inter_token_s": (), "e2e_s": 0.05}, {}),  # left before it was late
    ],
)
def test_a_request_is_judged_by_what_it_saw(
    changes: dict[str, object], outcomes: dict[tuple[str, bool], int]
) -> None:
    tally = SloTally()
    tally.count(sample(**changes), TARGETS)

    counted = {(row.target, True): row.num_within for row in tally.totals()}
    counted |= {(row.target, False): row.num_over for row in tally.totals()}
    assert {key: count for key, count in counted.items() if count} == outcomes


def test_classes_and_training_are_told_apart_and_best_effort_has_nothing_to_keep() -> None:
    tally = SloTally()
    tally.count(sample(), TARGETS)
    tally.count(sample(training_active=True, ttft_s=0.2), TARGETS)
    tally.count(sample(service_class="gold"), SloTargets(None, 5.0))
    tally.count(sample(service_class="best_effort"), SloTargets(None, None))

    rows = {
        (row.service_class, row.target, row.training_active): (row.num_within, row.num_over)
        for row in tally.totals()
    }
    assert rows == {
        ("default", "ttft", False): (1, 0),
        ("default", "tpot", False): (1, 0),
        ("default", "ttft", True): (0, 1),
        ("default", "tpot", True): (1, 0),
        ("gold", "tpot", False): (0, 1),
    }
