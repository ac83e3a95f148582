"""Adapters as {-1, 0, +1} times a scale, kept as two bitmaps: 2 bits a number in host memory.

Products of two such adapters need no floats: with P and N the bitmaps of plus and minus ones,
    dot(a, b) = |Pa & Pb| + |Na & Nb| - |Pa & Nb| - |Na & Pb|
where |.| counts bits.  Source: Yadav et al. 2023, arXiv:2311.13171, section 2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workers.rice import SparseSigns

Words = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class TernaryVector:
    """`size` signs; bit i % 64 of word i // 64 (little-endian) is entry i.

    Attributes:
        positive: bits of the entries that are +1.
        negative: bits of the entries that are -1; never set where `positive` is.
    """

    positive: Words
    negative: Words
    size: int

    @classmethod
    def of(cls, signs: SparseSigns, size: int) -> TernaryVector:
        """Bitmaps of sparse signs."""
        return cls(
            _bitmap(signs.positions[~signs.is_negative], size),
            _bitmap(signs.positions[signs.is_negative], size),
            size,
        )

    @property
    def num_bytes(self) -> int:
        """Memory of the two bitmaps."""
        return self.positive.nbytes + self.negative.nbytes

    @property
    def num_nonzero(self) -> int:
        """Entries that are not zero."""
        return _count(self.positive) + _count(self.negative)

    def dense(self) -> NDArray[np.int8]:
        """(size,) of -1, 0 and 1."""
        return _bits(self.positive, self.size) - _bits(self.negative, self.size)

    def sparse(self) -> SparseSigns:
        """Where the entries are, and which are negative."""
        positions = np.flatnonzero(_bits(self.positive | self.negative, self.size))
        return SparseSigns(positions, _bits(self.negative, self.size)[positions] == 1)

    def dot(self, other: TernaryVector) -> int:
        """Sum of the products of entries.

        Raises:
            ValueError: the sizes differ.
        """
        agreeing = _count(self.positive & other.positive) + _count(self.negative & other.negative)
        return agreeing - self.num_conflicts(other)

    def num_conflicts(self, other: TernaryVector) -> int:
        """Entries where one is +1 and the other -1.

        Raises:
            ValueError: the sizes differ.
        """
        if self.size != other.size:
            raise ValueError(f"Vectors of {self.size} and {other.size} entries have no product.")
        return _count((self.positive & other.negative) | (self.negative & other.positive))


@dataclass(frozen=True, slots=True)
class ScaledSigns:
    """Tensors that share a scale, end to end in the order of their names."""

    scale: float
    signs: TernaryVector


@dataclass(frozen=True, slots=True)
class TernaryParams:
    """What an adapter adds to its initial value, by group of tensors."""

    groups: Mapping[str, ScaledSigns]

    @property
    def num_bytes(self) -> int:
        """Memory of all bitmaps."""
        return sum(group.signs.num_bytes for group in self.groups.values())

    @property
    def num_nonzero(self) -> int:
        """Entries that are not zero, in all groups."""
        return sum(group.signs.num_nonzero for group in self.groups.values())

    def dot(self, other: TernaryParams) -> float:
        """Inner product of the two changes.

        Raises:
            ValueError: the adapters are not of one shape.
        """
        if self.groups.keys() != other.groups.keys():
            raise ValueError("Adapters with different groups of tensors have no product.")
        pairs = [(self.groups[name], other.groups[name]) for name in sorted(self.groups)]
        return math.fsum(a.scale * b.scale * a.signs.dot(b.signs) for a, b in pairs)

    def norm(self) -> float:
        """Euclidean length of the change."""
        squares = [g.scale**2 * g.signs.num_nonzero for g in self.groups.values()]
        return math.sqrt(math.fsum(squares))

    def cosine(self, other: TernaryParams) -> float:
        """Similarity in [-1, 1] of two adapters of one shape; 0 if either changes nothing.

        Raises:
            ValueError: the adapters are not of one shape.
        """
        length = self.norm() * other.norm()
        return self.dot(other) / length if length else 0.0


def _bitmap(positions: NDArray[np.int64], size: int) -> Words:
    bits = np.zeros(-(-size // 64) * 64, np.uint8)
    bits[positions] = 1
    return np.packbits(bits, bitorder="little").view("<u8")


def _bits(words: Words, size: int) -> NDArray[np.int8]:
    return np.unpackbits(words.view(np.uint8), count=size, bitorder="little").view(np.int8)


def _count(words: Words) -> int:
    return int(np.bitwise_count(words).sum(dtype=np.int64))
