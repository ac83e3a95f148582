"""Tokenised data sets: what a job trains on, and the file that carries it to the worker.

File: 32 bytes of header (magic, number of examples, number of tokens, CRC-32 of the rest), then
offsets int64[num_examples + 1], token ids int32[num_tokens], weights float32[num_tokens], all
little-endian and aligned, so that a reader maps them into memory as they are.
"""

from __future__ import annotations

import os
import struct
import zlib
from array import array
from codecs import BOM_UTF8
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from scheduler.domain.errors import InvalidInput
from scheduler.text.masks import MaskedTokens, mask_chat, mask_pair
from scheduler.text.rows import ChatRow, parse_row

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from scheduler.text.tokenizer import ChatTokenizer

_MAGIC = b"TNDMDS01"
_HEADER = struct.Struct("<8sQQII")
_CRC_CHUNK_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class DatasetLimits:
    """Bounds on an uploaded data set.

    Attributes:
        enough_tokens: rows after so many are neither read nor checked; None where all count.
    """

    max_line_bytes: int = 1 << 20
    max_lines: int = 5_000_000
    max_depth: int = 32
    max_messages: int = 512
    max_total_tokens: int = 200_000_000
    max_reported_lines: int = 10
    enough_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class EncodedDataset:
    """Examples of different lengths, end to end.

    Attributes:
        offsets: (num_examples + 1,) int64; example i is [offsets[i], offsets[i + 1]).
        token_ids: (num_tokens,) int32.
        weights: (num_tokens,) float32, of predicting each token; 0 at the first of an example.
        num_last_turn_only: examples of which only the last answer is learnt, because the chat
            template rewrites earlier ones. Known after encoding, not stored.
    """

    offsets: NDArray[np.int64]
    token_ids: NDArray[np.int32]
    weights: NDArray[np.float32]
    num_last_turn_only: int = 0

    @property
    def num_examples(self) -> int:
        """How many examples there are."""
        return len(self.offsets) - 1

    @property
    def num_tokens(self) -> int:
        """Tokens of all examples, learnt or not."""
        return len(self.token_ids)

    @property
    def num_trained_tokens(self) -> int:
        """Tokens that are learnt."""
        return int(np.count_nonzero(self.weights))

    def example(self, i: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Token ids and weights of example `i`, as views."""
        span = slice(int(self.offsets[i]), int(self.offsets[i + 1]))
        return self.token_ids[span], self.weights[span]


def bounded_lines(stream: BinaryIO, max_line_bytes: int) -> Iterator[bytes]:
    """Lines of a file; an overlong one comes cut just over the limit, never whole into memory."""
    limit = max_line_bytes + 2  # room for the line end, and one byte to be seen as overlong
    while line := stream.readline(limit):
        yield line
        rest = line
        while len(rest) == limit and not rest.endswith(b"\n"):
            rest = stream.readline(limit)


def filled_lines(lines: Iterable[bytes], max_lines: int) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, each with its number from 1; a mark of the encoding is dropped.

    Raises:
        InvalidInput: there are more than `max_lines`, blank ones too.
    """
    for number, line in enumerate(lines, start=1):
        if number > max_lines:
            raise InvalidInput(f"The file may have at most {max_lines} lines.")
        text = line.removeprefix(BOM_UTF8) if number == 1 else line
        if text.strip():
            yield number, text


def encode_file(
    lines: Iterable[bytes],
    tokenizer: ChatTokenizer,
    max_tokens: int,
    limits: DatasetLimits | None = None,
) -> EncodedDataset:
    """JSONL rows to tokens and weights; blank lines are passed over.

    Args:
        lines: the file's lines (see `bounded_lines`).
        tokenizer: the base model's.
        max_tokens: longest example that the model can train on.
        limits: bounds on the file.

    Raises:
        InvalidInput: names up to `max_reported_lines` offending lines and what each lacks.
    """
    bounds = limits or DatasetLimits()
    encoder = _Encoder()
    problems: list[str] = []
    for number, text in filled_lines(lines, bounds.max_lines):
        try:
            encoder.add(_encode_row(text, tokenizer, max_tokens, bounds))
        except InvalidInput as error:
            problems.append(f"line {number}: {error.message.rstrip('.')}")
        if len(problems) >= bounds.max_reported_lines:
            problems.append("lines after that were not checked")
            break
        if encoder.num_tokens > bounds.max_total_tokens:
            raise InvalidInput(f"The file may have at most {bounds.max_total_tokens} tokens.")
        if bounds.enough_tokens is not None and encoder.num_tokens >= bounds.enough_tokens:
            break
    if problems:
        raise InvalidInput("; ".join(problems) + ".")
    if encoder.is_empty:
        raise InvalidInput("The file has no rows; it must have at least one example.")
    return encoder.finish()


def write(path: Path, dataset: EncodedDataset) -> None:
    """Write a data set; `path` appears only when the file is complete."""
    parts = [
        np.ascontiguousarray(dataset.offsets, "<i8"),
        np.ascontiguousarray(dataset.token_ids, "<i4"),
        np.ascontiguousarray(dataset.weights, "<f4"),
    ]
    crc = 0
    for part in parts:
        crc = zlib.crc32(part.data.cast("B"), crc) if part.size else crc
    unfinished = path.with_name(path.name + ".part")
    with unfinished.open("wb") as file:
        file.write(_HEADER.pack(_MAGIC, dataset.num_examples, dataset.num_tokens, crc, 0))
        for part in parts:
            file.write(part.tobytes() if part.nbytes < _CRC_CHUNK_BYTES else part.data)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def read(path: Path) -> EncodedDataset:
    """Map a written data set into memory, read-only.

    Raises:
        ValueError: the file is damaged, cut short, or none of ours.
    """
    with path.open("rb") as file:
        header = file.read(_HEADER.size)
    if len(header) < _HEADER.size or not header.startswith(_MAGIC):
        raise ValueError(f"{path.name} is not a tokenised data set.")
    _, num_examples, num_tokens, crc, _ = _HEADER.unpack(header)
    size = _HEADER.size + 8 * (num_examples + 1) + 8 * num_tokens
    if path.stat().st_size != size:
        raise ValueError(f"{path.name} must have {size} bytes; it has {path.stat().st_size}.")
    body = np.memmap(path, np.uint8, mode="r", offset=_HEADER.size)
    if _crc_of(body) != crc:
        raise ValueError(f"{path.name} is damaged: its checksum does not fit.")
    first, second = 8 * (num_examples + 1), 8 * (num_examples + 1) + 4 * num_tokens
    return EncodedDataset(
        offsets=body[:first].view("<i8"),
        token_ids=body[first:second].view("<i4"),
        weights=body[second:].view("<f4"),
    )


class _Encoder:
    """Collects examples in flat arrays: four bytes a number, not a Python object each."""

    def __init__(self) -> None:
        self._offsets = array("q", [0])
        self._token_ids = array("i")
        self._weights = array("f")
        self._num_last_turn_only = 0

    @property
    def num_tokens(self) -> int:
        return len(self._token_ids)

    @property
    def is_empty(self) -> bool:
        return len(self._offsets) == 1

    def add(self, example: MaskedTokens) -> None:
        self._token_ids.extend(example.token_ids)
        self._weights.extend(example.weights)
        self._offsets.append(len(self._token_ids))
        self._num_last_turn_only += example.last_turn_only

    def finish(self) -> EncodedDataset:
        return EncodedDataset(
            offsets=np.frombuffer(self._offsets, np.int64),
            token_ids=np.frombuffer(self._token_ids, np.int32),
            weights=np.frombuffer(self._weights, np.float32),
            num_last_turn_only=self._num_last_turn_only,
        )


def _encode_row(
    line: bytes, tokenizer: ChatTokenizer, max_tokens: int, limits: DatasetLimits
) -> MaskedTokens:
    row = parse_row(
        line,
        max_line_bytes=limits.max_line_bytes,
        max_depth=limits.max_depth,
        max_messages=limits.max_messages,
    )
    example = mask_chat(row, tokenizer) if isinstance(row, ChatRow) else mask_pair(row, tokenizer)
    check_example(example.token_ids, len(example.trained), max_tokens)
    return example


def check_example(token_ids: Sequence[int], num_trained: int, max_tokens: int) -> None:
    """Refuse an example of which nothing is learnt, or that does not fit the model's context.

    Raises:
        InvalidInput: one sentence, without the line.
    """
    if num_trained == 0:
        raise InvalidInput("no token is trained; the answer must have at least one.")
    if len(token_ids) > max_tokens:
        raise InvalidInput(f"{len(token_ids)} tokens; the model's context holds {max_tokens}.")


def _crc_of(body: NDArray[np.uint8]) -> int:
    crc = 0
    for start in range(0, len(body), _CRC_CHUNK_BYTES):
        crc = zlib.crc32(body[start : start + _CRC_CHUNK_BYTES].data, crc)
    return crc
