"""The batched sampler draws what a slow one draws row by row, and keeps to its definitions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scheduler.domain.request import RequestBody, SamplingParams, Sequence
from workers.sampler import Sampler, uniform

VOCAB = 12
CHI_SQUARE_1_PER_MILLION = 53.0  # of 11 degrees of freedom


def sequence(
    params: dict[str, Any],
    prompt: tuple[int, ...] = (1, 2, 3),
    output: tuple[int, ...] = (),
    index: int = 0,
    request_id: str = "r",
) -> Sequence:
    body = RequestBody(
        request_id=request_id,
        tenant_id="t",
        base_model="m",
        prompt_token_ids=prompt,
        sampling=SamplingParams(**params),
    )
    return Sequence(body, index, [*prompt, *output], 0.0)


def random_logits(seed: int, rows: int = 1) -> Tensor:
    return 3 * torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed))


def draw(logits: Tensor, *sequences: Sequence) -> list[int | None]:
    return [token.token_id for token in Sampler().sample(logits, list(sequences)).read()]


def slow_weights(logits: Tensor, seq: Sequence) -> list[float]:
    """Unnormalised probability of each token, one definition after the other."""
    p = seq.request.sampling
    values = [float(x) for x in logits.double()]
    for token in range(VOCAB):
        if token in seq.token_ids:
            values[token] *= 1 / p.repetition_penalty if values[token] > 0 else p.repetition_penalty
        count = seq.output_token_ids.count(token)
        values[token] -= p.frequency_penalty * count + p.presence_penalty * (count > 0)
        values[token] += p.logit_bias.get(token, 0.0)
    if p.temperature == 0:
        best = max(range(VOCAB), key=lambda t: values[t])
        return [float(t == best) for t in range(VOCAB)]
    probs = torch.softmax(torch.tensor(values).double() / p.temperature, 0).tolist()
    order = sorted(range(VOCAB), key=lambda t: -probs[t])
    kept = order[: p.top_k] if p.top_k else order
    kept = [t for t in kept if probs[t] >= p.min_p * probs[order[0]]]
    nucleus: list[int] = []
    total, mass = sum(probs[t] for t in kept), 0.0
    for token in kept:
        if mass >= p.top_p * total and nucleus:
            break
        nucleus.append(token)
        mass += probs[token]
    return [probs[t] if t in nucleus else 0.0 for t in range(VOCAB)]


PARAMS = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.3, 1.0, 2.0]),
        "top_p": st.sampled_from([1.0, 0.95, 0.5, 0.01]),
        "top_k": st.sampled_from([0, 1, 3, 50]),
        "min_p": st.sampled_from([0.0, 0.05, 0.9]),
        "presence_penalty": st.sampled_from([0.0, 1.5, -2.0]),
        "frequency_penalty": st.sampled_from([0.0, 0.7, -0.4]),
        "repetition_penalty": st.sampled_from([1.0, 1.3, 0.5]),
        "logit_bias": st.dictionaries(st.integers(0, VOCAB - 1), st.sampled_from([-100, 2, 100])),
        "seed": st.integers(-(2**63), 2**63 - 1),
    }
)
OUTPUTS = st.lists(st.integers(0, VOCAB - 1), max_size=6).map(tuple)


@settings(max_examples=200, deadline=None)
@given(params=PARAMS, output=OUTPUTS, seed=st.integers(0, 2**32))
def test_a_drawn_token_is_the_one_a_slow_row_by_row_sampler_draws(
    params: dict[str, Any], output: tuple[int, ...], seed: int
) -> None:
    logits, seq = random_logits(seed), sequence(params, output=output)
    weights = slow_weights(logits[0], seq)
    mark, cumulative, edges = uniform(seq) * sum(weights), 0.0, []
    for weight in weights:
        cumulative += weight
        edges.append(cumulative)

    (token,) = draw(logits, seq)

    assert token is not None
    assert weights[token] > 0
    low = edges[token] - weights[token]
    assert low - 1e-5 <= mark <= edges[token] + 1e-5


@settings(max_examples=40, deadline=None)
@given(batch=st.lists(st.tuples(PARAMS, OUTPUTS), min_size=1, max_size=8), seed=st.integers(0, 99))
def test_each_row_of_a_batch_draws_what_it_draws_alone(
    batch: list[tuple[dict[str, Any], tuple[int, ...]]], seed: int
) -> None:
    logits = random_logits(seed, len(batch))
    before = logits.clone()
    sequences = [sequence(params, output=output) for params, output in batch]

    together = draw(logits, *sequences)

    assert together == [draw(logits[i : i + 1], s)[0] for i, s in enumerate(sequences)]
    assert torch.equal(logits, before)


def test_a_seed_repeats_itself_whatever_the_request_is_called() -> None:
    logits = torch.zeros(1, VOCAB)

    def answer(request_id: str, index: int, seed: int | None) -> list[int | None]:
        params = {"seed": seed}
        return [
            draw(logits, sequence(params, output=(0,) * i, index=index, request_id=request_id))[0]
            for i in range(20)
        ]

    assert answer("a", 0, 5) == answer("b", 0, 5)
    assert answer("a", 0, 5) != answer("a", 1, 5)
    assert answer("a", 0, 5) != answer("a", 0, 6)
    assert answer("a", 0, None) != answer("b", 0, None)


@pytest.mark.parametrize(
    "params", [{}, {"temperature": 0.5}, {"top_k": 4}, {"top_p": 0.8}, {"min_p": 0.1}]
)
def test_draws_are_distributed_as_the_weights_say(params: dict[str, Any]) -> None:
    draws = 4000
    logits = random_logits(3) / 2
    weights = torch.tensor(slow_weights(logits[0], sequence(params)))
    expected = draws * weights / weights.sum()
    sequences = [sequence(params, request_id=f"r{i}") for i in range(draws)]

    tokens = draw(logits.expand(draws, VOCAB), *sequences)

    counts = torch.tensor([tokens.count(t) for t in range(VOCAB)])
    assert not counts[expected == 0].any()
    used = expected > 0
    statistic = ((counts[used] - expected[used]) ** 2 / expected[used]).sum()
    assert float(statistic) < CHI_SQUARE_1_PER_MILLION


@pytest.mark.parametrize("temperature", [0.0, 1e-40, 1e-7])
def test_a_vanishing_temperature_takes_the_best_token(temperature: float) -> None:
    logits = random_logits(1)

    assert draw(logits, sequence({"temperature": temperature})) == [int(logits.argmax())]


def test_the_highest_number_still_picks_a_token_that_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("workers.sampler.uniform", lambda _: 1 - 2**-24)
    for seed in range(200):
        logits = random_logits(seed)
        logits[0, 6:] = -100.0

        (token,) = draw(logits, sequence({"top_k": 6}))

        assert token is not None
        assert token < 6


def test_a_banned_token_is_never_drawn_and_a_forced_one_always_is() -> None:
    logits = torch.zeros(1, VOCAB)
    ban, force = {"logit_bias": {4: -100}}, {"logit_bias": {4: 100}}

    assert 4 not in {draw(logits, sequence(ban, request_id=f"r{i}"))[0] for i in range(200)}
    assert {draw(logits, sequence(force, request_id=f"r{i}"))[0] for i in range(50)} == {4}


def test_logprobs_are_the_log_softmax_of_the_unmodified_logits() -> None:
    logits = random_logits(8)
    want = torch.log_softmax(logits[0], 0)
    params = {"temperature": 0.7, "num_logprobs": 3, "logit_bias": {5: 100}}

    (token,) = Sampler().sample(logits, [sequence(params)]).read()

    assert token.token_id == 5
    assert token.logprobs is not None
    assert token.logprobs.logprob == pytest.approx(float(want[5]))
    assert token.logprobs.rank == 1 + int((want > want[5]).sum())
    assert token.logprobs.top_ids == tuple(want.topk(3).indices.tolist())
    assert token.logprobs.top_logprobs == pytest.approx(want.topk(3).values.tolist())


def test_more_alternatives_than_tokens_are_all_tokens() -> None:
    (token,) = Sampler().sample(random_logits(1), [sequence({"num_logprobs": 20})]).read()

    assert token.logprobs is not None
    assert len(token.logprobs.top_ids) == VOCAB


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_give_no_token_to_their_row_only(
    poison: float, temperature: float
) -> None:
    logits = random_logits(2, rows=3)
    params = {"temperature": temperature, "num_logprobs": 2, "top_p": 0.9}
    sequences = [sequence(params, request_id=f"r{i}") for i in range(3)]
    clean = draw(logits, *sequences)
    logits[1, 7] = poison

    tokens = draw(logits, *sequences)

    assert tokens == [clean[0], None, clean[2]]
