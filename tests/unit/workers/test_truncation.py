"""Rows are cut together as a slow reader of the definitions cuts each of them."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.domain.request import SamplingParams
from workers.truncation import truncate, truncates

PARAMS = st.builds(
    SamplingParams,
    top_k=st.sampled_from([0, 1, 3, 7, 1 << 40]),
    top_p=st.sampled_from([1.0, 0.75, 0.5, 0.01]),
    min_p=st.sampled_from([0.0, 0.25, 1.0]),
)
WEIGHTS = st.lists(st.sampled_from([0, 1, 2, 8]), min_size=7, max_size=7).filter(any)
ROWS = st.lists(st.tuples(WEIGHTS, PARAMS), min_size=1, max_size=6)


def slow_kept(weights: list[int], params: SamplingParams) -> list[int]:
    """Tokens that stay; whole weights, so that sums are exact and equals are many."""
    order = sorted(range(len(weights)), key=lambda token: -weights[token])
    kept = order[: params.top_k] if params.top_k else order
    kept = [token for token in kept if weights[token] >= params.min_p * weights[order[0]]]
    nucleus: list[int] = []
    for token in kept:
        before = sum(weights[other] for other in nucleus)
        if params.top_p == 1 or before < params.top_p * sum(weights[other] for other in kept):
            nucleus.append(token)
    return nucleus or order[:1]


@settings(max_examples=100, deadline=None)
@given(rows=ROWS)
def test_each_row_keeps_what_the_definitions_keep(
    rows: list[tuple[list[int], SamplingParams]],
) -> None:
    probs = torch.tensor([weights for weights, _ in rows], dtype=torch.float32)

    cut = truncate(probs, [params for _, params in rows])

    for row, (weights, params) in enumerate(rows):
        kept = slow_kept(weights, params)
        want = [float(weight) * (token in kept) for token, weight in enumerate(weights)]
        assert cut[row].tolist() == want


@settings(max_examples=10, deadline=None)
@given(batch=st.lists(PARAMS, min_size=2, max_size=5), seed=st.integers(0, 2**32))
def test_a_row_is_cut_alike_in_any_batch(batch: list[SamplingParams], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    probs = torch.softmax(3 * torch.randn(len(batch), 50_000, generator=generator), dim=-1)

    together = truncate(probs, batch)

    alone = [truncate(probs[i : i + 1], [params]) for i, params in enumerate(batch)]
    assert torch.equal(together, torch.cat(alone))


def test_nothing_is_cut_where_nothing_is_asked_for() -> None:
    def asks(**params: Any) -> bool:
        return truncates(SamplingParams(**params))

    assert not asks()
    assert asks(top_k=1)
    assert asks(top_p=0.99)
    assert asks(min_p=0.01)
