"""Every fast piece equals its slow specification in kernels/reference.py."""

from __future__ import annotations

from functools import cache
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.unit.workers.random_terms import fill_columns, row_term
from tests.unit.workers.tiny_models import CPU, FAMILIES
from workers import attention as attention_module
from workers.adapter_arena import AdapterArena, AdapterColumns
from workers.adapter_rows import AdapterRows, AdapterRun
from workers.architecture import decoder_config
from workers.attention import Extent, SpanGroup, attend, attend_backward, split_by_size
from workers.decoder import RotaryTable
from workers.hf_config import HfConfig
from workers.kernels import reference
from workers.layers import (
    rms_norm,
    rms_norm_backward,
    rotate,
    rotate_backward,
    silu_mul,
    silu_mul_backward,
)
from workers.model import MODULE_PATHS, DecoderConfig

SEEDS = st.integers(0, 2**32 - 1)
FEW = settings(max_examples=25, deadline=None)
EXACT = 1e-12


def rand(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@cache
def config_of(family: str) -> DecoderConfig:
    oracle = FAMILIES[family]()
    oracle.config.architectures = [type(oracle).__name__]
    return decoder_config(HfConfig.model_validate(oracle.config.to_dict()))


def assert_close(got: Tensor, want: Tensor, tolerance: float = EXACT) -> None:
    assert got.shape == want.shape
    assert float((got - want).abs().max()) <= tolerance * max(1.0, float(want.abs().max()))


def autograd(outputs: Tensor, inputs: Tensor, grad: Tensor) -> Tensor:
    (result,) = torch.autograd.grad(outputs, inputs, grad)
    return result


@FEW
@given(seed=SEEDS, rows=st.integers(1, 5))
def test_rms_norm_and_its_backward(seed: int, rows: int) -> None:
    x, weight, grad = rand(seed, rows, 12), rand(seed + 1, 12), rand(seed + 2, rows, 12)
    leaf = x.clone().requires_grad_()
    want = reference.rms_norm(leaf, weight, 1e-6)

    assert_close(rms_norm(x, weight, 1e-6), want.detach())
    assert_close(rms_norm_backward(grad, x, weight, 1e-6), autograd(want, leaf, grad))


@FEW
@given(seed=SEEDS, rows=st.integers(1, 5))
def test_silu_mul_and_its_backward(seed: int, rows: int) -> None:
    x, grad = rand(seed, rows, 14), rand(seed + 1, rows, 7)
    leaf = x.clone().requires_grad_()
    want = reference.silu_mul(leaf)

    assert_close(silu_mul(x), want.detach())
    assert_close(silu_mul_backward(grad, x), autograd(want, leaf, grad))


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@FEW
@given(seed=SEEDS)
def test_rotation_and_its_backward(family: str, seed: int) -> None:
    config = config_of(family)
    table = RotaryTable(config, torch.float64, CPU)
    random = Random(seed)
    positions = torch.tensor([random.randrange(config.max_model_len) for _ in range(6)])
    x, grad = rand(seed, 6, 3, config.head_dim), rand(seed + 1, 6, 3, config.head_dim)
    leaf = x.clone().requires_grad_()
    want = reference.rotate(leaf, positions, config.inv_freq.double())
    cos, sin = table.at(positions)

    assert_close(rotate(x, cos, sin), want.detach())
    assert_close(rotate_backward(grad, cos, sin), autograd(want, leaf, grad))


@pytest.mark.parametrize("window", [None, 1, 5])
@pytest.mark.parametrize("tile", [1, 1 << 22])
@settings(max_examples=8, deadline=None)
@given(seed=SEEDS)
def test_padded_attention_and_its_backward(window: int | None, tile: int, seed: int) -> None:
    random = Random(seed)
    heads, kv_heads, dim = 4, 2, 6
    starts = [random.randint(0, 9) for _ in range(4)]
    counts = [random.randint(1, 7) for _ in range(4)]
    extents, row = [], 0
    for start, count in zip(starts, counts, strict=True):
        extents.append(Extent(row, count, start))
        row += count
    q, grad = rand(seed, row, heads, dim), rand(seed + 1, row, heads, dim)
    longest = max(e.num_keys for e in extents)
    k, v = rand(seed + 2, 4, kv_heads, longest, dim), rand(seed + 3, 4, kv_heads, longest, dim)
    group = SpanGroup.of(extents, CPU)
    bias = group.bias(window, longest, torch.float64)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_module, "MAX_SCORES", tile)
        out, lse = attend(group.gather(q), k, v, bias)
        valid = group.query_mask_SM[..., None, None]
        got = attend_backward(group.gather(grad) * valid, group.gather(q), k, v, out, lse, bias)

    for i, extent in enumerate(extents):
        rows = slice(extent.row, extent.row + extent.num_queries)
        leaves = [t.clone().requires_grad_() for t in (q[rows], k[i], v[i])]
        want, want_lse = spelled_out(leaves, extent.start, window)
        slow, slow_lse = reference.attention(
            q[rows], k[i].transpose(0, 1), v[i].transpose(0, 1), extent.start, window
        )
        used = slice(0, extent.num_queries)
        assert_close(out[i, used], slow)
        assert_close(lse[i, used], slow_lse)
        assert_close(want.detach(), slow)
        assert_close(want_lse.detach(), slow_lse)
        grads = torch.autograd.grad(want, leaves, grad[rows])
        for mine, expected in zip((got[0][i, used], got[1][i], got[2][i]), grads, strict=True):
            assert_close(mine, expected)


