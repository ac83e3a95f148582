"""An answer that one worker has begun and another goes on with is that of one worker alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from scheduler.domain.request import BegunAnswer, KvPolicyChoice, RequestBody
from tests.integration.engine_driver import TinyEngine, generate, mixed, prompt

if TYPE_CHECKING:
    from pathlib import Path

    from scheduler.domain.messages import Generate

NUM_TOKENS = 12
CUTS = (1, 5, NUM_TOKENS - 1)
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "seeded": {"temperature": 1.3, "top_p": 0.9, "seed": 5},
    "penalised": {"temperature": 1.0, "seed": 6, "frequency_penalty": 1.5, "presence_penalty": 1.0},
    "repetition-penalised": {"repetition_penalty": 2.0, "logit_bias": {7: 2.0}},
}
PROMPT = prompt(3, 40)
SNAPKV = KvPolicyChoice(type="snapkv", options={"budget": 20, "window": 6, "num_sinks": 2})


@pytest.fixture
def engine(tmp_path: Path) -> TinyEngine:
    return TinyEngine(tmp_path)


def gone_on(order: Generate, tokens: dict[int, list[int]], name: str) -> Generate:
    """The order for the rest of answers that have these tokens."""
    begun = tuple(BegunAnswer(index=i, token_ids=tuple(ids)) for i, ids in tokens.items())
    changes = {"request_id": name, "begun": begun}
    return order.model_copy(update={"request": order.request.model_copy(update=changes)})


def assert_gone_on_equally(engine: TinyEngine, order: Generate) -> None:
    """Cut the order's answer at several places; every rest equals the unbroken answer's."""
    whole = engine.complete(order)
    tokens, wanted = whole.tokens("r"), whole.logprobs("r")
    assert len(tokens) == NUM_TOKENS

    rests = engine.complete(*(gone_on(order, {0: tokens[:cut]}, f"r-{cut}") for cut in CUTS))

    for cut in CUTS:
        assert rests.tokens(f"r-{cut}") == tokens[cut:]
        found = [line.logprob for line in rests.logprobs(f"r-{cut}")]
        assert found == pytest.approx([line.logprob for line in wanted[cut:]], abs=1e-4)
        assert {frame.num_cached_tokens for frame in rests.frames(f"r-{cut}")} == {0}


@pytest.mark.parametrize("way", WAYS)
def test_the_rest_of_an_answer_is_that_of_the_unbroken_one(engine: TinyEngine, way: str) -> None:
    sampling = {"max_tokens": NUM_TOKENS, "num_logprobs": 2} | WAYS[way]

    assert_gone_on_equally(engine, generate("r", PROMPT, **sampling))


def test_a_compressed_prompt_is_compressed_alike_and_its_answer_goes_on(
    engine: TinyEngine,
) -> None:
    order = generate("r", PROMPT, kv_policy=SNAPKV, max_tokens=NUM_TOKENS, num_logprobs=2)

    assert_gone_on_equally(engine, order)


def test_an_answer_of_several_models_goes_on(engine: TinyEngine) -> None:
    folder = engine.adapter("a", 4, ("q_proj", "v_proj"))
    order = generate("r", PROMPT, max_tokens=NUM_TOKENS, num_logprobs=2)

    assert_gone_on_equally(engine, mixed(order, (None, -0.5), (folder, 1.5)))


def test_only_the_answers_that_have_not_ended_go_on_under_their_own_index(
    engine: TinyEngine,
) -> None:
    order = generate("r", PROMPT, n=3, temperature=1.5, seed=1, max_tokens=NUM_TOKENS)
    whole = engine.complete(order)

    rest = engine.complete(gone_on(order, {1: whole.tokens("r", 1)[:4], 2: []}, "rest"))

    assert [rest.tokens("rest", index) for index in range(3)] == [
        [],
        whole.tokens("r", 1)[4:],
        whole.tokens("r", 2),
    ]


def test_the_end_token_and_the_limit_count_what_was_there_before(engine: TinyEngine) -> None:
    free = engine.complete(generate("r", PROMPT, max_tokens=NUM_TOKENS)).tokens("r")
    stop = next(place for place in range(1, NUM_TOKENS) if free[place] not in free[:place])
    order = generate("r", PROMPT, max_tokens=NUM_TOKENS, stop_token_ids=(free[stop],))

    rest = engine.complete(gone_on(order, {0: free[:stop]}, "rest"))

    assert rest.tokens("rest") == [free[stop]]


def test_prompt_scores_come_again_only_with_an_answer_that_has_no_token_yet(
    engine: TinyEngine,
) -> None:
    order = generate("r", PROMPT, n=2, seed=1, temperature=1.0, prompt_logprobs=True)
    whole = engine.complete(order)
    first, second = (whole.tokens("r", index) for index in range(2))

    rests = engine.complete(
        gone_on(order, {0: first[:2], 1: second[:2]}, "begun"),
        gone_on(order, {0: [], 1: second[:2]}, "fresh"),
    )

    assert all(frame.prompt_logprobs is None for frame in rests.frames("begun"))
    scored = [f.prompt_logprobs for f in rests.frames("fresh") if f.prompt_logprobs]
    assert [len(line) for line in scored] == [len(PROMPT)]


@pytest.mark.parametrize(
    "begun",
    [
        [(0, (1,)), (0, (2,))],
        [(2, (1,))],
        [(1, (1, 2, 3, 4))],
    ],
    ids=["twice", "not one of n", "complete"],
)
def test_what_cannot_have_been_begun_is_refused_on_arrival(
    begun: list[tuple[int, tuple[int, ...]]],
) -> None:
    answers = [{"index": index, "token_ids": token_ids} for index, token_ids in begun]
    body = {"request_id": "r", "tenant_id": "t", "base_model": "b", "prompt_token_ids": (1,)}

    with pytest.raises(ValidationError, match="begun"):
        RequestBody.model_validate(
            {**body, "n": 2, "sampling": {"max_tokens": 4}, "begun": answers}
        )
