"""Every KV policy: what always stays, budgets, chunks; each score against its paper's formula."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from workers.kernels import reference
from workers.kv_observation import AttentionSums, LayerObservation
from workers.kv_policies import KV_POLICIES
from workers.kv_policy import KvPolicy
from workers.layer_slots import LayerSlots

NAMES = KV_POLICIES.names()
NUM_LAYERS, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM = 3, 4, 2, 8
WINDOW, NUM_SINKS = 4, 2
EMS_THRESHOLD = 0.05  # random vectors are seldom more alike


def make(name: str, budget: float, **options: Any) -> KvPolicy:
    config = {"budget": budget, "window": WINDOW, "num_sinks": NUM_SINKS, **options}
    return KV_POLICIES[name](KV_POLICIES[name].Config.model_validate(config))


def observe(seed: int, num_tokens: int, chunk: int = 1000) -> LayerObservation:
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(NUM_HEADS, num_tokens, HEAD_DIM, generator=generator)
    keys, values = torch.randn(2, NUM_KV_HEADS, num_tokens, HEAD_DIM, generator=generator)
    sums = AttentionSums(WINDOW)
    for start in range(0, num_tokens, chunk):
        end = min(start + chunk, num_tokens)
        sums.see(queries[:, start:end], start)
    return sums.observe(LayerSlots.of_tokens(keys, values))


def attention_row(query: torch.Tensor, keys: torch.Tensor) -> list[float]:
    logits = [float(query @ key) / math.sqrt(HEAD_DIM) for key in keys]
    total = sum(math.exp(logit) for logit in logits)
    return [math.exp(logit) / total for logit in logits]


def slow_window_sums(seen: LayerObservation, head: int) -> list[float]:
    """Attention of one query head's window to every token, one product at a time."""
    keys, num_tokens = seen.keys[head // (NUM_HEADS // NUM_KV_HEADS)], seen.num_tokens
    sums = [0.0] * num_tokens
    for row, query in enumerate(seen.queries[head]):
        last = num_tokens - len(seen.queries[head]) + row
        for token, weight in enumerate(attention_row(query, keys[: last + 1])):
            sums[token] += weight
    return sums


def slow_snap(seen: LayerObservation, kv_head: int, pooling: str) -> list[float]:
    group = NUM_HEADS // NUM_KV_HEADS
    pooled = [0.0] * (seen.num_tokens - WINDOW)
    for head in range(kv_head * group, (kv_head + 1) * group):
        sums = slow_window_sums(seen, head)[:-WINDOW]
        for token in range(len(sums)):
            near = sums[max(0, token - 2) : token + 3]
            pooled[token] += (max(near) if pooling == "max" else sum(near) / 5) / group
    return pooled


@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 99), num_tokens=st.integers(1, 40))
@settings(max_examples=15, deadline=None)
def test_a_budget_of_the_whole_prompt_changes_no_bit(name: str, seed: int, num_tokens: int) -> None:
    layers = [observe(seed + layer, num_tokens) for layer in range(NUM_LAYERS)]

    for seen, heads in zip(layers, make(name, 1.0).compress(layers), strict=True):
        for head, kept in enumerate(heads):
            assert kept.slots.tolist() == list(range(num_tokens))
            assert torch.equal(kept.keys, seen.keys[head])
            assert torch.equal(kept.values, seen.values[head])
            assert not kept.log_count.any()


@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 99), num_tokens=st.integers(8, 40), budget=st.integers(6, 44))
@settings(max_examples=25, deadline=None)
def test_the_budget_is_kept_and_so_are_sinks_and_window(
    name: str, seed: int, num_tokens: int, budget: int
) -> None:
    layers = [observe(seed + layer, num_tokens) for layer in range(NUM_LAYERS)]

    kept = [head for heads in make(name, budget).compress(layers) for head in heads]

    allowed = min(budget, num_tokens) * NUM_LAYERS * NUM_KV_HEADS
    assert sum(len(head.slots) for head in kept) <= allowed
    always = {*range(NUM_SINKS), *range(num_tokens - WINDOW, num_tokens)}
    for head in kept:
        assert head.slots.tolist() == sorted(set(head.slots.tolist()))
        assert always <= set(head.slots.tolist())
        assert len(head.slots) == len(head.keys) == len(head.values) == len(head.log_count)


@given(seed=st.integers(0, 99), num_tokens=st.integers(5, 40), chunk=st.integers(1, 40))
@settings(max_examples=25, deadline=None)
def test_chunks_are_seen_as_the_whole_prompt_is(seed: int, num_tokens: int, chunk: int) -> None:
    whole, chunked = observe(seed, num_tokens), observe(seed, num_tokens, chunk)

    assert torch.equal(whole.queries, chunked.queries)
    torch.testing.assert_close(whole.column_sums, chunked.column_sums)


