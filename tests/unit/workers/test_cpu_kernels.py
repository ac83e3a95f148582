"""Every C++ kernel equals its slow specification, in float32 and in bf16."""

from __future__ import annotations

from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.unit.workers.random_terms import fill_columns, row_term
from tests.unit.workers.tiny_adapters import tiny_config
from workers.adapter_arena import AdapterArena, AdapterColumns
from workers.adapter_rows import AdapterRows, AdapterRun
from workers.frozen_linear import FrozenLinear
from workers.kernels import reference
from workers.kernels.cpu_kernels import (
    AttentionGrads,
    AttentionShape,
    CpuKernels,
    KeySource,
    PanelWeights,
    cpu_kernels,
)
from workers.kernels.native import cpu_flags, library
from workers.model import MODULE_PATHS

SEEDS = st.integers(0, 2**32 - 1)
FEW = settings(max_examples=25, deadline=None)
# Shares of the largest result: float32 sums in another order; one rounding to bf16 on each side.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}
DTYPES = [torch.float32]
if "avx512_bf16" in cpu_flags():
    DTYPES.append(torch.bfloat16)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


def kernels(dtype: torch.dtype) -> CpuKernels:
    found = cpu_kernels(dtype)
    assert found is not None
    return found


def rand(seed: int, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_close(got: Tensor, want: Tensor, dtype: torch.dtype) -> None:
    assert got.shape == want.shape
    error = float((got.double() - want.double()).abs().max())
    assert error <= TOLERANCE[dtype] * max(1.0, float(want.abs().max()))


def test_this_machine_has_the_kernels() -> None:
    assert (library() is not None) == ({"avx2", "fma"} <= cpu_flags())


@each_dtype
@FEW
@given(seed=SEEDS, rows=st.integers(1, 40), width=st.integers(1, 100))
def test_rms_norm_and_its_backward(dtype: torch.dtype, seed: int, rows: int, width: int) -> None:
    x, grad = rand(seed, dtype, rows, width), rand(seed + 2, dtype, rows, width)
    weight, total = rand(seed + 1, dtype, width), rand(seed + 3, dtype, rows, width)
    leaf = x.double().requires_grad_()
    want = reference.rms_norm(leaf, weight.double(), 1e-3)
    (slope,) = torch.autograd.grad(want, leaf, grad.double())

    assert_close(kernels(dtype).rms_norm(x, weight, 1e-3), want.detach(), dtype)
    assert_close(kernels(dtype).rms_norm_backward(grad, x, weight, 1e-3), slope, dtype)
    summed = kernels(dtype).rms_norm_backward(grad, x, weight, 1e-3, into=total.clone())
    assert_close(summed, slope + total.double(), dtype)


@each_dtype
@FEW
@given(seed=SEEDS, rows=st.integers(1, 40), width=st.integers(1, 70))
def test_silu_mul_and_its_backward(dtype: torch.dtype, seed: int, rows: int, width: int) -> None:
    x, grad = 3 * rand(seed, dtype, rows, 2 * width), rand(seed + 1, dtype, rows, width)
    leaf = x.double().requires_grad_()
    want = reference.silu_mul(leaf)
    (slope,) = torch.autograd.grad(want, leaf, grad.double())

    assert_close(kernels(dtype).silu_mul(x), want.detach(), dtype)
    assert_close(kernels(dtype).silu_mul_backward(grad, x), slope, dtype)


@pytest.mark.parametrize("value", [-200.0, -88.0, -1e30, 0.0, 88.0, 200.0, float("inf")])
def test_silu_of_extremes_is_torch_s(value: float) -> None:
    x = torch.full((1, 34), value)
    x[:, 17:] = 1

    got = kernels(torch.float32).silu_mul(x)

    torch.testing.assert_close(got, torch.nn.functional.silu(x[:, :17]))


@each_dtype
@FEW
@given(seed=SEEDS, rows=st.integers(1, 20), half=st.integers(1, 40))
def test_rotation_and_turning_back(dtype: torch.dtype, seed: int, rows: int, half: int) -> None:
    fused = rand(seed, dtype, rows, 5 * 2 * half)
    heads = fused[:, : 3 * 2 * half].unflatten(1, (3, 2 * half))
    positions = torch.arange(rows)
    inv_freq = torch.rand(half, dtype=torch.float64)
    angles = positions[:, None] * inv_freq
    cos, sin = (f(angles).to(dtype)[:, None] for f in (torch.cos, torch.sin))

    turned = kernels(dtype).rotate(heads, cos, sin)

    assert_close(turned, reference.rotate(heads.double(), positions, inv_freq), dtype)
    assert_close(kernels(dtype).rotate(turned, cos, sin, direction=-1.0), heads, dtype)


@each_dtype
@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 90),
    out_features=st.integers(1, 150),
    pairs=st.integers(1, 100),
    narrow=st.booleans(),
    seed=SEEDS,
)
def test_any_shape_gives_the_product(
    dtype: torch.dtype, rows: int, out_features: int, pairs: int, narrow: bool, seed: int
) -> None:
    weight = rand(seed, torch.bfloat16 if narrow else dtype, out_features, 2 * pairs).to(dtype)
    x, bias = rand(seed + 1, dtype, rows, 2 * pairs), rand(seed + 2, dtype, out_features)
    want = x.double() @ weight.double().T + bias.double()
    panels = PanelWeights.try_of(weight)
    assert panels is not None
    total = rand(seed + 3, dtype, rows, out_features)

    assert (panels.panels.dtype is torch.bfloat16) == (narrow or dtype is torch.bfloat16)
    assert_close(kernels(dtype).linear(x, panels, bias, None), want, dtype)
    summed = kernels(dtype).linear(x, panels, bias, total.clone())
    assert_close(summed, want + total.double(), dtype)


