"""Tokenised data sets: what a job trains on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from scheduler.text.tokenizer import ChatTokenizer


@dataclass(frozen=True, slots=True)
class DatasetLimits:
    """Bounds on an uploaded data set."""

    max_line_bytes: int = 1 << 20
    max_lines: int = 5_000_000
    max_depth: int = 32
    max_messages: int = 512
    max_total_tokens: int = 200_000_000
    max_reported_lines: int = 10


@dataclass(frozen=True, slots=True)
class EncodedDataset:
    """Ragged token ids with the weight of predicting each; `weights` of a first token is 0."""

    offsets: NDArray[np.int64]
    token_ids: NDArray[np.int32]
    weights: NDArray[np.float32]

    @property
    def num_examples(self) -> int:
        """How many examples there are."""
        return len(self.offsets) - 1

    @property
    def num_tokens(self) -> int:
        """Tokens of all examples, trained or not."""
        return int(self.offsets[-1])

    def example(self, i: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Token ids and weights of example `i`, as views."""
        span = slice(int(self.offsets[i]), int(self.offsets[i + 1]))
        return self.token_ids[span], self.weights[span]


def bounded_lines(stream: BinaryIO, max_line_bytes: int) -> Iterator[bytes]:
    """Lines of a file; an overlong one comes cut (one byte over), never whole into memory."""
    raise NotImplementedError


def encode_file(
    lines: Iterable[bytes],
    tokenizer: ChatTokenizer,
    max_tokens: int,
    limits: DatasetLimits | None = None,
) -> EncodedDataset:
    """JSONL rows to tokens and weights. Raises InvalidInput naming the lines."""
    raise NotImplementedError


def write(path: Path, dataset: EncodedDataset) -> None:
    """Write the binary form."""
    raise NotImplementedError


def read(path: Path) -> EncodedDataset:
    """Map a written data set into memory. Raises ValueError if it is damaged."""
    raise NotImplementedError
