"""A safetensors file of a stranger: its header is read with suspicion, its numbers in chunks.

Eight bytes of length, a JSON header, then all tensors without a gap. Whatever the file claims, a
check holds one header of at most MAX_HEADER_BYTES and one chunk in memory.

Source: github.com/huggingface/safetensors, "Format".
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from scheduler.domain.errors import InvalidInput

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

MAX_HEADER_BYTES = 1 << 20
MAX_TENSORS = 4096
MAX_DIMENSIONS = 4
CHUNK_BYTES = 1 << 20
_LENGTH_BYTES = 8
_PARAM = "adapter_model.safetensors"


@dataclass(frozen=True, slots=True)
class _Dtype:
    """How a number lies in the file; all bits of its exponent set means infinite or NaN."""

    num_bytes: int
    word: str
    exponent: int


_DTYPES = {
    "F32": _Dtype(4, "<u4", 0x7F80_0000),
    "F16": _Dtype(2, "<u2", 0x7C00),
    "BF16": _Dtype(2, "<u2", 0x7F80),
}


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def check_tensor_file(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Refuse a file that is not exactly these tensors, all of finite numbers.

    Raises:
        InvalidInput: with the first thing that is wrong.
    """
    with path.open("rb") as file:
        entries = _read_entries(file, path.stat().st_size)
        _check_names(entries, shapes)
        for entry in entries:
            if entry.shape != shapes[entry.name]:
                raise _refused(
                    f"tensor {entry.name!r} has shape {entry.shape}; configuration and base model "
                    f"ask for {shapes[entry.name]}"
                )
        for entry in entries:
            _check_finite(file, entry)


def _read_entries(file: BinaryIO, file_bytes: int) -> list[_Entry]:
    """The tensors in the order of their bytes; the file stands behind the header."""
    header = _read_header(file, file_bytes)
    if len(header) > MAX_TENSORS:
        raise _refused(f"it holds {len(header)} tensors; at most {MAX_TENSORS} are read")
    entries = sorted(
        (_entry(name, value) for name, value in header.items()), key=lambda entry: entry.start
    )
    end = 0
    for entry in entries:
        if entry.start != end:
            raise _refused(f"tensor {entry.name!r} overlaps another or leaves a gap")
        end = entry.end
    if file.tell() + end != file_bytes:
        raise _refused("its header and its length differ")
    return entries


def _read_header(file: BinaryIO, file_bytes: int) -> dict[str, Any]:
    head = file.read(_LENGTH_BYTES)
    length = int.from_bytes(head, "little")
    if len(head) < _LENGTH_BYTES or not 2 <= length <= file_bytes - _LENGTH_BYTES:
        raise _refused("it is no safetensors file (pickled weights are never read)")
    if length > MAX_HEADER_BYTES:
        raise _refused(f"its header has {length} bytes; at most {MAX_HEADER_BYTES} are read")
    try:
        header = json.loads(file.read(length), object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        raise _refused("its header is not JSON, or names something twice") from None
    if not isinstance(header, dict):
        raise _refused("its header is not a JSON object")
    notes = header.pop("__metadata__", None) or {}
    if not isinstance(notes, dict) or not all(isinstance(note, str) for note in notes.values()):
        raise _refused("its metadata is not a map of strings")
    return header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    read = dict(pairs)
    if len(read) != len(pairs):
        raise ValueError("a key stands twice")
    return read


def _entry(name: str, value: Any) -> _Entry:
    try:
        dtype, shape, (start, end) = value["dtype"], tuple(value["shape"]), value["data_offsets"]
        numbers = (*shape, start, end)
    except (KeyError, TypeError, ValueError):
        raise _refused(f"tensor {name[:128]!r} lacks a dtype, a shape or its offsets") from None
    whole = all(type(number) is int and 0 <= number < 1 << 48 for number in numbers)
    if len(value) != 3 or len(shape) > MAX_DIMENSIONS or not whole:
        raise _refused(f"tensor {name[:128]!r} has an odd entry in the header")
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        known = ", ".join(_DTYPES)
        raise _refused(f"tensor {name[:128]!r} has dtype {str(dtype)[:16]!r}; known are {known}")
    if end - start != math.prod(shape) * _DTYPES[dtype].num_bytes:
        raise _refused(f"tensor {name[:128]!r} has offsets that do not fit its shape")
    return _Entry(name, dtype, shape, start, end)


def _check_names(entries: list[_Entry], shapes: dict[str, tuple[int, ...]]) -> None:
    names = {entry.name for entry in entries}
    missing, extra = sorted(shapes.keys() - names), sorted(names - shapes.keys())
    if missing:
        raise _refused(f"it lacks {len(missing)} tensors, such as {missing[0]!r}")
    if extra:
        raise _refused(f"{len(extra)} tensors have no place, such as {extra[0][:128]!r}")


def _check_finite(file: BinaryIO, entry: _Entry) -> None:
    """Read the tensor, which begins where the file stands."""
    dtype = _DTYPES[entry.dtype]
    left = entry.end - entry.start
    while left:
        chunk = file.read(min(CHUNK_BYTES, left))
        if not chunk:
            raise _refused("it ends too early")
        left -= len(chunk)
        words: NDArray[np.unsignedinteger[Any]] = np.frombuffer(chunk, dtype.word)
        if bool(((words & dtype.exponent) == dtype.exponent).any()):
            raise _refused(f"tensor {entry.name!r} holds NaN or infinite numbers")


def _refused(reason: str) -> InvalidInput:
    return InvalidInput(f"adapter_model.safetensors is refused: {reason}.", param=_PARAM)
