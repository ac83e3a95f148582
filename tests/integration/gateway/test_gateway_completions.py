"""Text completions through the official client."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import openai
import pytest

from tests.integration.gateway.conftest import ANSWER
from tests.integration.gateway.fake_worker import Plan
from tests.integration.gateway.tiny_folder import BASE

if TYPE_CHECKING:
    from openai import OpenAI

    from tests.integration.gateway.conftest import Service
    from tests.integration.gateway.fake_worker import FakeWorker


@pytest.mark.parametrize(
    ("prompt", "num_prompts"),
    [("ab", 1), (["ab", "cd"], 2), ([64, 65], 1), ([[64, 65], [66]], 2)],
)
def test_all_four_forms_of_a_prompt_work(
    service: Service, client: OpenAI, worker: FakeWorker, prompt: Any, num_prompts: int
) -> None:
    answer = client.completions.create(model=BASE, prompt=prompt, n=2)

    assert [choice.index for choice in answer.choices] == list(range(2 * num_prompts))
    assert {choice.text for choice in answer.choices} == {ANSWER}
    sent = [list(request.prompt_token_ids) for request in worker.requests]
    assert len(sent) == num_prompts
    if isinstance(prompt, str):
        assert sent == [service.tokenizer.encode(prompt)]


def test_sixteen_tokens_are_generated_unless_asked_otherwise(
    client: OpenAI, worker: FakeWorker
) -> None:
    client.completions.create(model=BASE, prompt="ab")

    assert worker.requests[0].sampling.max_tokens == 16


def test_answers_of_several_prompts_stay_with_their_prompts(
    service: Service, client: OpenAI, worker: FakeWorker
) -> None:
    from_prompt = {"ab": "first", "cd": "second"}
    encode = service.tokenizer.encode
    plans = {tuple(encode(prompt)): encode(text) for prompt, text in from_prompt.items()}
    worker.plan = lambda request: Plan(plans[request.prompt_token_ids])

    stream = client.completions.create(model=BASE, prompt=["ab", "cd"], n=2, stream=True)

    texts = [""] * 4
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == ["first", "first", "second", "second"]


@pytest.mark.usefixtures("worker")
def test_echo_with_logprobs_scores_the_prompt_too(client: OpenAI) -> None:
    answer = client.completions.create(
        model=BASE, prompt="abc", echo=True, logprobs=1, max_tokens=2
    )

    choice = answer.choices[0]
    assert choice.text == "abc" + ANSWER[:2]
    assert choice.logprobs is not None
    assert choice.logprobs.tokens == ["a", "b", "c", "H", "e"]
    assert choice.logprobs.token_logprobs == [None, -0.5, -0.5, -0.5, -0.5]
    assert choice.logprobs.text_offset == [0, 1, 2, 3, 4]
    assert choice.logprobs.top_logprobs is not None
    assert choice.logprobs.top_logprobs[0] is None
    assert choice.logprobs.top_logprobs[3] == {"H": -0.5}


def test_a_prompt_can_be_scored_without_generating(client: OpenAI, worker: FakeWorker) -> None:
    answer = client.completions.create(
        model=BASE, prompt=[[64, 65, 66]], echo=True, logprobs=1, max_tokens=0
    )

    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.token_logprobs == [None, -0.5, -0.5]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 0
    assert worker.requests[0].sampling.prompt_logprobs


@pytest.mark.usefixtures("worker")
def test_a_stream_begins_with_the_echo_and_ends_with_usage(client: OpenAI) -> None:
    stream = client.completions.create(
        model=BASE,
        prompt="abc",
        echo=True,
        stream=True,
        max_tokens=2,
        stream_options={"include_usage": True},
    )

    chunks = list(stream)
    assert [chunk.choices[0].text for chunk in chunks[:-1]] == ["abcH", "e"]
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 5


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": [300]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "best_of": 3}, "best_of"),
        ({"prompt": "a", "extra_body": {"suffix": "b"}}, "suffix"),
        ({"prompt": ["a"] * 65}, "prompt"),
        ({"prompt": "a", "logit_bias": {"999": 1}}, "logit_bias"),
    ],
)
def test_bad_fields_are_named(
    client: OpenAI, worker: FakeWorker, body: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=BASE, **body)

    assert caught.value.param == param
    assert worker.requests == []
