from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from benchmarks.grammar import entropy_rate, passages
from benchmarks.recall_task import (
    FIRST_SYMBOL,
    FIRST_WORD,
    NUM_NEEDLES,
    SLOT,
    TABLE_FACTS,
    TASKS,
    Papers,
)

FACT_TASKS = [name for name in TASKS if name != "majority"]


def texts(task: str, context: int) -> Papers:
    return TASKS[task](np.random.default_rng(5), 6, context)


@pytest.mark.parametrize("task", FACT_TASKS)
@pytest.mark.parametrize("context", [96, 1024])
def test_who_finds_the_key_reads_the_answer_behind_it(task: str, context: int) -> None:
    papers = texts(task, context)

    for row in papers.tokens_RN.tolist():
        for answer in papers.answers:
            key, values = row[answer.start - 1], row[answer.start : answer.stop]
            found = [place for place in range(0, context, SLOT) if row[place] == key]
            assert found
            assert all(row[place + 1 : place + SLOT] == values for place in found)


@pytest.mark.parametrize(("task", "facts"), [("needle", 1), ("multikey", NUM_NEEDLES)])
def test_all_but_the_facts_is_filler(task: str, facts: int) -> None:
    papers = texts(task, 256)

    for row in papers.tokens_RN[:, :256]:
        symbols = row[(row >= FIRST_SYMBOL) & (row < FIRST_WORD)]
        assert len(symbols) == len(set(symbols.tolist())) == facts * SLOT


def test_a_table_has_no_filler_and_states_every_fact_about_as_often() -> None:
    papers = texts("lookup", 1024)

    for row in papers.tokens_RN[:, SLOT:1024].tolist():
        times = Counter(row[::SLOT])
        assert len(times) == TABLE_FACTS
        assert max(times.values()) - min(times.values()) <= 1
        assert all(FIRST_SYMBOL <= token < FIRST_WORD for token in row)


@pytest.mark.parametrize("context", [64, 256, 8192])
def test_the_majority_is_the_mark_that_is_counted_most_often(context: int) -> None:
    papers = texts("majority", context)
    (answer,) = papers.answers

    for row in papers.tokens_RN.tolist():
        marks = Counter(token for token in row[:context] if FIRST_SYMBOL <= token < FIRST_WORD)
        (first, most), (_, second) = marks.most_common(2)
        assert row[answer.start] == first
        assert most > second


def test_a_continuation_states_facts_as_the_text_before_it_did() -> None:
    told = passages(np.random.default_rng(5), 20, 1024)

    for row, is_value in zip(told.tokens_RN.tolist(), told.is_value_RN, strict=True):
        stated = {
            row[place - 1]: row[place : place + 3]
            for place in np.flatnonzero(is_value[:1024]).tolist()
            if place % SLOT == 1
        }
        for place in (1024 + np.flatnonzero(is_value[1024:])).tolist():
            if place % SLOT == 1:
                assert stated[row[place - 1]] == row[place : place + 3]


def test_the_floor_of_continuations_is_the_entropy_of_the_grammar() -> None:
    told = passages(np.random.default_rng(5), 400, 256)

    assert told.floor_RN[:, 256:].mean() == pytest.approx(entropy_rate(), rel=0.01)
    assert not told.floor_RN[told.is_value_RN].any()
