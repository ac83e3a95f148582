"""The panel kernels against torch's own product."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.frozen_linear import FrozenLinear
from workers.kernels.panel_gemm import PanelWeights, is_supported, panel_linear

RELATIVE = 1e-5  # float32 sums of up to a thousand products, in another order


def product_tolerance(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """What rounding may change in each output: a share of the sum of absolute products."""
    return RELATIVE * (x.abs() @ weight.abs().T) + 1e-6


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 300),
    panels=st.integers(1, 9),
    in_features=st.integers(1, 200),
    narrow=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_any_shape_gives_the_product_of_torch(
    rows: int, panels: int, in_features: int, narrow: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(16 * panels, in_features, generator=generator)
    weight = weight.to(torch.bfloat16).float() if narrow else weight
    x = torch.randn(rows, in_features, generator=generator)
    laid_out = PanelWeights.try_of(weight)

    if laid_out is None:
        assert not is_supported()
        return
    assert laid_out.panels.dtype == (torch.bfloat16 if narrow else torch.float32)
    difference = (panel_linear(x, laid_out) - F.linear(x, weight)).abs()
    assert bool((difference <= product_tolerance(x, weight)).all())


@given(rows=st.integers(2, 60), row=st.integers(0, 59), seed=st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_a_row_is_the_same_to_the_last_bit_in_any_company(rows: int, row: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    linear = FrozenLinear(torch.randn(48, 80, generator=generator))
    x = torch.randn(rows, 80, generator=generator)
    row %= rows

    if is_supported():
        assert torch.equal(linear(x)[row], linear(x[row : row + 1])[0])


def test_the_input_gradient_is_the_product_with_the_weight() -> None:
    weight, bias = torch.randn(32, 64), torch.randn(32)
    x = torch.randn(7, 64, requires_grad=True)
    F.linear(x, weight, bias).backward(torch.ones(7, 32))

    linear = FrozenLinear(weight, bias)

    assert x.grad is not None
    torch.testing.assert_close(linear.input_grad(torch.ones(7, 32)), x.grad)
    torch.testing.assert_close(linear(x.detach()), F.linear(x.detach(), weight, bias))


@pytest.mark.parametrize("shape", [(20, 64), (32, 50)])
def test_odd_shapes_run_on_the_plain_matrix(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape)
    linear = FrozenLinear(weight)
    x, grad = torch.randn(5, shape[1]), torch.randn(5, shape[0])

    torch.testing.assert_close(linear(x), F.linear(x, weight))
    torch.testing.assert_close(linear.input_grad(grad), grad @ weight)
    assert linear.num_parameters == weight.numel()


def test_float64_keeps_its_precision() -> None:
    weight = torch.randn(32, 64, dtype=torch.float64)
    x = torch.randn(5, 64, dtype=torch.float64)

    assert torch.equal(FrozenLinear(weight)(x), F.linear(x, weight))
