"""What a caller sees of a worker's death: a pause at most, and an error after the second one."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest

from service.worker_pool import Move
from tests.integration.gateway.caller import HELLO
from tests.integration.gateway.conftest import ANSWER, BASE, wait_until
from tests.integration.gateway.fake_worker import Plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from openai import OpenAI

    from scheduler.domain.request import RequestBody
    from tests.integration.gateway.conftest import Service
    from tests.integration.gateway.fake_worker import FakeWorker

PLACES = (0, 1, 9, len(ANSWER.encode()))  # tokens are bytes: 9 is within the two of ö


@pytest.fixture
def doomed(service: Service, worker: FakeWorker) -> Iterator[FakeWorker]:
    """A worker that every request goes to first, and whose engine dies at frame 8."""
    fake = service.start_worker("doomed")
    fake.plan = dying(service, at=8)
    worker.num_waiting = 50
    roster = service.gateway.engines.pool.roster
    wait_until(lambda: any(w.stats and w.stats.num_waiting == 50 for w in roster.workers))
    yield fake
    service.kill_worker(fake)
    service.thread.run(worker.channel.withdraw("doomed"))
    wait_until(lambda: len(roster.workers) == 1)


def dying(service: Service, at: int, **how: Any) -> Callable[[RequestBody], Plan]:
    """The plan of a worker whose engine dies at a frame."""
    token_ids = service.tokenizer.encode(ANSWER)
    return lambda _: Plan(token_ids, fail_at=at, fail_code="worker_lost", **how)


def moves(service: Service, move: Move) -> float:
    """How often the gateway says that it did so."""
    text = service.http.get("/metrics").text
    name = f'tandem_request_moves_total{{move="{move}"}} '
    return float(next(line for line in text.splitlines() if line.startswith(name)).split()[-1])


@pytest.mark.parametrize("place", PLACES)
def test_an_answer_goes_on_elsewhere_as_if_nothing_had_happened(
    service: Service, client: OpenAI, worker: FakeWorker, doomed: FakeWorker, place: int
) -> None:
    doomed.plan = dying(service, at=place)
    before = {move: moves(service, move) for move in Move}

    stream = client.chat.completions.create(
        model=BASE, messages=HELLO, stream=True, logprobs=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    *chunks, last = list(stream)

    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ANSWER
    assert chunks[-1].choices[0].finish_reason == "stop"
    scored = [c.choices[0].logprobs.content for c in chunks if c.choices[0].logprobs]
    assert sum(len(tokens or ()) for tokens in scored) == len(ANSWER.encode())
    assert last.usage.completion_tokens == len(ANSWER.encode()) + 1
    assert last.usage.prompt_tokens == len(doomed.requests[0].prompt_token_ids)
    (rest,) = worker.requests
    assert rest.prompt_token_ids == doomed.requests[0].prompt_token_ids
    assert [len(answer.token_ids) for answer in rest.begun] == ([place] if place else [])
    kind = Move.CONTINUATION if place else Move.RETRY
    after = {move: moves(service, move) for move in Move}
    assert after == before | {kind: before[kind] + 1}


@pytest.mark.usefixtures("doomed")
def test_a_whole_answer_hides_the_death_as_well(client: OpenAI) -> None:
    answer = client.completions.create(model=BASE, prompt="Say hello", max_tokens=100)

    assert answer.choices[0].text == ANSWER
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len(ANSWER.encode()) + 1


@pytest.mark.usefixtures("doomed")
def test_a_stop_string_across_the_death_leaves_no_trace(client: OpenAI) -> None:
    answer = client.completions.create(model=BASE, prompt="Say hello", max_tokens=100, stop=" wör")

    assert answer.choices[0].text == "Hello,"
    assert answer.choices[0].finish_reason == "stop"


def test_only_the_answers_that_still_run_go_on(
    service: Service, client: OpenAI, worker: FakeWorker, doomed: FakeWorker
) -> None:
    doomed.plan = dying(service, at=13)  # six tokens of each, and one more of the first

    answer = client.completions.create(model=BASE, prompt="Say hello", max_tokens=100, n=2)

    assert [choice.text for choice in answer.choices] == [ANSWER, ANSWER]
    (rest,) = worker.requests
    assert [(begun.index, len(begun.token_ids)) for begun in rest.begun] == [(0, 7), (1, 6)]


def test_an_answer_that_was_stopped_before_the_death_stays_stopped(
    service: Service, client: OpenAI, worker: FakeWorker, doomed: FakeWorker
) -> None:
    doomed.plan = dying(service, at=12, delay_s=0.05)

    answer = client.completions.create(
        model=BASE, prompt="Say hello", max_tokens=100, n=1, stop="llo"
    )

    assert answer.choices[0].text == "He"
    wait_until(lambda: bool(doomed.aborts))
    assert worker.requests == []


@pytest.mark.usefixtures("doomed")
def test_a_second_death_ends_the_stream_with_openais_error(
    service: Service, worker: FakeWorker
) -> None:
    worker.plan = dying(service, at=2)
    headers = {"authorization": f"Bearer {service.tenant()[1]}"}
    body = {"model": BASE, "messages": HELLO, "stream": True}
    before = moves(service, Move.NONE)

    url = f"{service.url}/v1/chat/completions"
    with httpx.stream("POST", url, json=body, headers=headers, timeout=20) as response:
        lines = [line for line in response.iter_lines() if line]

    assert '"code":"worker_lost"' in lines[-1]
    assert '"message":"The worker stopped amid the answer; send the request again."' in lines[-1]
    assert moves(service, Move.NONE) == before + 1


def test_a_request_that_kills_every_worker_meets_three_at_most(
    service: Service, client: OpenAI, worker: FakeWorker, doomed: FakeWorker
) -> None:
    """One death before a token, one amid the answer; the next is the last."""
    doomed.plan = worker.plan = dying(service, at=0)
    third = service.start_worker("third")
    third.plan = dying(service, at=2)

    with pytest.raises(openai.APIError) as caught:
        client.completions.create(model=BASE, prompt="Say hello", max_tokens=100)

    service.kill_worker(third)
    assert caught.value.code == "worker_lost"
    assert sum(len(one.requests) for one in (worker, doomed, third)) <= 3


def test_without_another_worker_the_caller_is_told(
    service: Service, client: OpenAI, worker: FakeWorker
) -> None:
    worker.plan = dying(service, at=3)

    with pytest.raises(openai.InternalServerError) as caught:
        client.completions.create(model=BASE, prompt="Say hello", max_tokens=100)

    assert caught.value.code == "worker_lost"
    assert len(worker.requests) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_worker_that_vanishes_is_missed_and_its_requests_move(
    service: Service, worker: FakeWorker, doomed: FakeWorker, stream: bool
) -> None:
    doomed.plan = lambda _: Plan([], silent=True)

    with (
        service.client(service.tenant()[1]) as other,
        ThreadPoolExecutor(1) as threads,
    ):
        asking = threads.submit(
            lambda: other.chat.completions.create(model=BASE, messages=HELLO, stream=stream)
        )
        wait_until(lambda: len(doomed.requests) == 1)
        service.kill_worker(doomed)
        answer = asking.result(20)
        if stream:
            text = "".join(chunk.choices[0].delta.content or "" for chunk in answer)
        else:
            text = answer.choices[0].message.content

    assert text == ANSWER
    assert worker.requests[0].prompt_token_ids == doomed.requests[0].prompt_token_ids


def test_a_worker_that_was_only_cut_off_is_told_to_stop(
    service: Service, client: OpenAI, worker: FakeWorker, doomed: FakeWorker
) -> None:
    """Its announcements stop while it goes on; what it still says reaches nobody."""
    token_ids = service.tokenizer.encode(ANSWER)
    doomed.plan = lambda _: Plan(token_ids, delay_s=0.3)
    stream = client.chat.completions.create(model=BASE, messages=HELLO, stream=True)
    first = next(iter(stream))

    service.thread.loop.call_soon_threadsafe(doomed.mute)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    assert (first.choices[0].delta.content or "") + text == ANSWER
    wait_until(lambda: len(doomed.aborts) == 1)
    assert len(worker.requests) == 1


def test_a_caller_who_has_left_is_not_taken_elsewhere(
    service: Service, client: OpenAI, worker: FakeWorker, doomed: FakeWorker
) -> None:
    token_ids = service.tokenizer.encode(ANSWER)
    doomed.plan = lambda _: Plan(token_ids, delay_s=0.1)
    stream = client.chat.completions.create(model=BASE, messages=HELLO, stream=True)
    next(iter(stream))

    stream.close()
    wait_until(lambda: len(doomed.aborts) == 1)
    service.thread.loop.call_soon_threadsafe(doomed.mute)
    wait_until(lambda: len(service.gateway.engines.pool.roster.workers) == 1)
    time.sleep(0.1)

    assert worker.requests == []


def test_a_gateway_says_that_it_listens_as_long_as_it_waits(
    service: Service, client: OpenAI, worker: FakeWorker
) -> None:
    token_ids = service.tokenizer.encode(ANSWER)
    worker.plan = lambda _: Plan(token_ids, delay_s=0.05)
    before = worker.num_told

    client.completions.create(model=BASE, prompt="Say hello", max_tokens=100)

    while_asked = worker.num_told
    assert while_asked - before >= 2
    time.sleep(3 * service.settings.refresh_s)
    assert worker.num_told <= while_asked + 1  # one may have been on its way
