"""What KV policies ask of the C++ kernels equals its slow specification, in float32 and in bf16."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from workers.kernels import reference
from workers.kernels.cpu_compression import CpuCompression, cpu_compression_for
from workers.kernels.native import cpu_flags

SEEDS = st.integers(0, 2**32 - 1)
SOME = settings(max_examples=25, deadline=None)
DTYPES = [torch.float32]
if "avx512_bf16" in cpu_flags():
    DTYPES.append(torch.bfloat16)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


def rand(seed: int, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def kernels(x: Tensor) -> CpuCompression:
    found = cpu_compression_for(x)
    assert found is not None
    return found


@each_dtype
@given(
    seed=SEEDS,
    num_tokens=st.integers(1, 150),
    kv_heads=st.integers(1, 2),
    group=st.integers(1, 3),
    half=st.integers(1, 20),
    are_counted=st.booleans(),
    data=st.data(),
)
@SOME
def test_a_key_gets_the_attention_of_queries_anywhere_after_it(
    dtype: torch.dtype,
    seed: int,
    num_tokens: int,
    kv_heads: int,
    group: int,
    half: int,
    are_counted: bool,
    data: st.DataObject,
) -> None:
    positions = data.draw(st.lists(st.integers(0, num_tokens - 1), min_size=1, max_size=150))
    queries = 2 * rand(seed, dtype, kv_heads * group, len(positions), 2 * half)
    keys = rand(seed + 1, dtype, kv_heads, num_tokens + 3, 2 * half)[:, :num_tokens]

    log_counts = None
    if are_counted:
        log_counts = 2 * rand(seed + 2, torch.float32, kv_heads, num_tokens)
        log_counts[:, 1:][log_counts[:, 1:] < -2] = -torch.inf  # padding; some key is always seen

    sums = kernels(keys).column_sums(queries, keys, torch.tensor(positions), log_counts)

    wide_q, wide_k = queries.double().transpose(0, 1), keys.double().transpose(0, 1)
    expected = torch.zeros(kv_heads, num_tokens, dtype=torch.float64)
    for query, position in zip(wide_q, positions, strict=True):
        expected += reference.column_sums(query[None], wide_k, position, None, log_counts)
    by_kv_head = sums.double().view(kv_heads, group, num_tokens).sum(1)
    torch.testing.assert_close(by_kv_head, expected, rtol=1e-4, atol=1e-5)


@each_dtype
@given(
    seed=SEEDS,
    num_rows=st.integers(0, 140),
    num_centres=st.integers(1, 140),
    half=st.integers(1, 20),
    floor=st.sampled_from([0.0, 0.05, 0.6]),
)
@SOME
def test_a_token_finds_the_centre_that_it_is_most_like(
    dtype: torch.dtype, seed: int, num_rows: int, num_centres: int, half: int, floor: float
) -> None:
    keys, values = rand(seed, dtype, 2, 2, num_rows, 2 * half)
    centre_keys, centre_values = rand(seed + 1, dtype, 2, 2, num_centres, 2 * half)

    slots, likeness = kernels(keys).likest_centres(
        (keys, values), (centre_keys, centre_values), floor
    )

    for head in range(2):
        centres = centre_keys[head].double(), centre_values[head].double()
        for row in range(0, num_rows, 17):
            pair = keys[head, row].double(), values[head, row].double()
            slot, best = reference.likest_centre(*pair, *centres)
            found, near = int(slots[head, row]), float(likeness[head, row])
            if near < floor or not near:
                assert (found, near) == (0, 0)
                assert best <= floor + 1e-6
                continue
            assert near == pytest.approx(best, rel=1e-4, abs=1e-6)
            if found != slot:  # two are equally near, up to rounding
                own = (side[found : found + 1] for side in centres)
                _, other = reference.likest_centre(*pair, *own)
                assert other == pytest.approx(best, rel=1e-4, abs=1e-6)


def test_of_equal_centres_the_first_is_found() -> None:
    row = rand(1, torch.float32, 1, 1, 16)
    centres = row.expand(1, 89, 16)

    slots, _ = kernels(row).likest_centres((row, row), (centres, centres), 0.5)

    assert slots.tolist() == [[0]]


def test_heads_that_the_kernels_cannot_take_are_left_to_torch() -> None:
    assert cpu_compression_for(torch.zeros(2, 3, 7)) is None
    assert cpu_compression_for(torch.zeros(2, 3, 512)) is None
    assert cpu_compression_for(torch.zeros(2, 3, 8, dtype=torch.float64)) is None
