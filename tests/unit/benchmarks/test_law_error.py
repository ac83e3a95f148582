from __future__ import annotations

import math

import pytest

from benchmarks.law_error import MIN_REPEATS, groups_of, law_figures, repeat_noise
from benchmarks.step_record import Shape, StepRecord, step_shape, trained_tokens
from scheduler.domain.plan import LaneUnits, Span, StepPlan, WindowSpan
from scheduler.policy.pack_cursor import Direction, Unit


def step(
    step_ms: float, predicted_ms: float = 10.0, shape: Shape = ("a",), whole: bool = True
) -> StepRecord:
    return StepRecord(shape, step_ms, predicted_ms, whole, 0, 0, 0, 0)


def test_noise_is_relative_to_the_median_of_equal_steps() -> None:
    assert repeat_noise([9.0, 10.0, 12.0]) == pytest.approx([0.1, 0.0, 0.2])


def test_shapes_that_come_too_rarely_are_no_group() -> None:
    steps = [step(1.0, shape=("a",))] * MIN_REPEATS + [step(1.0, shape=("b",))]

    assert [len(group) for group in groups_of(steps)] == [MIN_REPEATS]


def test_error_is_held_against_the_noise_of_the_same_steps() -> None:
    # real 8, 9, 10, 11, 12: noise .2 .1 0 .1 .2; predicted 12: errors 4/8, 3/9, 2/10, 1/11, 0
    steps = [step(ms, predicted_ms=12.0) for ms in (8.0, 9.0, 10.0, 11.0, 12.0)]

    figures = law_figures([steps])

    assert figures["noise_p50"] == pytest.approx(0.1)
    assert figures["repeated_error_p50"] == pytest.approx(0.2)
    assert figures["error_over_noise"] == pytest.approx(2.0)


def test_interrupted_steps_count_for_nothing() -> None:
    figures = law_figures([[step(10.0), step(2.0, whole=False)]])

    assert figures["steps"] == 1
    assert figures["error_p50"] == 0.0
    assert math.isnan(figures["error_over_noise"])


def test_equal_shapes_are_compared_within_a_phase_only() -> None:
    figures = law_figures([[step(1.0)] * 3, [step(1.0)] * 3])

    assert figures["repeated_steps"] == 0


def test_a_record_knows_what_was_cut_short_and_its_tokens_by_kind() -> None:
    plan = StepPlan(
        spans=(Span("s", 300, 1), Span("t", 0, 200)),
        windows=(WindowSpan("j", 0, 32),),
        units=(LaneUnits("j", 3),),
        predicted_ms=5.0,
    )
    units = [Unit(Direction.BACKWARD, 1, 0, 256), Unit(Direction.FORWARD, 0, 0, 64)]

    record = StepRecord.of(plan, units, 6.0)

    assert not record.is_uninterrupted
    assert (record.decode_tokens, record.prefill_tokens) == (1, 200)
    assert (record.forward_tokens, record.backward_token_layers) == (32 + 64, 256)
    assert record.shape == step_shape(plan, units)
    assert record.shape != step_shape(plan, units[:1])


def test_a_trained_token_is_a_third_forward_and_two_thirds_backward() -> None:
    forward = StepRecord(("a",), 1.0, 1.0, True, 0, 0, 300, 0)
    backward = StepRecord(("b",), 1.0, 1.0, True, 0, 0, 0, 300 * 4)

    assert trained_tokens([forward], num_layers=4) == pytest.approx(100)
    assert trained_tokens([forward, backward], num_layers=4) == pytest.approx(300)
