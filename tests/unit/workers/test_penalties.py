"""Penalties of all rows at once are those of each row's own definition."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.domain.request import RequestBody, SamplingParams, Sequence
from workers.penalties import penalise

VOCAB = 9
TOKENS = st.lists(st.integers(0, VOCAB - 1), max_size=6)
PARAMS = st.fixed_dictionaries(
    {
        "presence_penalty": st.sampled_from([0.0, 1.5, -2.0]),
        "frequency_penalty": st.sampled_from([0.0, 0.75, -0.5]),
        "repetition_penalty": st.sampled_from([1.0, 2.0, 0.5]),
        "logit_bias": st.dictionaries(st.integers(0, VOCAB - 1), st.sampled_from([-100, 2])),
    }
)


def sequence(params: dict[str, Any], prompt: list[int], output: list[int]) -> Sequence:
    body = RequestBody(
        request_id="r",
        tenant_id="t",
        base_model="m",
        prompt_token_ids=(0, *prompt),
        sampling=SamplingParams(**params),
    )
    return Sequence(body, 0, [0, *prompt, *output], 0.0)


def slow(logits: list[float], own: Sequence) -> list[float]:
    params, result = own.request.sampling, []
    for token, value in enumerate(logits):
        count = own.output_token_ids.count(token)
        if token in own.token_ids:
            factor = params.repetition_penalty
            value = value / factor if value > 0 else value * factor
        value -= params.frequency_penalty * count + params.presence_penalty * (count > 0)
        result.append(value + params.logit_bias.get(token, 0.0))
    return result


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(st.tuples(PARAMS, TOKENS, TOKENS), min_size=1, max_size=5))
def test_each_row_gets_its_own_penalties(
    rows: list[tuple[dict[str, Any], list[int], list[int]]],
) -> None:
    sequences = [sequence(*row) for row in rows]
    logits = torch.randn(len(rows), VOCAB, dtype=torch.float64)
    before = logits.clone()

    got = penalise(logits, sequences)

    want = [slow(line, own) for line, own in zip(logits.tolist(), sequences, strict=True)]
    assert torch.allclose(got, torch.tensor(want, dtype=torch.float64), rtol=0, atol=1e-12)
    assert torch.equal(logits, before)


def test_rows_that_ask_for_none_are_not_copied() -> None:
    logits = torch.randn(2, VOCAB)

    assert penalise(logits, [sequence({}, [1], [2])] * 2) is logits