def spelled_out(qkv: list[Tensor], start: int, window: int | None) -> tuple[Tensor, Tensor]:
    """reference.attention without writes into tensors, so that autograd can follow."""
    q, k, v = qkv
    heads, dim = q.shape[1:]
    outs, sums = [], []
    for i in range(len(q)):
        stop = start + i + 1
        first = 0 if window is None else max(0, stop - window)
        for head in range(heads):
            kv = head // (heads // k.shape[0])
            scores = k[kv, first:stop] @ q[i, head] * dim**-0.5
            outs.append(torch.softmax(scores, 0) @ v[kv, first:stop])
            sums.append(torch.logsumexp(scores, 0))
    return torch.stack(outs).view(q.shape), torch.stack(sums).view(q.shape[:2])


@given(sizes=st.lists(st.integers(1, 300), max_size=20))
def test_spans_are_grouped_once_each_with_bounded_padding(sizes: list[int]) -> None:
    extents = [Extent(0, size, 0) for size in sizes]

    groups = split_by_size(extents)

    assert sorted(i for group in groups for i in group) == list(range(len(sizes)))
    for group in groups:
        members = [sizes[i] for i in group]
        assert sum(members) >= 0.5 * max(members) * len(members)


@FEW
@given(seed=SEEDS)
def test_adapters_of_mixed_ranks_kinds_and_targets_add_what_each_row_s_own_adapter_adds(
    seed: int,
) -> None:
    random = Random(seed)
    config = config_of("llama")
    arena = AdapterArena(config, 96, torch.float64, CPU)
    resident = []
    for i in range(random.randint(1, 5)):
        rank = random.randint(1, 16)
        modules = frozenset(random.sample(sorted(MODULE_PATHS), random.randint(1, 7)))
        columns = AdapterColumns(16 * i, rank, modules, random.choice((0, 1, rank)))
        fill_columns(arena, columns, seed + i)
        resident.append(columns)
    random.shuffle(resident)
    runs, row = [], random.randint(0, 3)
    for columns in resident:
        stop = row + random.choice((1, 2, 20))
        runs.append(AdapterRun(row, stop, columns))
        row = stop + random.randint(0, 2)
    layer, index = random.randrange(config.num_layers), random.randrange(4)
    linear = arena.linears[index]
    x, y = rand(seed, row, linear.in_features), rand(seed + 1, row, linear.out_features)
    terms: list[reference.RowTerm | None] = [None] * row
    for run in runs:
        if not run.columns.targets(linear):
            continue
        term = row_term(arena.terms(run.columns)[layer, index])
        terms[run.start : run.stop] = [term] * (run.stop - run.start)
    want = y.clone()
    if any(term is not None for term in terms):
        want += reference.shrink_expand(x, terms)

    AdapterRows(runs).add(arena, layer, index, x, y)

    assert_close(y, want)