@each_dtype
@FEW
@given(rows=st.integers(2, 60), row=st.integers(0, 59), seed=SEEDS)
def test_a_row_is_the_same_to_the_last_bit_in_any_company(
    dtype: torch.dtype, rows: int, row: int, seed: int
) -> None:
    linear = FrozenLinear(rand(seed, dtype, 48, 80))
    x = rand(seed + 1, dtype, rows, 80)
    row %= rows

    assert torch.equal(linear(x)[row], linear(x[row : row + 1])[0])


@each_dtype
def test_the_input_gradient_is_the_product_with_the_weight(dtype: torch.dtype) -> None:
    weight, grad = rand(0, dtype, 33, 64), rand(1, dtype, 7, 33)

    got = FrozenLinear(weight).input_grad(grad)

    assert_close(got, grad.double() @ weight.double(), dtype)


def test_float64_keeps_its_precision() -> None:
    weight = torch.randn(32, 64, dtype=torch.float64)
    x = torch.randn(5, 64, dtype=torch.float64)

    assert torch.equal(FrozenLinear(weight)(x), torch.nn.functional.linear(x, weight))


@each_dtype
@FEW
@given(seed=SEEDS)
def test_adapters_of_every_kind_in_one_call(dtype: torch.dtype, seed: int) -> None:
    random = Random(seed)
    arena = AdapterArena(tiny_config(), 96, dtype, torch.device("cpu"))
    runs, row = [], random.randint(0, 2)
    for i in range(random.randint(1, 4)):
        rank = random.choice((1, 5, 16))
        modules = frozenset(random.sample(sorted(MODULE_PATHS), random.randint(1, 7)))
        columns = AdapterColumns(16 * i, rank, modules, random.choice((0, 1, rank)))
        fill_columns(arena, columns, seed + i)
        runs.append(AdapterRun(row, row + random.choice((0, 1, 40)), columns))
        row = runs[-1].stop + random.randint(0, 1)
    layer, index = random.randrange(arena.num_layers), random.randrange(4)
    linear = arena.linears[index]
    x = rand(seed, dtype, row + 1, linear.in_features)
    got = rand(seed + 1, dtype, row + 1, linear.out_features)
    want = got.double()
    for run in runs:
        if run.columns.targets(linear) and run.stop > run.start:
            rows = slice(run.start, run.stop)
            term = row_term(arena.terms(run.columns)[layer, index])
            want[rows] += reference.shrink_expand(x[rows].double(), [term] * (run.stop - run.start))

    AdapterRows(runs).add(arena, layer, index, x, got)

    assert_close(got, want, dtype)


