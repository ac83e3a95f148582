"""Rice coding: what goes in comes out, close to the entropy; anything else is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.domain.errors import InvalidInput
from workers import rice
from workers.rice import SparseSigns

NEAR_BOUND = 1.05  # a file may be 5 % over the entropy


def draw(sizes: list[int], densities: list[float], seed: int) -> SparseSigns:
    rng = np.random.default_rng(seed)
    masks = [rng.random(n) < k for n, k in zip(sizes, densities, strict=True)]
    positions = np.flatnonzero(np.concatenate(masks) if masks else np.zeros(0))
    return SparseSigns(positions, rng.random(len(positions)) < 0.5)


segments = st.lists(
    st.tuples(st.integers(0, 300), st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0])), max_size=6
)


@given(segments=segments, seed=st.integers(0, 2**32 - 1))
def test_decoded_signs_are_the_encoded_ones(segments: list[tuple[int, float]], seed: int) -> None:
    sizes = np.array([size for size, _ in segments], np.int64)
    signs = draw([n for n, _ in segments], [k for _, k in segments], seed)

    coded = rice.encode(signs, sizes)
    decoded = rice.decode(coded, sizes)

    assert np.array_equal(decoded.positions, signs.positions)
    assert np.array_equal(decoded.is_negative, signs.is_negative)
    assert len(coded) <= rice.max_bytes(sizes)


@pytest.mark.parametrize("density", [0.01, 0.05, 0.1, 0.2, 0.3, 0.5])
def test_the_size_is_within_five_percent_of_the_entropy(density: float) -> None:
    sizes = np.array([65_536] * 16)
    signs = draw(sizes.tolist(), [density] * 16, 0)

    bits = 8 * len(rice.encode(signs, sizes))

    bound = rice.entropy_bits(len(signs.positions), int(sizes.sum()))
    assert bound < bits < NEAR_BOUND * bound


def test_segments_of_other_densities_get_other_parameters() -> None:
    sizes = np.array([65_536, 65_536])
    signs = draw(sizes.tolist(), [0.01, 0.4], 0)

    bits = 8 * len(rice.encode(signs, sizes))

    halves = [np.count_nonzero((signs.positions < 65_536) == first) for first in (True, False)]
    assert bits < NEAR_BOUND * sum(rice.entropy_bits(n, 65_536) for n in halves)


def test_the_entropy_is_that_of_the_formula() -> None:
    assert rice.entropy_bits(50, 1000) == pytest.approx(336.4, abs=0.1)  # 0.3364 bits a place
    assert rice.entropy_bits(0, 1000) == 0
    assert rice.entropy_bits(1000, 1000) == 1000  # the signs alone


@given(cut=st.integers(1, 200), tail=st.binary(min_size=1, max_size=9))
def test_a_code_cut_or_lengthened_is_refused(cut: int, tail: bytes) -> None:
    sizes = np.array([500, 700])
    coded = rice.encode(draw([500, 700], [0.2, 0.1], 3), sizes)

    with pytest.raises(InvalidInput):
        rice.decode(coded[:-cut], sizes)
    with pytest.raises(InvalidInput):
        rice.decode(coded + tail, sizes)


@given(place=st.integers(0, 10_000), value=st.integers(0, 255))
def test_an_altered_code_is_refused_or_has_signs_inside_every_segment(
    place: int, value: int
) -> None:
    sizes = np.array([500, 700])
    coded = bytearray(rice.encode(draw([500, 700], [0.2, 0.1], 3), sizes))
    coded[place % len(coded)] = value

    try:
        signs = rice.decode(bytes(coded), sizes)
    except InvalidInput:
        return
    assert (np.diff(signs.positions) > 0).all()
    assert signs.positions[0] >= 0
    assert signs.positions[-1] < 1200
    assert rice.encode(signs, sizes) == bytes(coded) or place % len(coded) in (4, 5)  # another b


@pytest.mark.parametrize("content", [b"", b"\xff" * 3, b"\xff" * 4000, b"\x00" * 7])
def test_other_bytes_are_refused(content: bytes) -> None:
    with pytest.raises(InvalidInput):
        rice.decode(content, np.array([500, 700]))


def test_a_gap_that_would_overflow_is_refused() -> None:
    counts, parameters = np.array([2], "<u4").tobytes(), bytes([rice.MAX_PARAMETER])
    remainders = b"\xff" * (2 * rice.MAX_PARAMETER // 8)
    unary = b"\x00" * 5000 + b"\x03"

    with pytest.raises(InvalidInput, match="outside"):
        rice.decode(counts + parameters + b"\x00" + remainders + unary, np.array([1 << 17]))
