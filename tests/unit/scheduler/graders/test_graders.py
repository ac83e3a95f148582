"""Every grader, and what each one's grade means."""

from __future__ import annotations

import json
import math
import re
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import scheduler.graders
from scheduler.grader import GRADERS, Grade, Grader, Trial

NEEDED = {"regex": {"pattern": "a"}}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
LOGPROBS = st.lists(st.floats(-50, 0), max_size=8).map(tuple)
PIECES = ["a", "b", ".", "a*", "b+", "(ab)?", "[^a]", "^", "$"]
SIMPLE_PATTERN = st.lists(st.sampled_from(PIECES), max_size=6).map("".join)


def make(name: str, **options: Any) -> Grader:
    return GRADERS[name](GRADERS[name].Config.model_validate(NEEDED.get(name, {}) | options))


def accepts(name: str, answer: str, reference: str = "", **options: Any) -> bool:
    return make(name, **options).grade(Trial(answer, reference)) == Grade(1.0, 1)


def test_the_package_registers_every_grader() -> None:
    assert scheduler.graders.GRADERS.names() == [
        "json_valid", "loss", "pairwise", "regex", "string_check", "token_accuracy",
    ]  # fmt: skip


@pytest.mark.parametrize("name", GRADERS.names())
def test_a_grader_refuses_an_option_it_does_not_know(name: str) -> None:
    with pytest.raises(ValidationError, match="extra_forbidden"):
        make(name, colour="red")


def test_nothing_graded_has_no_mean() -> None:
    assert Grade().mean is None
    assert make("loss").grade(Trial()).mean is None


@pytest.mark.parametrize(
    ("operation", "verdicts"),
    [
        ("eq", [True, False, False, False]),
        ("ne", [False, True, True, True]),
        ("like", [True, True, False, False]),
        ("ilike", [True, True, True, False]),
    ],
)
def test_a_string_check_compares_as_openai_names_it(operation: str, verdicts: list[bool]) -> None:
    answers = ["Rome", "Rome, of course", "ROME", "Paris"]

    assert [accepts("string_check", a, "Rome", operation=operation) for a in answers] == verdicts


@given(SIMPLE_PATTERN, st.text("ab", max_size=8))
def test_a_regex_finds_what_pythons_finds(pattern: str, answer: str) -> None:
    assert accepts("regex", answer, pattern=pattern) == bool(re.search(pattern, answer))


def test_a_regex_that_would_backtrack_for_ever_ends() -> None:
    assert not accepts("regex", "a" * 100_000 + "b", pattern="^(a+)+$")


def test_a_regex_does_not_look_where_its_groups_are() -> None:
    groups = 300
    pattern = "(" * groups + "a" + ")" * groups + "*$"
    start_s = time.thread_time()

    assert accepts("regex", "a" * 100_000, pattern=pattern)

    assert time.thread_time() - start_s < 0.5  # with the place of each group 3.7


@pytest.mark.parametrize("pattern", ["(a", r"(a)\1", "(?=a)", "a{1001}", "a" * 1001])
def test_a_pattern_that_is_not_linear_or_too_large_is_refused(pattern: str) -> None:
    with pytest.raises(ValidationError):
        make("regex", pattern=pattern)


@given(JSON)
def test_every_json_document_is_valid_and_a_cut_one_in_brackets_is_not(document: Any) -> None:
    text = json.dumps([document])

    assert accepts("json_valid", f" {text}\n")
    assert not accepts("json_valid", text[:-1])


@pytest.mark.parametrize("answer", ["", "NaN", "[-Infinity]", "{} {}", "{'a': 1}", "[" * 200_000])
def test_what_is_no_json_is_not_valid(answer: str) -> None:
    assert not accepts("json_valid", answer)


def test_a_number_of_any_length_is_valid_json() -> None:
    assert accepts("json_valid", "9" * 100_000)


@given(st.lists(LOGPROBS, min_size=1, max_size=5))
def test_the_loss_of_rows_is_the_mean_over_all_their_tokens(rows: list[tuple[float, ...]]) -> None:
    graded = sum((make("loss").grade(Trial(logprobs=row)) for row in rows), Grade())

    tokens = [logprob for row in rows for logprob in row]
    assert graded.count == len(tokens)
    assert math.isclose(graded.total, -sum(tokens), abs_tol=1e-9)


def test_token_accuracy_weighs_tokens_not_rows() -> None:
    grader = make("token_accuracy")

    graded = grader.grade(Trial(hits=(True,))) + grader.grade(Trial(hits=(False, False, True)))
    assert graded.mean == 0.5


@pytest.mark.parametrize(
    ("rival", "total"), [((-2.0, -2.0), 1.0), ((-1.0, -0.5), 0.0), ((-0.5, -1.5), 0.5)]
)
def test_of_two_models_the_one_wins_that_finds_the_whole_reference_likelier(
    rival: tuple[float, ...], total: float
) -> None:
    trial = Trial(logprobs=(-1.0, -1.0), rivals={"base": Trial(logprobs=rival)})

    assert make("pairwise", against="base").grade(trial) == Grade(total, 1)
    assert make("pairwise", against="current").grade(trial) == Grade(total, 1)  # base stands in


def test_a_current_version_is_the_rival_where_there_is_one() -> None:
    rivals = {"base": Trial(logprobs=(-9.0,)), "current": Trial(logprobs=(-0.1,))}
    trial = Trial(logprobs=(-1.0,), rivals=rivals)

    assert make("pairwise").grade(trial) == Grade(0.0, 1)
    assert make("pairwise", against="base").grade(trial) == Grade(1.0, 1)
