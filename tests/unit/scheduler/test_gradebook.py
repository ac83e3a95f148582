"""Grades of several models, row by row, added up."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.domain.errors import InvalidInput, UnknownPlugin
from scheduler.domain.evaluation import GraderChoice
from scheduler.gradebook import Gradebook, make_grader
from scheduler.grader import Trial

if TYPE_CHECKING:
    from scheduler.domain.evaluation import Contender

LOGPROBS = st.lists(st.floats(-9, 0), min_size=1, max_size=4).map(tuple)
ROWS = st.lists(st.tuples(LOGPROBS, LOGPROBS), min_size=1, max_size=5)


def choice(kind: str, name: str | None = None, **config: Any) -> GraderChoice:
    return GraderChoice(name=name or kind, type=kind, config=config)


def trials(candidate: Trial, base: Trial) -> dict[Contender, Trial]:
    return {"candidate": candidate, "base": base}


@given(ROWS)
def test_each_contender_has_its_own_mean_over_all_rows(rows: Any) -> None:
    book = Gradebook([choice("loss", "l")])

    for mine, theirs in rows:
        book.add(book.grade(trials(Trial(logprobs=mine), Trial(logprobs=theirs))))

    assert book.num_rows == len(rows)
    for i, contender in enumerate(("candidate", "base")):
        tokens = [logprob for row in rows for logprob in row[i]]
        mean = book.means(contender)["l"]
        assert mean == pytest.approx(-sum(tokens) / len(tokens))


@given(ROWS)
def test_of_two_models_each_wins_what_the_other_loses(rows: Any) -> None:
    def share(rows: Any) -> float:
        book = Gradebook([choice("pairwise", against="base")])
        for mine, theirs in rows:
            book.add(book.grade(trials(Trial(logprobs=mine), Trial(logprobs=theirs))))
        return float(book.means("candidate")["pairwise"] or 0.0)

    assert share(rows) + share([(b, a) for a, b in rows]) == pytest.approx(1.0)


@pytest.mark.parametrize("logprob", [math.nan, -math.inf])
def test_a_mean_that_is_no_finite_number_is_none(logprob: float) -> None:
    book = Gradebook([choice("loss")])

    book.add(book.grade(trials(Trial(logprobs=(logprob,)), Trial(logprobs=(-1.0,)))))

    assert book.means("candidate") == {"loss": None}
    assert book.means("base") == {"loss": 1.0}


def test_nothing_is_graded_for_nobody() -> None:
    answers = iter([True, False, False])
    book = Gradebook([choice("loss"), choice("json_valid"), choice("regex", pattern="a")],
                     lambda: next(answers, False))  # fmt: skip

    assert len(book.grade({"candidate": Trial()})) == 1


def test_only_what_a_grader_reads_is_needed() -> None:
    answers, scores = Gradebook([choice("json_valid")]), Gradebook([choice("pairwise")])

    assert (answers.reads("answer"), answers.reads("scores")) == (True, False)
    assert (scores.reads("answer"), scores.reads("scores")) == (False, True)


@pytest.mark.parametrize(
    ("wrong", "kind", "param"),
    [
        (choice("taste"), UnknownPlugin, "g.type"),
        (choice("loss", colour="red"), InvalidInput, "g.config.colour"),
        (choice("regex", pattern="("), InvalidInput, "g.config.pattern"),
        (choice("regex"), InvalidInput, "g.config.pattern"),
    ],
)
def test_a_wrong_choice_is_refused_with_its_place(
    wrong: GraderChoice, kind: type[InvalidInput], param: str
) -> None:
    with pytest.raises(kind) as refused:
        make_grader(wrong, "g")

    assert refused.value.param == param
