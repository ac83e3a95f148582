from __future__ import annotations

import pytest

from benchmarks.gemm_bound import PROMPT_PER_OUTPUT, GemmCosts

FLAT = GemmCosts(rows=(1, 8, 40), ms=(8.0, 8.0, 8.0), backward_ms=0.5)  # bound by memory
STRAIGHT = GemmCosts(rows=(1, 8, 40), ms=(1.0, 8.0, 40.0), backward_ms=1.0)  # bound by arithmetic


def test_costs_are_straight_between_measured_row_counts() -> None:
    assert STRAIGHT.at(24) == pytest.approx(24.0)
    assert STRAIGHT.forward_ms == pytest.approx(1.0)


def test_a_window_rides_for_nothing_where_memory_is_the_bound() -> None:
    # separate: 8 + 32 * (8/40 + 0.5) = 30.4; fused: 8 + 32 * 0.5 = 24
    assert FLAT.window_eta(8, 32) == pytest.approx(30.4 / 24)


def test_sharing_gains_nothing_where_arithmetic_is_the_bound() -> None:
    assert STRAIGHT.window_eta(8, 32) == pytest.approx(1.0)
    assert STRAIGHT.bound(8, 2.0) == pytest.approx(1.0)


def test_the_bound_is_what_the_best_window_saves_over_the_longer_step() -> None:
    # alone: 8 decode rows and their prompts; a window of 40 adds 20 and saves 40 * 0.2 = 8
    alone_ms = 8.0 + 8 * PROMPT_PER_OUTPUT * 0.2
    share = 0.5 * alone_ms / 20.0

    assert FLAT.bound(8, 1.5) == pytest.approx(1 + share * 8.0 / (1.5 * alone_ms))