@pytest.mark.parametrize("pooling", ["mean", "max"])
@given(seed=st.integers(0, 99), num_tokens=st.integers(6, 24))
@settings(max_examples=10, deadline=None)
def test_snapkv_scores_as_its_paper_says(pooling: str, seed: int, num_tokens: int) -> None:
    seen = observe(seed, num_tokens)

    scores = make("snapkv", 1.0, pooling=pooling).score(seen)

    for head in range(NUM_KV_HEADS):
        expected = torch.tensor(slow_snap(seen, head, pooling))
        torch.testing.assert_close(scores[head, :-WINDOW], expected)


def test_column_sums_are_the_attention_of_all_queries() -> None:
    generator = torch.Generator().manual_seed(1)
    queries, keys = torch.randn(2, 1, 9, HEAD_DIM, generator=generator)
    sums = AttentionSums(window=9)
    sums.see(queries, 0)

    rows = [attention_row(queries[0, i], keys[0, : i + 1]) for i in range(9)]
    expected = [sum(row[token] for row in rows[token:]) for token in range(9)]
    seen = sums.observe(LayerSlots.of_tokens(keys, keys))
    torch.testing.assert_close(seen.column_sums[0], torch.tensor(expected))


@given(seed=st.integers(0, 99), num_tokens=st.integers(6, 24))
@settings(max_examples=10, deadline=None)
def test_keydiff_scores_as_its_paper_says(seed: int, num_tokens: int) -> None:
    seen = observe(seed, num_tokens)

    scores = make("keydiff", 1.0).score(seen)

    for head, keys in enumerate(seen.keys):
        mean = sum((key / key.norm() for key in keys), torch.zeros(HEAD_DIM)) / num_tokens
        expected = [-float(key @ mean / (key.norm() * mean.norm())) for key in keys]
        torch.testing.assert_close(scores[head], torch.tensor(expected))


@given(seed=st.integers(0, 99), num_tokens=st.integers(6, 24))
@settings(max_examples=10, deadline=None)
def test_ems_scores_by_the_larger_of_global_and_local(seed: int, num_tokens: int) -> None:
    seen = observe(seed, num_tokens)

    scores = make("ems", 1.0).score(seen)

    group = NUM_HEADS // NUM_KV_HEADS
    for head in range(NUM_KV_HEADS):
        rows = [slow_window_sums(seen, head * group + i) for i in range(group)]
        local = [sum(column) / group for column in zip(*rows, strict=True)]
        sums = seen.column_sums[head].tolist()
        overall = [sums[token] / (num_tokens - token) for token in range(num_tokens)]
        scale = sum(local) / sum(overall)
        larger = [max(g * scale, near) for g, near in zip(overall, local, strict=True)]
        expected = [max(larger[max(0, i - 2) : i + 3]) for i in range(num_tokens)]
        torch.testing.assert_close(scores[head], torch.tensor(expected))


def test_streaming_keeps_the_last_tokens_and_h2o_those_most_looked_at() -> None:
    seen = observe(seed=6, num_tokens=20)
    middle = sorted(range(NUM_SINKS, 20 - WINDOW), key=lambda i: -float(seen.column_sums[1, i]))

    streamed = make("streaming", 9).compress([seen])[0][1].slots.tolist()
    heavy = make("h2o", 9).compress([seen])[0][1].slots.tolist()

    assert streamed == [0, 1, *range(13, 20)]
    assert heavy == [0, 1, *sorted(middle[:3]), *range(16, 20)]


def test_pyramid_gives_layers_the_papers_line() -> None:
    scores = [torch.zeros(2, 500)] * 3

    assert make("pyramid", 1.0).layer_budgets(scores, [100] * 3) == [195, 100, 5]


def test_adakv_gives_a_head_what_it_has_among_the_best() -> None:
    scores = torch.tensor([[9.0, 8, 7, 6, 5, 4], [3, 2, 1, 0, 0, 0]])

    assert make("adakv", 1.0, floor=0).head_budgets(scores, 3) == [6, 0]
    assert make("adakv", 1.0, floor=1).head_budgets(scores, 3) == [3, 3]


