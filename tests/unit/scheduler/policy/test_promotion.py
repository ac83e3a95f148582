"""Which evaluations let a version become live."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from scheduler.domain.evaluation import PromotionRule
from scheduler.policy.promotion import reasons_against

MEANS = {
    "candidate": {"loss": 1.95, "exact": 0.8, "empty": None, "broken": math.nan},
    "current": {"loss": 1.9, "exact": 0.8, "empty": None, "broken": 1.0},
    "base": {"loss": 2.0, "exact": 0.1, "empty": None, "broken": 1.0},
}


def rule(grader: str, comparison: str, **rest: Any) -> PromotionRule:
    return PromotionRule.model_validate({"grader": grader, "comparison": comparison} | rest)


@pytest.mark.parametrize(
    "kept",
    [
        rule("exact", "at_least", against="current"),
        rule("exact", "at_most", against="current"),
        rule("loss", "at_most", against="base", margin=-0.05),
        rule("loss", "at_most", margin=1.95),
    ],
)
def test_a_mean_on_its_bound_keeps_the_rule(kept: PromotionRule) -> None:
    assert reasons_against([kept], MEANS) == ()


@pytest.mark.parametrize(
    "broken",
    [
        rule("loss", "at_most", against="current"),
        rule("loss", "at_most", against="base", margin=-0.06),
        rule("exact", "at_least", margin=0.9),
        rule("empty", "at_least"),
        rule("unknown", "at_least"),
        rule("broken", "at_least"),
        rule("broken", "at_most", against="base"),
    ],
)
def test_a_mean_beyond_its_bound_or_missing_breaks_the_rule(broken: PromotionRule) -> None:
    assert len(reasons_against([broken, rule("exact", "at_least")], MEANS)) == 1


def test_the_first_version_is_compared_with_the_base_alone() -> None:
    first = {name: means for name, means in MEANS.items() if name != "current"}

    assert reasons_against([rule("loss", "at_most", against="current")], first) == ()


def test_a_reason_names_the_grader_its_mean_and_the_bound() -> None:
    reasons = reasons_against([rule("loss", "at_most", against="current")], MEANS)

    assert reasons == ("loss is 1.95; it must be at most 1.9.",)


@given(st.floats(0, 10), st.floats(0, 10), st.floats(-1, 1))
def test_of_a_rule_and_its_opposite_one_holds(mine: float, rival: float, margin: float) -> None:
    means = {"candidate": {"g": mine}, "base": {"g": rival}}
    both = [rule("g", c, against="base", margin=margin) for c in ("at_least", "at_most")]

    assert len(reasons_against(both, means)) <= 1


@pytest.mark.parametrize("margin", [math.nan, math.inf])
def test_a_margin_is_a_finite_number(margin: float) -> None:
    with pytest.raises(ValidationError):
        rule("loss", "at_most", margin=margin)
