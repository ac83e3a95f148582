"""Rows as exercises: asked as a request would ask, scored where a job would learn."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from scheduler.domain.errors import InvalidInput
from scheduler.text.dataset import DatasetLimits, encode_file
from scheduler.text.exercise import Exercise, read_exercises
from scheduler.text.tokenizer import ChatTokenizer, load_tokenizer
from tests.integration.store_kit import make_model_dir

if TYPE_CHECKING:
    from pathlib import Path

CONTEXT = 200
USER = {"role": "user", "content": "hi"}
CHAT = {"messages": [USER, {"role": "assistant", "content": "hello"}]}
TWO_TURNS = {
    "messages": [
        USER, {"role": "assistant", "content": "one"}, USER,
        {"role": "assistant", "content": [{"type": "text", "text": "two"}]},
    ]
}  # fmt: skip
PAIR = {"prompt": "2+2=", "completion": "4"}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    return load_tokenizer(make_model_dir(tmp_path_factory.mktemp("text") / "tiny"))


def read(
    folder: Path, tokenizer: ChatTokenizer, *rows: Any, max_rows: int = 9, **options: Any
) -> list[Exercise]:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    options = {"must_ask": True} | options
    return list(read_exercises(path, tokenizer, max_rows, CONTEXT, **options))


def test_what_is_scored_is_what_a_job_learns(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    rows = [CHAT, PAIR, TWO_TURNS]
    lines = [json.dumps(row).encode() for row in rows]
    learnt = encode_file(lines, tokenizer, CONTEXT)

    for i, exercise in enumerate(read(tmp_path, tokenizer, *rows)):
        token_ids, weights = learnt.example(i)
        assert exercise.token_ids == tuple(token_ids)
        assert exercise.scored == tuple(np.flatnonzero(weights))


def test_a_chat_is_asked_as_a_request_asks_it(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    (exercise,) = read(tmp_path, tokenizer, TWO_TURNS)

    asked = TWO_TURNS["messages"][:3]
    assert exercise.prompt_ids == tuple(tokenizer.encode_chat(asked))
    assert (exercise.reference, exercise.continues_text) == ("two", False)


def test_a_pair_is_continued(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    (exercise,) = read(tmp_path, tokenizer, PAIR)

    assert exercise.prompt_ids == tuple(tokenizer.encode("2+2="))
    assert (exercise.reference, exercise.continues_text) == ("4", True)


def test_no_row_is_read_beyond_the_last_that_is_wanted(
    tmp_path: Path, tokenizer: ChatTokenizer
) -> None:
    exercises = read(tmp_path, tokenizer, "", CHAT, " ", PAIR, "{broken", max_rows=2)

    assert [exercise.reference for exercise in exercises] == ["hello", "4"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{", "not JSON"),
        ({"messages": [{"role": "assistant", "content": "first"}]}, "nothing precedes"),
        ({"prompt": "", "completion": "x"}, "nothing precedes"),
        ({"prompt": "x" * CONTEXT, "completion": "y"}, "context holds 200"),
        ({"prompt": "x" * (CONTEXT - 2), "completion": "y"}, None),
    ],
)
def test_a_row_that_cannot_be_asked_is_refused_with_its_line(
    tmp_path: Path, tokenizer: ChatTokenizer, row: Any, said: str | None
) -> None:
    if said is None:
        assert len(read(tmp_path, tokenizer, CHAT, row)) == 2
        return
    with pytest.raises(InvalidInput, match=f"^Line 2 of the file: .*{said}"):
        read(tmp_path, tokenizer, CHAT, row)


def test_a_row_without_a_prompt_can_still_be_scored(
    tmp_path: Path, tokenizer: ChatTokenizer
) -> None:
    row = {"prompt": "", "completion": "xy"}

    (exercise,) = read(tmp_path, tokenizer, row, must_ask=False)

    assert exercise.prompt_ids == ()
    assert len(exercise.scored) == len(exercise.token_ids) - 1


def test_blank_lines_are_lines_too_and_bounded(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    bounds = DatasetLimits(max_lines=3)

    assert len(read(tmp_path, tokenizer, "", "", CHAT, limits=bounds)) == 1
    with pytest.raises(InvalidInput, match=r"^The file may have at most 3 lines\.$"):
        read(tmp_path, tokenizer, *[""] * 5, limits=bounds)


def test_nothing_is_read_for_nobody(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    asked: list[bool] = []

    def is_wanted() -> bool:
        asked.append(len(asked) < 2)
        return asked[-1]

    assert len(read(tmp_path, tokenizer, CHAT, "", CHAT, "", is_wanted=is_wanted)) == 1
    assert asked == [True, True, False]


def test_a_file_without_rows_is_refused(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    with pytest.raises(InvalidInput, match="no rows"):
        read(tmp_path, tokenizer, "", "  ")
