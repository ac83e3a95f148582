from __future__ import annotations

import math

from benchmarks.spread import median, percentile, percentiles, rounded, spread


def test_a_percentile_is_a_value_that_so_many_do_not_exceed() -> None:
    values = [float(i) for i in range(1, 101)]

    assert percentile(values, 0.99) == 99.0
    assert percentile(values, 1.0) == 100.0
    assert percentile([5.0], 0.5) == 5.0


def test_nothing_has_no_median_and_no_percentile() -> None:
    assert math.isnan(median([]))
    assert math.isnan(percentile([], 0.99))
    assert percentiles([])["count"] == 0


def test_a_spread_shows_its_rounds() -> None:
    assert spread([3.0, 1.0, 2.0]) == {
        "median": 2.0,
        "low": 1.0,
        "high": 3.0,
        "rounds": [3.0, 1.0, 2.0],
    }


def test_rounding_reaches_into_everything_and_leaves_no_nan() -> None:
    assert rounded({"a": [1.23456789, math.nan], 8: (2, "x")}) == {
        "a": [1.2346, None],
        8: [2, "x"],
    }
