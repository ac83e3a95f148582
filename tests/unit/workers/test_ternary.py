"""Products of ternary adapters by counting bits are those of the dense ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from workers.rice import SparseSigns
from workers.ternary import ScaledSigns, TernaryParams, TernaryVector


def random_signs(size: int, seed: int, density: float = 0.4) -> NDArray[np.int8]:
    rng = np.random.default_rng(seed)
    kept = rng.random(size) < density
    return (kept * rng.choice([-1, 1], size)).astype(np.int8)


def vector(signs: NDArray[np.int8]) -> TernaryVector:
    positions = np.flatnonzero(signs)
    return TernaryVector.of(SparseSigns(positions, signs[positions] < 0), len(signs))


@given(size=st.integers(0, 400), seed=st.integers(0, 2**31))
def test_counts_and_products_are_the_dense_ones(size: int, seed: int) -> None:
    a, b = random_signs(size, seed), random_signs(size, seed + 1)

    assert np.array_equal(vector(a).dense(), a)
    assert vector(a).num_nonzero == np.count_nonzero(a)
    assert vector(a).dot(vector(b)) == int(a.astype(int) @ b.astype(int))
    assert vector(a).num_conflicts(vector(b)) == np.count_nonzero(a * b == -1)
    sparse = vector(a).sparse()
    assert np.array_equal(sparse.positions, np.flatnonzero(a))
    assert np.array_equal(sparse.is_negative, a[a != 0] < 0)


def test_memory_is_two_bits_an_entry() -> None:
    assert vector(random_signs(64_000, 0)).num_bytes == 2 * 64_000 // 8


def params(seed: int, scales: tuple[float, float]) -> tuple[TernaryParams, NDArray[np.float64]]:
    """An adapter of two groups, and its dense change."""
    signs = [random_signs(1000, seed), random_signs(700, seed + 100)]
    pairs = list(zip(scales, signs, strict=True))
    groups = {f"g{i}": ScaledSigns(s, vector(x)) for i, (s, x) in enumerate(pairs)}
    return TernaryParams(groups), np.concatenate([s * x for s, x in pairs])


def test_the_similarity_of_adapters_is_the_dense_cosine() -> None:
    (a, dense_a), (b, dense_b) = params(1, (0.5, 2.0)), params(2, (0.25, 3.0))

    assert a.dot(b) == pytest.approx(dense_a @ dense_b)
    assert a.norm() == pytest.approx(np.linalg.norm(dense_a))
    cosine = dense_a @ dense_b / math.sqrt((dense_a @ dense_a) * (dense_b @ dense_b))
    assert a.cosine(b) == pytest.approx(cosine)
    assert a.cosine(a) == pytest.approx(1)


def test_an_adapter_that_changes_nothing_resembles_none() -> None:
    empty = TernaryParams({"g0": ScaledSigns(0.0, vector(np.zeros(8, np.int8)))})

    assert empty.cosine(empty) == 0


def test_shapes_that_differ_have_no_product() -> None:
    a, _ = params(1, (1, 1))

    with pytest.raises(ValueError, match="no product"):
        vector(random_signs(8, 0)).dot(vector(random_signs(9, 0)))
    with pytest.raises(ValueError, match="no product"):
        a.dot(TernaryParams({}))
