"""Rice coding of sparse signs: which entries of some segments are not zero, and which are negative.

The gap before each entry is written as a quotient by 2^b in unary and a remainder in b bits, with
a b of its own for each segment. The three kinds of bits lie apart, so that every step of decoding
is one numpy operation over the whole adapter: all signs, all remainders (by ascending b), and last
all quotients, each as that many zeros and a one.

    counts uint16 or uint32[segments] | b uint8[segments] | signs | remainders | quotients

Each stream of bits is padded with zeros to a byte. A file has one valid spelling only: lengths,
padding and ranges are all checked.

Source: Golomb 1966; Rice & Plaunt 1971. The use for adapters: ComPEFT, arXiv:2311.13171.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scheduler.domain.errors import InvalidInput

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]
MAX_PARAMETER = 24  # gaps up to 2^24 with no quotient; segments are rarely larger


@dataclass(frozen=True, slots=True)
class SparseSigns:
    """Entries of +1 and -1 in a long vector of zeros.

    Attributes:
        positions: ascending.
        is_negative: one flag for each position.
    """

    positions: Ints
    is_negative: NDArray[np.bool_]


def entropy_bits(num_nonzero: int, size: int) -> float:
    """Least bits for signs of equal odds at `num_nonzero` of `size` places, in any order."""
    density = num_nonzero / max(size, 1)
    if density in (0.0, 1.0):
        return float(num_nonzero)
    sparse = 1 - density
    return size * (-sparse * math.log2(sparse) - density * math.log2(density) + density)


def max_bytes(sizes: Ints) -> int:
    """With b = 0 the places and the signs cost at most a bit for each entry; the b chosen, less."""
    total = int(sizes.sum())
    return len(sizes) * (_count_type(sizes).itemsize + 1) + total // 4 + 3


def encode(signs: SparseSigns, sizes: Ints) -> bytes:
    """Code the signs of segments of these sizes, which lie end to end."""
    ends = np.cumsum(sizes)
    segment = np.searchsorted(ends, signs.positions, side="right")
    counts = np.bincount(segment, minlength=len(sizes)).astype(np.int64)
    gaps = _gaps(signs.positions, counts, ends - sizes)
    parameters = _best_parameters(gaps, counts)
    parameter = np.repeat(parameters, counts)
    quotients = gaps >> parameter
    unary = np.zeros(int(quotients.sum()) + len(gaps), np.uint8)
    unary[np.cumsum(quotients + 1) - 1] = 1
    return b"".join(
        (
            counts.astype(_count_type(sizes)).tobytes(),
            parameters.astype(np.uint8).tobytes(),
            np.packbits(signs.is_negative).tobytes(),
            np.packbits(_remainder_bits(gaps, parameter)).tobytes(),
            np.packbits(unary).tobytes(),
        )
    )


def decode(coded: bytes, sizes: Ints) -> SparseSigns:
    """Undo `encode`.

    Raises:
        InvalidInput: not what `encode` writes for segments of these sizes.
    """
    reader = _Reader(np.frombuffer(coded, np.uint8))
    count_type = _count_type(sizes)
    counts = reader.take(len(sizes) * count_type.itemsize).view(count_type).astype(np.int64)
    parameters = reader.take(len(sizes)).astype(np.int64)
    if (counts > sizes).any() or (parameters > MAX_PARAMETER).any():
        raise InvalidInput("The archive counts more entries than the adapter has.")
    total = int(counts.sum())
    is_negative = reader.bits(total).view(np.bool_)
    parameter = np.repeat(parameters, counts)
    remainders = _remainders(reader.bits(int(parameter.sum())), parameter)
    reach = _quotients_so_far(reader.rest(), total)
    reach -= np.repeat(_before(reach, counts), counts)
    reach <<= parameter
    return SparseSigns(_positions(reach, remainders, counts, sizes), is_negative)


def _count_type(sizes: Ints) -> np.dtype[np.unsignedinteger]:
    return np.dtype("<u2" if sizes.max(initial=0) < 1 << 16 else "<u4")


def _gaps(positions: Ints, counts: Ints, starts: Ints) -> Ints:
    """Zeros before each entry, counted from the entry before it in its segment."""
    before = np.concatenate(([-1], positions[:-1])) if len(positions) else positions
    firsts = (np.cumsum(counts) - counts)[counts > 0]
    before[firsts] = starts[counts > 0] - 1
    gaps: Ints = positions - before - 1
    return gaps


def _positions(reach: Ints, remainders: Ints, counts: Ints, sizes: Ints) -> Ints:
    """Undo `_gaps`, with each entry held inside its segment.

    Args:
        reach: quotients times 2^b, summed up to each entry within its segment; overwritten.
        remainders: of each entry; overwritten.
        counts: entries of each segment.
        sizes: places of each segment.
    """
    remainders += 1
    walked = np.cumsum(remainders, out=remainders)
    reach += walked
    starts = np.cumsum(sizes) - sizes
    reach -= np.repeat(_before(walked, counts), counts)
    lasts = np.cumsum(counts)[counts > 0] - 1
    if (reach[lasts] > sizes[counts > 0]).any():
        raise InvalidInput("The archive places an entry outside its tensor.")
    reach += np.repeat(starts - 1, counts)
    return reach


def _before(running: Ints, counts: Ints) -> Ints:
    """A running sum where each segment begins."""
    firsts = np.cumsum(counts) - counts
    before: Ints = np.concatenate(([0], running))[firsts]
    return before


def _best_parameters(gaps: Ints, counts: Ints) -> Ints:
    """The b of least bits for each segment, among 0 and three around its mean gap."""
    mean = _segment_sums(gaps, counts) / np.maximum(counts, 1)
    guess = np.log2(np.maximum(mean * math.log(2), 1)).astype(np.int64)
    around = np.clip(guess + np.array([[-1], [0], [1]]), 0, MAX_PARAMETER)
    tried = np.concatenate((np.zeros_like(around[:1]), around))
    bits = [_segment_sums(gaps >> np.repeat(b, counts), counts) + counts * b for b in tried]
    best: Ints = np.take_along_axis(tried, np.argmin(bits, axis=0)[None], axis=0)[0]
    return best


def _segment_sums(values: Ints, counts: Ints) -> Ints:
    ran = np.concatenate(([0], np.cumsum(values)))
    stops = np.cumsum(counts)
    sums: Ints = ran[stops] - ran[stops - counts]
    return sums


def _remainder_bits(gaps: Ints, parameter: Ints) -> Bytes:
    """The low b bits of each gap, high bit first: entries of b = 1, then of b = 2 and so on."""
    parts = [np.zeros(0, np.uint8)]
    for b in np.unique(parameter[parameter > 0]):
        places = np.arange(int(b) - 1, -1, -1)
        parts.append(((gaps[parameter == b][:, None] >> places) & 1).astype(np.uint8).reshape(-1))
    return np.concatenate(parts)


def _remainders(bits: Bytes, parameter: Ints) -> Ints:
    remainders = np.zeros(len(parameter), np.int64)
    start = 0
    for b in np.flatnonzero(np.bincount(parameter)[1:]) + 1:
        chosen = parameter == b
        stop = start + int(b) * int(np.count_nonzero(chosen))
        value = np.zeros((stop - start) // int(b), np.int64)
        for place, column in enumerate(bits[start:stop].reshape(-1, int(b)).T):
            value |= column.astype(np.int64) << (int(b) - 1 - place)
        remainders[chosen] = value
        start = stop
    return remainders


def _quotients_so_far(packed: Bytes, count: int) -> Ints:
    """Zeros before each of `count` ones, all told; nothing may follow the byte of the last."""
    ones = np.flatnonzero(np.unpackbits(packed))
    if len(ones) != count or len(packed) != (ones[-1] // 8 + 1 if count else 0):
        raise InvalidInput("The archive is torn: its positions end too early or too late.")
    ones -= np.arange(count)
    return ones


class _Reader:
    """Takes parts off the front of some bytes."""

    def __init__(self, content: Bytes) -> None:
        self._content = content

    def take(self, count: int) -> Bytes:
        """The next `count` bytes.

        Raises:
            InvalidInput: there are not so many.
        """
        if count > len(self._content):
            raise InvalidInput("The archive is torn: it ends too early.")
        taken, self._content = self._content[:count], self._content[count:]
        return taken.copy() if count else taken  # aligned for wider types

    def bits(self, count: int) -> Bytes:
        """The next `count` bits and their padding, as zeros and ones."""
        bits = np.unpackbits(self.take(-(-count // 8)))
        if bits[count:].any():
            raise InvalidInput("The archive is torn: its padding is not zero.")
        return bits[:count]

    def rest(self) -> Bytes:
        """All that is left."""
        return self._content
