"""Groupwise integers: runs of numbers that share one float16 scale, symmetric about zero.

A tensor is all its scales, then all its integers: one to a byte, or two (low half first) at 4 bits.
No group reaches into the next tensor: B's numbers would drown in a scale of A's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from scheduler.domain.errors import InvalidInput
from workers.codec import Floats, Shapes, flatten
from workers.peft_method import Params


@dataclass(frozen=True, slots=True)
class GroupwiseCode:
    """A code of `bits` (4 or 8) for each number and 16 for each group of `group_size`."""

    bits: int
    group_size: int

    @property
    def peak(self) -> int:
        """Largest integer; the smallest is its negative."""
        return int(2 ** (self.bits - 1)) - 1

    def num_groups(self, size: int) -> int:
        """Groups of `size` numbers; the last may be short."""
        return -(-size // self.group_size)

    def num_bytes(self, shapes: Shapes) -> int:
        """Exact length of a payload."""
        return sum(self._tensor_bytes(math.prod(shape)) for shape in shapes.values())

    def encode_all(self, params: Params) -> bytes:
        """Tensors by name.

        Raises:
            InvalidInput: a number is not finite, or a scale is too large for float16.
        """
        return b"".join(self.encode(flatten(params, [name])) for name in sorted(params))

    def decode_all(self, payload: bytes, shapes: Shapes) -> Params:
        """Undo `encode_all`, up to rounding.

        Raises:
            InvalidInput: see `decode`; or the payload has another length.
        """
        if len(payload) != self.num_bytes(shapes):
            raise InvalidInput(
                f"The payload has {len(payload)} bytes, not {self.num_bytes(shapes)}."
            )
        params, rest = {}, memoryview(payload)
        for name in sorted(shapes):
            size = math.prod(shapes[name])
            length = self._tensor_bytes(size)
            values = self.decode(rest[:length], size)
            params[name] = torch.from_numpy(values).view(shapes[name])
            rest = rest[length:]
        return params

    def _tensor_bytes(self, size: int) -> int:
        return 2 * self.num_groups(size) + -(-size * self.bits // 8)

    def encode(self, values: Floats) -> bytes:
        """Round each number to the nearest multiple of its group's scale.

        Raises:
            InvalidInput: a scale is too large for float16.
        """
        scale, padded = self._scales(values)
        with np.errstate(over="ignore"):
            stored = scale.astype("<f2")
        if not np.isfinite(stored).all():
            raise InvalidInput("The adapter holds a number too large for this codec.")
        divisor = np.where(stored > 0, stored, np.inf).astype(np.float32)
        steps = np.rint(padded / divisor[:, None]).clip(-self.peak, self.peak).astype(np.int8)
        return stored.tobytes() + self._pack(steps.reshape(-1)[: len(values)])

    def decode(self, payload: memoryview, size: int) -> Floats:
        """Multiply out.

        Raises:
            InvalidInput: a scale that is negative or not finite, or an unused integer.
        """
        scale = np.frombuffer(payload, "<f2", self.num_groups(size)).astype(np.float32)
        if not (np.isfinite(scale) & (scale >= 0)).all():
            raise InvalidInput("The payload holds a scale that is negative or not finite.")
        steps = self._unpack(np.frombuffer(payload, np.uint8)[2 * len(scale) :], size)
        if size and steps.min() < -self.peak:
            raise InvalidInput("The payload holds an integer that this codec never writes.")
        values: Floats = steps * np.repeat(scale, self.group_size)[:size]
        return values

    def _scales(self, values: Floats) -> tuple[Floats, Floats]:
        """(groups,) largest magnitude over `peak`, and the numbers as (groups, group_size)."""
        groups = self.num_groups(len(values))
        padded = np.zeros((groups, self.group_size), np.float32)
        padded.reshape(-1)[: len(values)] = values
        return np.abs(padded).max(axis=1, initial=0) / np.float32(self.peak), padded

    def _pack(self, steps: NDArray[np.int8]) -> bytes:
        if self.bits == 8:
            return steps.tobytes()
        codes = np.zeros(-(-len(steps) // 2) * 2, np.uint8)
        codes[: len(steps)] = steps + 8
        return (codes[0::2] | codes[1::2] << 4).tobytes()

    def _unpack(self, packed: NDArray[np.uint8], size: int) -> NDArray[np.int8]:
        if self.bits == 8:
            return packed.view(np.int8)
        halves = np.stack([packed & 15, packed >> 4], axis=1).reshape(-1)
        if (halves[size:] != 0).any():
            raise InvalidInput("The payload does not end with a zero half byte.")
        return halves[:size].astype(np.int8) - np.int8(8)