def test_adakv_gives_to_others_what_a_head_has_no_slots_for() -> None:
    none = -math.inf
    scores = torch.tensor([[none, none, none, 3.0, 2, 1], [9, 8, 7, 6, 5, 4]])

    assert make("adakv", 1.0, floor=1).head_budgets(scores, 4) == [3, 5]
    assert make("adakv", 1.0, floor=0).head_budgets(scores, 4) == [2, 6]


def test_prefixkv_keeps_more_where_attention_is_spread() -> None:
    peaked, flat = torch.tensor([[97.0, 1, 1, 1]]), torch.ones(1, 4)

    assert make("prefixkv", 1.0).layer_budgets([peaked, flat], [2, 2]) == [1, 3]


def test_elastic_averages_a_dropped_token_into_its_nearest_kept_one() -> None:
    seen = observe(seed=3, num_tokens=12)
    kept = make("elastic", 6).compress([seen])[0][0]  # keeps 0, 1 and 8 .. 11

    torch.testing.assert_close(kept.keys[1], seen.keys[0, 1:5].mean(0))
    torch.testing.assert_close(kept.values[2], seen.values[0, 5:9].mean(0))


def test_ems_merges_copies_so_that_attention_does_not_change() -> None:
    one = observe(seed=4, num_tokens=6)
    keys, values = one.keys.repeat(1, 4, 1), one.values.repeat(1, 4, 1)
    sums = AttentionSums(WINDOW)
    sums.see(torch.randn(NUM_HEADS, 24, HEAD_DIM), 0)
    seen = sums.observe(LayerSlots.of_tokens(keys, values))
    kept = make("ems", 6, merge_ratio=16).compress([seen])[0][0]

    query = torch.randn(HEAD_DIM)
    full = (keys[0] @ query).softmax(0) @ values[0]
    merged = (kept.keys @ query + kept.log_count).softmax(0) @ kept.values
    torch.testing.assert_close(merged, full)


def slow_ems_slots(
    seen: LayerObservation, head: int, scores: list[float], tokens: list[int], most: int
) -> list[tuple[torch.Tensor, torch.Tensor, int]]:
    """Key, value and number of merged tokens of each slot, token by token."""
    keys, values = seen.keys[head].double(), seen.values[head].double()
    others = sorted(set(range(seen.num_tokens)) - {*tokens}, key=lambda i: -scores[i])[:most]
    joining: list[list[int]] = [[] for _ in tokens]
    for token in others:
        pair = keys[token], values[token]
        slot, likeness = reference.likest_centre(*pair, keys[tokens], values[tokens])
        if likeness >= EMS_THRESHOLD:
            joining[slot].append(token)
    slots = []
    for centre, joined in zip(tokens, joining, strict=True):
        members = [centre, *joined]
        weights = torch.tensor([scores[i] for i in members]).double()
        directions = torch.stack([keys[i] / keys[i].norm() for i in members])
        turned = weights @ directions
        key = keys[centre].norm() * turned / turned.norm()
        slots.append((key, weights @ values[members] / weights.sum(), len(joined)))
    return slots


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # kernels, plain torch
@given(seed=st.integers(0, 99), num_tokens=st.integers(10, 40), ratio=st.sampled_from([0, 0.5, 16]))
@settings(max_examples=15, deadline=None)
def test_ems_merges_as_its_formulas_say(
    dtype: torch.dtype, seed: int, num_tokens: int, ratio: float
) -> None:
    seen = observe(seed, num_tokens)
    seen = replace(seen, keys=seen.keys.to(dtype), values=seen.values.to(dtype))
    policy = make("ems", 9, threshold=EMS_THRESHOLD, merge_ratio=ratio)

    kept = policy.compress([seen])[0]

    for head, scores in enumerate(policy.score(seen).tolist()):
        tokens = kept[head].slots.tolist()
        slots = slow_ems_slots(seen, head, scores, tokens, int(ratio * 9))
        for slot, (key, value, joined) in enumerate(slots):
            torch.testing.assert_close(kept[head].keys[slot].double(), key, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(
                kept[head].values[slot].double(), value, rtol=1e-4, atol=1e-5
            )
            assert float(kept[head].log_count[slot]) == pytest.approx(math.log1p(joined))


def test_ems_above_any_likeness_only_evicts() -> None:
    seen = observe(seed=5, num_tokens=30)
    kept = make("ems", 10, threshold=1.5).compress([seen])[0][1]

    assert torch.equal(kept.keys, seen.keys[1, kept.slots])
    assert not kept.log_count.any()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("budget", [0, -1, 0.0, 1.5, WINDOW + NUM_SINKS - 1])
def test_impossible_budgets_are_refused(name: str, budget: float) -> None:
    with pytest.raises(ValidationError):
        make(name, budget)
