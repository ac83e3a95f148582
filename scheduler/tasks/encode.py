"""The CPU part of the data check: a JSONL file in, a tokenised data set out, nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from scheduler.text import dataset
from scheduler.text.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from scheduler.text.tokenizer import ChatTokenizer

MAX_TOKENIZERS = 4  # kept per process; the big ones hold a few hundred MB


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedSummary:
    """What an encoded data set holds."""

    num_examples: int
    num_tokens: int
    num_trained_tokens: int


def encode_data_set(
    model_dir: Path, source: Path, target: Path, enough_tokens: int | None = None
) -> EncodedSummary:
    """Check and tokenise `source` with the tokenizer of `model_dir` into `target`.

    Args:
        model_dir: the base model's folder.
        source: rows, one JSON object a line.
        target: the data set to write.
        enough_tokens: rows after so many are left out; None takes all.

    Raises:
        InvalidInput: rows are wrong; the message names their lines.
        ValueError: the model folder has no usable tokenizer.
    """
    tokenizer = _tokenizer(model_dir)
    limits = dataset.DatasetLimits(enough_tokens=enough_tokens)
    with source.open("rb") as file:
        lines = dataset.bounded_lines(file, limits.max_line_bytes)
        encoded = dataset.encode_file(lines, tokenizer, tokenizer.max_model_len, limits)
    dataset.write(target, encoded)
    return EncodedSummary(
        num_examples=encoded.num_examples,
        num_tokens=encoded.num_tokens,
        num_trained_tokens=encoded.num_trained_tokens,
    )


@lru_cache(maxsize=MAX_TOKENIZERS)
def _tokenizer(model_dir: Path) -> ChatTokenizer:
    return load_tokenizer(model_dir)