class Spans:
    """Random spans over keys of their own, in one buffer or in shuffled pages."""

    def __init__(self, seed: int, dtype: torch.dtype, page_tokens: int | None) -> None:
        random = Random(seed)
        self.kv_heads, self.group = random.choice((1, 2)), random.choice((1, 2, 3, 5))
        self.dim = random.choice((16, 32, 64, 80))
        counts = [random.choice((1, 1, 2, 7, 40, 90)) for _ in range(4)]
        starts = [random.choice((0, 0, 3, 31, 64, 130)) for _ in range(4)]
        rows, self.spans, self.keys, self.values = 0, [], [], []
        for i, (count, start) in enumerate(zip(counts, starts, strict=True)):
            self.spans.append((rows, count, start))
            rows += count
            shape = start + count, self.kv_heads, self.dim
            self.keys.append(rand(seed + 2 * i, dtype, *shape))
            self.values.append(rand(seed + 2 * i + 1, dtype, *shape))
        self.heads = self.kv_heads * self.group
        self.q = rand(seed + 9, dtype, rows, self.heads, self.dim)
        self.grad = rand(seed + 10, dtype, rows, self.heads, self.dim)
        self.window = random.choice((0, 0, 5, 50))
        self._place(random, page_tokens)

    def _place(self, random: Random, page_tokens: int | None) -> None:
        firsts, dim = [], self.dim
        if page_tokens is None:
            firsts += [sum(map(len, self.keys[:i])) for i in range(len(self.keys))]
            self.k, self.v = torch.cat(self.keys), torch.cat(self.values)
            self.tables = None
            strides = (0, 0, dim, self.kv_heads * dim)
        else:
            self.k, self.v, table = self._pages(random, page_tokens, firsts)
            self.tables = torch.tensor(table, dtype=torch.int32)
            page = page_tokens * dim
            strides = (page_tokens, self.kv_heads * page, page, dim)
        address = None if self.tables is None else self.tables.data_ptr()
        self.source = KeySource(self.k.data_ptr(), self.v.data_ptr(), address, *strides)
        self.table = torch.tensor([(*s, f) for s, f in zip(self.spans, firsts, strict=True)])
        self.shape = AttentionShape(
            self.heads, self.kv_heads, dim, self.window, self.heads * self.dim
        )

    def _pages(
        self, random: Random, size: int, firsts: list[int]
    ) -> tuple[Tensor, Tensor, list[int]]:
        counts = [-(-len(keys) // size) for keys in self.keys]
        order = list(range(sum(counts)))
        random.shuffle(order)
        shape = len(order), self.kv_heads, size, self.dim
        k = torch.full(shape, float("nan"), dtype=self.q.dtype)
        v = k.clone()
        table: list[int] = []
        for keys, values, count in zip(self.keys, self.values, counts, strict=True):
            firsts.append(len(table))
            for token in range(len(keys)):
                page = order[len(table) + token // size]
                k[page, :, token % size], v[page, :, token % size] = keys[token], values[token]
            table += order[len(table) : len(table) + count]
        return k, v, table


@each_dtype
@pytest.mark.parametrize("page_tokens", [None, 4, 32])
@FEW
@given(seed=SEEDS)
def test_attention_of_mixed_spans_whose_foreign_slots_are_nan(
    dtype: torch.dtype, page_tokens: int | None, seed: int
) -> None:
    spans = Spans(seed, dtype, page_tokens)
    out, lse = torch.empty_like(spans.q), torch.empty(spans.q.shape[:2])

    kernels(dtype).attend(spans.source, spans.table, spans.shape, spans.q, out, lse)

    for (row, count, start), keys, values in zip(
        spans.spans, spans.keys, spans.values, strict=True
    ):
        rows = slice(row, row + count)
        want, want_lse = reference.attention(
            spans.q[rows].double(), keys.double(), values.double(), start, spans.window or None
        )
        assert_close(out[rows], want, dtype)
        assert_close(lse[rows], want_lse, dtype)


@each_dtype
@FEW
@given(seed=SEEDS)
def test_attention_backward_is_autograd_s(dtype: torch.dtype, seed: int) -> None:
    spans = Spans(seed, dtype, None)
    out, lse = torch.empty_like(spans.q), torch.empty(spans.q.shape[:2])
    kernels(dtype).attend(spans.source, spans.table, spans.shape, spans.q, out, lse)
    grad_q = torch.empty_like(spans.q)
    grad_k, grad_v = torch.zeros(spans.k.shape), torch.zeros(spans.k.shape)
    pointers = (spans.q, out, spans.grad, lse, grad_q, grad_k, grad_v)
    grads = AttentionGrads(*(tensor.data_ptr() for tensor in pointers))

    kernels(dtype).attend_backward(spans.source, spans.table, spans.shape, grads)

    first = 0
    for (row, count, start), keys, values in zip(
        spans.spans, spans.keys, spans.values, strict=True
    ):
        rows, own = slice(row, row + count), slice(first, first + len(keys))
        leaves = [t.double().requires_grad_() for t in (spans.q[rows], keys, values)]
        want = plain_attention(*leaves, start, spans.window)
        slopes = torch.autograd.grad(want, leaves, spans.grad[rows].double())
        for got, slope in zip((grad_q[rows], grad_k[own], grad_v[own]), slopes, strict=True):
            assert_close(got, slope, dtype)
        first += len(keys)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, start: int, window: int) -> Tensor:
    group = q.shape[1] // k.shape[1]
    scores = torch.einsum("qhd,khd->hqk", q, k.repeat_interleave(group, 1)) * q.shape[2] ** -0.5
    position = torch.arange(start, start + len(q))[:, None]
    key = torch.arange(len(k))
    hidden = key > position
    if window:
        hidden = hidden | (key <= position - window)
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, v.repeat_interleave(group, 1))
