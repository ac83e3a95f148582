"""Triton's kernels over rows equal their specification in kernels/reference.py."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.unit.workers.triton_device import DEVICE, DTYPE, assert_close, rand
from workers.kernels import reference
from workers.kernels.qkv_rows import HeadNorms, PageRows, QkvShape
from workers.kernels.triton.gate import silu_mul, silu_mul_backward
from workers.kernels.triton.norm import rms_norm, rms_norm_backward
from workers.kernels.triton.qkv import place_heads, place_heads_backward
from workers.kernels.triton.sampling import sample

SEEDS = st.integers(0, 2**32 - 1)
FEW = settings(max_examples=4, deadline=None)


def autograd(outputs: Tensor, inputs: Tensor, grad: Tensor) -> Tensor:
    (result,) = torch.autograd.grad(outputs, inputs, grad)
    return result


@FEW
@given(seed=SEEDS, rows=st.integers(1, 4), width=st.sampled_from((1, 12, 16, 33)))
def test_rms_norm_and_its_backward(seed: int, rows: int, width: int) -> None:
    weight, grad, before = rand(seed, width), rand(seed + 1, rows, width), rand(seed, rows, width)
    x = rand(seed + 2, rows, width + 3)[:, :width].requires_grad_()
    want = reference.rms_norm(x, weight, 1e-6)
    want_grad = autograd(want, x, grad)

    assert_close(rms_norm(x.detach(), weight, 1e-6), want.detach())
    assert_close(rms_norm_backward(grad, x.detach(), weight, 1e-6), want_grad)
    total = before.clone()
    rms_norm_backward(grad, x.detach(), weight, 1e-6, into=total)
    assert_close(total, before + want_grad)


def test_rms_norm_takes_every_head_of_a_slice() -> None:
    heads, weight = rand(0, 3, 5, 8)[:, 1:4], rand(1, 8)

    want = reference.rms_norm(heads.reshape(-1, 8), weight, 1e-6).view(heads.shape)
    assert_close(rms_norm(heads, weight, 1e-6), want)


@FEW
@given(seed=SEEDS, rows=st.integers(1, 4), width=st.sampled_from((1, 7, 1030)))
def test_silu_mul_and_its_backward(seed: int, rows: int, width: int) -> None:
    x = rand(seed, rows, 2 * width).requires_grad_()
    grad = rand(seed + 1, rows, width)
    want = reference.silu_mul(x)

    assert_close(silu_mul(x.detach()), want.detach())
    assert_close(silu_mul_backward(grad, x.detach()), autograd(want, x, grad))


SHAPES = [QkvShape(4, 2, 6), QkvShape(7, 1, 4), QkvShape(8, 8, 16)]


def random_norms(seed: int, dim: int) -> HeadNorms:
    return HeadNorms(rand(seed, dim), rand(seed + 1, dim), 1e-5)


@FEW
@given(
    seed=SEEDS,
    rows=st.sampled_from((0, 1, 5)),
    shape=st.sampled_from(SHAPES),
    normed=st.booleans(),
)
def test_heads_are_normalised_turned_and_stored(
    seed: int, rows: int, shape: QkvShape, normed: bool
) -> None:
    norms = random_norms(seed, shape.dim) if normed else None
    width = (shape.turned + shape.kv_heads) * shape.dim
    qkv = rand(seed, rows, width + 3)[:, :width]
    positions, inv_freq = torch.arange(rows, device=DEVICE) * 7, rand(seed, shape.dim // 2).abs()
    angles = positions[:, None, None].to(DTYPE) * inv_freq
    storage = rand(seed, 9, 2, 2, shape.kv_heads, 4, shape.dim)  # blocks, layers, keys and values
    before = storage.clone()
    keys, values = storage.permute(2, 1, 0, 3, 4, 5)[:, 1]
    stored = slice(1, max(1, rows - 1))
    count = stored.stop - stored.start
    blocks, offsets = torch.tensor([4, -1, 2])[:count], torch.tensor([3, 0, 1])[:count]
    pages = PageRows(keys, values, stored, blocks.to(DEVICE), offsets.to(DEVICE))

    got = place_heads(qkv, shape, norms, (angles.cos(), angles.sin()), pages)

    q, k, v = qkv.unflatten(1, (-1, shape.dim)).split(
        (shape.heads, shape.kv_heads, shape.kv_heads), dim=1
    )
    if norms is not None and rows:
        q = reference.rms_norm(q.flatten(0, 1), norms.query, norms.eps).view(q.shape)
        k = reference.rms_norm(k.flatten(0, 1), norms.key, norms.eps).view(k.shape)
    want = reference.rotate(torch.cat((q, k), dim=1), positions, inv_freq)
    assert_close(got, want)
    for place, (block, offset) in enumerate(zip(blocks.tolist(), offsets.tolist(), strict=True)):
        if block >= 0:
            before[block, 1, 0, :, offset] = got[1 + place, shape.heads :]
            before[block, 1, 1, :, offset] = v[1 + place]
    assert torch.equal(storage, before)


@FEW
@given(
    seed=SEEDS,
    rows=st.sampled_from((0, 1, 5)),
    shape=st.sampled_from(SHAPES),
    normed=st.booleans(),
)
def test_the_way_back_from_heads_is_that_of_autograd(
    seed: int, rows: int, shape: QkvShape, normed: bool
) -> None:
    norms = random_norms(seed, shape.dim) if normed else None
    qkv = rand(seed, rows, (shape.turned + shape.kv_heads) * shape.dim).requires_grad_()
    positions, inv_freq = torch.arange(rows, device=DEVICE) * 7, rand(seed, shape.dim // 2).abs()
    angles = positions[:, None, None].to(DTYPE) * inv_freq
    turn = angles.cos(), angles.sin()
    heads, v = qkv.unflatten(1, (-1, shape.dim)).split((shape.turned, shape.kv_heads), dim=1)
    q, k = heads.split((shape.heads, shape.kv_heads), dim=1)
    if norms is not None and rows:
        q = reference.rms_norm(q.flatten(0, 1), norms.query, norms.eps).view(q.shape)
        k = reference.rms_norm(k.flatten(0, 1), norms.key, norms.eps).view(k.shape)
    placed = reference.rotate(torch.cat((q, k), dim=1), positions, inv_freq)
    grad, grad_v = rand(seed + 1, *placed.shape), rand(seed + 2, *v.shape)
    grad_q, grad_k = (part.contiguous() for part in grad.split((shape.heads, shape.kv_heads), 1))
    want = autograd(torch.cat((placed, v), dim=1), qkv, torch.cat((grad, grad_v), dim=1))

    raw = heads.detach() if normed else None
    got = place_heads_backward(grad_q, (grad_k, grad_v), shape, norms, turn, raw)

    assert_close(got, want)


@FEW
@given(seed=SEEDS, vocabulary=st.sampled_from((5, 4096, 9000)))
def test_each_row_draws_its_own_token(seed: int, vocabulary: int) -> None:
    logits = 3 * rand(seed, 4, vocabulary)
    uniforms = torch.rand(4, generator=torch.Generator().manual_seed(seed)).to(DEVICE)
    temperatures = torch.tensor([0.0, 0.5, 1.0, 2.0], device=DEVICE)

    tokens, finite = sample(logits, temperatures, uniforms)

    assert finite.all()
    for row in range(4):
        want = reference.sample(logits[row], float(temperatures[row]), float(uniforms[row]))
        assert int(tokens[row]) == want


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
def test_the_ends_of_the_range_pick_tokens_of_the_vocabulary(uniform: float) -> None:
    logits = rand(3, 1, 4200)

    tokens, _ = sample(
        logits, torch.ones(1, device=DEVICE), torch.full((1,), uniform, device=DEVICE)
    )

    assert 0 <= int(tokens[0]) < 4200


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite_is_marked_alone(bad: float) -> None:
    logits = rand(1, 3, 4200)
    logits[1, 4177] = bad

    ones = torch.ones(3, device=DEVICE)
    tokens, finite = sample(logits, 0 * ones, 0.5 * ones)

    assert finite.tolist() == [True, False, True]
    assert tokens[[0, 2]].tolist() == logits[[0, 2]].argmax(-1).tolist()


def test_equal_logits_give_the_first_of_them() -> None:
    logits = torch.zeros(1, 9000, device=DEVICE, dtype=DTYPE)

    tokens, _ = sample(logits, torch.zeros(1, device=DEVICE), torch.zeros(1, device=DEVICE))

    assert tokens.tolist() == [0]
