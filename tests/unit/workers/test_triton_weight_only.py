"""Few rows times codes: the product with the dequantized matrix, whatever the sizes and splits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.unit.workers.triton_device import DEVICE, DTYPE, HAS_CARD, assert_close, rand
from workers.frozen_linear import FrozenLinear
from workers.kernels.device_kernels import KERNELS, gpu_kernels
from workers.kernels.triton.weight_only import (
    ENOUGH_PROGRAMS,
    FEW_ROWS,
    SMALLEST_GROUP,
    coded_linear,
    covers,
    splits_of,
)
from workers.weight_format import WEIGHT_FORMATS, QuantizedWeight, find_format

assert find_format("int8") is not None
FORMATS = WEIGHT_FORMATS.names()
ROWS = (1, 5, 16, 64)
# Odd outputs; more than a block of them; splits; groups of 32 and 64; inputs odd where they may be.
SHAPES = ((33, 96), (65, 192), (48, 2176))
ODD_SHAPES = {"int8": (7, 131), "fp8": (66, 3), "int4": (1, 32)}
TOLERANCE = 1e-4 if HAS_CARD else 1e-10


def quantized(
    name: str, outputs: int, inputs: int, seed: int = 0, dtype: torch.dtype = DTYPE
) -> QuantizedWeight:
    """Scales of few bits: `dequantize`, which multiplies in float32, is exact with them."""
    weight = WEIGHT_FORMATS[name].of(rand(seed, outputs, inputs).to(dtype))
    weight.codes.scales_OG.copy_(weight.codes.scales_OG.bfloat16())
    return weight


def product(x: Tensor, weight: QuantizedWeight) -> Tensor:
    return x.double() @ weight.dequantize().double().T


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", FORMATS)
def test_few_rows_are_multiplied_with_what_is_dequantized(name: str, rows: int) -> None:
    for outputs, inputs in (*SHAPES, ODD_SHAPES[name]):
        weight, x = quantized(name, outputs, inputs), rand(1, rows, inputs)
        bias, into = rand(2, outputs), rand(3, rows, outputs)
        want = product(x, weight)

        assert covers(weight.codes, rows)
        assert_close(coded_linear(x, weight.codes, None, None), want, TOLERANCE)
        assert_close(coded_linear(x, weight.codes, bias, None), want + bias, TOLERANCE)
        added = coded_linear(x, weight.codes, bias, into)
        assert added is into
        assert_close(added, want + bias + rand(3, rows, outputs), TOLERANCE)


@pytest.mark.parametrize("name", FORMATS)
def test_products_in_16_bits_are_as_near_as_rounding_lets_them_be(name: str) -> None:
    weight, x = quantized(name, 48, 2176, dtype=torch.float16), rand(1, 16, 2176).half()
    want = product(x, weight)

    got = coded_linear(x, weight.codes, None, None)

    assert got.dtype is torch.float16
    assert float((got - want).abs().max()) <= 2e-3 * float(want.abs().max())


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 2**31), rows=st.integers(1, FEW_ROWS), blocks=st.integers(1, 9))
def test_a_row_is_the_same_to_the_last_bit_whatever_lies_beside_it(
    name: str, seed: int, rows: int, blocks: int
) -> None:
    weight, x = quantized(name, 20, 128 * blocks, seed), rand(seed + 1, rows, 128 * blocks)
    together, y = coded_linear(x, weight.codes, None, None), rand(seed + 2, rows + 2, 20)

    alone = coded_linear(x[-1:], weight.codes, None, None)
    coded_linear(x, weight.codes, None, y[1:-1].zero_())

    assert_close(together, product(x, weight), TOLERANCE)
    if HAS_CARD:  # the interpreter multiplies by a library, which may sum by shape
        assert torch.equal(alone, together[-1:])
    assert_close(alone, together[-1:], TOLERANCE)
    assert torch.equal(y[1:-1], together)


@pytest.mark.parametrize("name", FORMATS)
def test_a_linear_takes_its_codes_for_few_rows_and_blocks_for_many(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KERNELS, DEVICE.type, gpu_kernels)
    weight, bias = quantized(name, 40, 96), rand(2, 40)
    linear = FrozenLinear(weight, bias)
    for rows in (3, FEW_ROWS + 1):
        x, into = rand(1, rows, 96), rand(3, rows, 40)

        assert_close(linear(x), product(x, weight) + bias, TOLERANCE)
        assert_close(linear(x, into), product(x, weight) + bias + rand(3, rows, 40), TOLERANCE)

    assert not covers(weight.codes, FEW_ROWS + 1)


def test_groups_that_tensor_cores_cannot_take_are_widened_in_blocks() -> None:
    assert not covers(quantized("int4", 8, SMALLEST_GROUP // 2).codes, 1)


def test_splits_fill_a_card_where_outputs_do_not() -> None:
    assert splits_of(28672, 4096) == 1  # 448 blocks of outputs
    assert splits_of(4096, 4096) == 8  # 64 blocks; 528 / 64 splits
    assert splits_of(6144, 4096) == 4
    assert splits_of(64, 1 << 20) == 16 < ENOUGH_PROGRAMS
    assert splits_of(64, 96) == 1
