"""Rows of a data set as something to be asked: a prompt, and the answer that should follow.

A model is asked as an ordinary request would ask it, and is scored on the tokens that a job would
learn from the row; so the mean score is the job's validation loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice, takewhile
from typing import TYPE_CHECKING

from scheduler.domain.errors import InvalidInput
from scheduler.text.dataset import DatasetLimits, bounded_lines, check_example, filled_lines
from scheduler.text.masks import mask_chat, mask_pair
from scheduler.text.messages import normalize_messages
from scheduler.text.rows import ChatRow, PairRow, parse_row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from scheduler.text.tokenizer import ChatTokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Exercise:
    """One row.

    Attributes:
        prompt_ids: what a model is asked; empty if nothing precedes the answer.
        reference: what it should answer.
        continues_text: the answer goes on from the prompt's text.
        token_ids: the whole row, up to the last token that is scored.
        scored: positions of the tokens that are, ascending; never 0.
    """

    prompt_ids: tuple[int, ...]
    reference: str
    continues_text: bool
    token_ids: tuple[int, ...]
    scored: tuple[int, ...]


def read_exercises(
    path: Path,
    tokenizer: ChatTokenizer,
    max_rows: int,
    max_tokens: int,
    *,
    must_ask: bool,
    limits: DatasetLimits | None = None,
    is_wanted: Callable[[], bool] = lambda: True,
) -> Iterator[Exercise]:
    """The first rows of a file, one by one; blank lines are passed over.

    Args:
        path: a JSONL file.
        tokenizer: the base model's.
        max_rows: how many rows at most.
        max_tokens: the model's context.
        must_ask: refuse rows that cannot be asked, because nothing precedes the answer or
            nothing fits behind it.
        limits: bounds on the file.
        is_wanted: asked before each line; the file ends for us where it is not.

    Raises:
        InvalidInput: names the line and what is wrong with it; or there are no rows, or too many
            lines before the last.
    """
    bounds = limits or DatasetLimits()
    num_read = 0
    with path.open("rb") as file:
        lines = takewhile(lambda _: is_wanted(), bounded_lines(file, bounds.max_line_bytes))
        for number, line in islice(filled_lines(lines, bounds.max_lines), max_rows):
            try:
                exercise = _exercise(line, tokenizer, bounds)
                check_example(exercise.token_ids, len(exercise.scored), max_tokens)
                if must_ask:
                    _check_askable(exercise, max_tokens)
            except InvalidInput as error:
                raise InvalidInput(f"Line {number} of the file: {error.message}") from None
            num_read += 1
            yield exercise
    if num_read == 0:
        raise InvalidInput("The file has no rows; it must have at least one example.")


def _exercise(line: bytes, tokenizer: ChatTokenizer, limits: DatasetLimits) -> Exercise:
    row = parse_row(
        line,
        max_line_bytes=limits.max_line_bytes,
        max_depth=limits.max_depth,
        max_messages=limits.max_messages,
    )
    if isinstance(row, ChatRow):
        return _chat_exercise(row, tokenizer)
    return _pair_exercise(row, tokenizer)


def _chat_exercise(row: ChatRow, tokenizer: ChatTokenizer) -> Exercise:
    masked = mask_chat(row, tokenizer)
    last = max(row.trained)
    asked = row.messages[:last]
    return Exercise(
        prompt_ids=tuple(tokenizer.encode_chat(asked, row.tools)) if asked else (),
        reference=str(normalize_messages(row.messages)[last]["content"]),
        continues_text=False,
        token_ids=tuple(masked.token_ids),
        scored=masked.trained,
    )


def _pair_exercise(row: PairRow, tokenizer: ChatTokenizer) -> Exercise:
    masked = mask_pair(row, tokenizer)
    return Exercise(
        prompt_ids=tuple(tokenizer.encode_pair(row.prompt, row.completion)[0]),
        reference=row.completion,
        continues_text=True,
        token_ids=tuple(masked.token_ids),
        scored=masked.trained,
    )


def _check_askable(exercise: Exercise, max_tokens: int) -> None:
    if not exercise.prompt_ids:
        raise InvalidInput("nothing precedes the answer, so no model can be asked for it.")
    if len(exercise.prompt_ids) >= max_tokens:
        raise InvalidInput(f"the prompt leaves no room in the model's context of {max_tokens}.")
