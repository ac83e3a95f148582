"""The latency law learns what steps cost, and never predicts nonsense on the way."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.policy.latency import ForwardShape, LatencyLaw, RowCosts
from scheduler.policy.least_squares import OnlineLeastSquares, solve
from scheduler.policy.pack_cursor import Direction, Unit

COSTS = RowCosts((1, 16, 64, 256), (4.0, 5.0, 9.0, 30.0))
COEFFICIENTS = st.lists(st.floats(0.0, 5.0), min_size=3, max_size=3)


def random_shape(random: Random) -> ForwardShape:
    return ForwardShape(
        num_rows=random.randint(1, 300),
        num_spans=random.randint(1, 32),
        context_tokens=random.randint(0, 20_000),
        score_pairs=random.randint(0, 60_000),
    )


@settings(max_examples=30, deadline=None)
@given(truth=COEFFICIENTS, seed=st.integers(0, 999))
def test_least_squares_converges_on_a_linear_law(truth: list[float], seed: int) -> None:
    random = Random(seed)
    law = OnlineLeastSquares([1.0, 1.0, 1.0])
    for _ in range(300):
        x = [1.0, random.uniform(0, 10), random.uniform(0, 10)]
        law.observe(x, sum(a * b for a, b in zip(truth, x, strict=True)))

    assert law.predict([1.0, 5.0, 2.0]) == pytest.approx(
        truth[0] + 5 * truth[1] + 2 * truth[2], abs=0.02
    )


def test_least_squares_follows_a_law_that_changes_and_says_how_wrong_it_is() -> None:
    random = Random(1)
    law = OnlineLeastSquares([0.0, 0.0])

    def observe(slope: float, noise: float, count: int) -> None:
        for _ in range(count):
            x = random.uniform(1, 10)
            law.observe([1.0, x], 3 + slope * x + random.uniform(-noise, noise))

    observe(2.0, 1.0, 1000)
    assert law.predict([1.0, 5.0]) == pytest.approx(13, abs=0.3)
    assert law.error == pytest.approx(0.5, abs=0.2)
    observe(4.0, 0.0, 3000)
    assert law.predict([1.0, 5.0]) == pytest.approx(23, abs=0.5)


def test_an_accident_teaches_little_and_a_lasting_change_all() -> None:
    random = Random(3)
    law = OnlineLeastSquares([0.0, 0.0])

    def observe(count: int, slower: float, accident_ms: float = 0.0) -> None:
        for _ in range(count):
            x = [1.0, random.uniform(1, 10)]
            law.observe(x, slower * (2.0 + x[1]) + accident_ms)

    observe(100, slower=1.0)
    observe(1, slower=1.0, accident_ms=50.0)
    assert law.predict([1.0, 5.0]) == pytest.approx(7.0, rel=0.01)

    observe(1000, slower=1.5)
    assert law.predict([1.0, 5.0]) == pytest.approx(10.5, rel=0.05)


def test_long_steps_do_not_decide_alone_what_short_ones_take() -> None:
    """Prompts of 50 to 170 ms, not quite linear in their work, between decode steps of 15 ms."""
    random = Random(4)
    law = OnlineLeastSquares([0.0, 0.0])
    for _ in range(500):
        work = random.uniform(4, 12)
        law.observe([1.0, work], 6.0 + 10.0 * work + 0.3 * work**2)
        law.observe([1.0, 1.0], 15.0)

    assert law.predict([1.0, 1.0]) == pytest.approx(15.0, rel=0.05)
    assert law.predict([1.0, 8.0]) == pytest.approx(105.2, rel=0.05)


def test_a_repeated_observation_never_blows_the_law_up() -> None:
    """Days of the same decode step: forgetting must not make the law explode at the next prompt."""
    law = LatencyLaw(COSTS, num_layers=4)
    decode = ForwardShape(num_rows=4, num_spans=4, context_tokens=400, score_pairs=0)
    random = Random(2)
    for _ in range(20_000):
        law.observe_forward(decode, 6.0 + random.uniform(-0.2, 0.2))

    prefill = ForwardShape(num_rows=200, num_spans=5, context_tokens=400, score_pairs=40_000)
    law.observe_forward(prefill, 30.0)

    assert law.forward_ms(decode) == pytest.approx(6.0, abs=1.0)
    assert 0.5 * COSTS.at(200) <= law.forward_ms(prefill) < 300


def test_a_stall_of_seconds_leaves_the_margin_to_usual_errors() -> None:
    law = LatencyLaw(COSTS, num_layers=4)
    decode = ForwardShape(num_rows=4, num_spans=4, context_tokens=400, score_pairs=0)
    for _ in range(200):
        law.observe_forward(decode, 6.0)

    law.observe_forward(decode, 2000.0)

    assert law.margin_ms(decode) < 0.2


def test_the_law_of_a_forward_converges_on_synthetic_costs() -> None:
    random = Random(3)
    law = LatencyLaw(COSTS, num_layers=4)

    def truth(shape: ForwardShape) -> float:
        return (
            2.0
            + 1.3 * COSTS.at(shape.num_rows)
            + 0.05 * shape.num_spans
            + 0.4 * shape.context_tokens / 1e3
            + 0.1 * shape.score_pairs / 1e3
        )

    for _ in range(500):
        shape = random_shape(random)
        law.observe_forward(shape, truth(shape) * random.uniform(0.97, 1.03))

    for _ in range(50):
        shape = random_shape(random)
        assert law.forward_ms(shape) == pytest.approx(truth(shape), rel=0.05)
    assert law.margin_ms(random_shape(random)) < 2.0


def test_captured_steps_have_a_law_of_their_own() -> None:
    """An eager step of few rows is bound by its launches, which a captured one does not have."""
    random = Random(5)
    law = LatencyLaw(COSTS, num_layers=4, captures_decode=True)

    def decode(rows: int) -> ForwardShape:
        return ForwardShape(rows, rows, context_tokens=100 * rows, score_pairs=0)

    def eager(rows: int) -> ForwardShape:
        return ForwardShape(rows, 1, context_tokens=0, score_pairs=rows * rows // 2)

    for _ in range(300):
        rows = random.randint(1, 64)
        law.observe_forward(decode(rows), 0.5 + COSTS.at(rows))
        law.observe_forward(eager(1 + rows), max(12.0, 0.5 + COSTS.at(1 + rows)))

    for rows in (1, 7, 60):
        assert law.forward_ms(decode(rows)) == pytest.approx(0.5 + COSTS.at(rows), rel=0.05)
        assert law.forward_ms(eager(1 + rows)) == pytest.approx(12.0, rel=0.05)
        assert law.margin_ms(decode(rows)) < 0.2


@pytest.mark.parametrize("direction", Direction)
def test_the_law_of_units_converges_on_synthetic_costs(direction: Direction) -> None:
    random = Random(4)
    law = LatencyLaw(COSTS, num_layers=4)

    def random_unit() -> tuple[Unit, bool, float]:
        start, count = random.choice((0, 256)), random.randint(1, 256)
        pairs = count * start + count * (count + 1) // 2
        unit = Unit(direction, random.randrange(4), start, start + count, pairs)
        is_cold = random.random() < 0.3
        first_layer_ms = -0.005 * count if unit.layer == 0 else 0.0
        cost_ms = 0.5 + 0.02 * count + 0.02 * pairs / 1e3 + first_layer_ms + 2.0 * is_cold
        return unit, is_cold, cost_ms

    for _ in range(400):
        unit, is_cold, cost_ms = random_unit()
        law.observe_unit(unit, cost_ms, is_cold=is_cold)
    for _ in range(50):
        unit, is_cold, cost_ms = random_unit()
        assert law.unit_ms(unit, is_cold=is_cold) == pytest.approx(cost_ms, rel=0.05, abs=0.1)


@given(rows=st.integers(0, 5000))
def test_row_costs_are_positive_and_hit_the_measured_points(rows: int) -> None:
    assert COSTS.at(rows) >= (COSTS.ms[0] if rows else 0.0)
    for count, cost in zip(COSTS.rows, COSTS.ms, strict=True):
        assert COSTS.at(count) == cost


@settings(deadline=None)
@given(observed=st.lists(st.floats(0, 1e4), max_size=30), seed=st.integers(0, 99))
def test_predictions_stay_positive_whatever_was_observed(observed: list[float], seed: int) -> None:
    random = Random(seed)
    law = LatencyLaw(COSTS, num_layers=4)
    for elapsed_ms in observed:
        law.observe_forward(random_shape(random), elapsed_ms)
        law.observe_unit(Unit(Direction.BACKWARD, 0, 0, random.randint(1, 256)), elapsed_ms)

    assert law.forward_ms(random_shape(random)) > 0
    assert law.unit_ms(Unit(Direction.BACKWARD, 0, 0, 5)) > 0


@given(seed=st.integers(0, 999), size=st.integers(1, 6), ridge=st.floats(0.01, 10))
def test_solving_by_factors_is_solving(seed: int, size: int, ridge: float) -> None:
    draw = np.random.default_rng(seed)
    rows, right = draw.normal(size=(size + 2, size)), draw.normal(size=size)
    squares = rows.T @ rows
    lower = [list(squares[i, : i + 1]) for i in range(size)]

    z = solve(lower, list(right), ridge)

    expected = np.linalg.solve(squares + ridge * np.eye(size), right)
    assert z == pytest.approx(expected.tolist(), rel=1e-6, abs=1e-9)


def test_a_direction_that_is_no_more_observed_takes_nothing_with_it() -> None:
    law = OnlineLeastSquares([0.1, 0.1, 0.1])
    random = Random(5)
    for _ in range(50):
        law.observe([1.0, random.uniform(1, 10), 5.0], 7.0)
    for _ in range(5000):
        x = random.uniform(1, 10)
        law.observe([1.0, x, 0.0], 2.0 + 3.0 * x)
    for _ in range(300):
        x = random.uniform(1, 10)
        law.observe([1.0, x, 0.0], 4.0 + 6.0 * x)

    assert law.predict([1.0, 5.0, 0.0]) == pytest.approx(34.0, rel=0.05)
    assert 0 < law.predict([1.0, 5.0, 5.0]) < 100
