"""`tandem up` from nothing to an adapter that answers, through the official SDK."""

from __future__ import annotations

import os
import re
import signal
import stat
from typing import TYPE_CHECKING

import httpx
import pytest
from openai import BadRequestError, NotFoundError

from tests.e2e.calls import QUESTION
from tests.e2e.service import (
    BASE_MODEL,
    RunningService,
    descendants,
    finished,
    start,
    start_job,
    steps,
    until,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from openai import OpenAI

pytestmark = pytest.mark.e2e

PAGE_TOKENS = 32  # the default


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    running = start(tmp_path_factory.mktemp("up"))
    yield running
    running.stop()


def _say(client: OpenAI, model: str, **options: object) -> str:
    answer = client.chat.completions.create(
        model=model,
        messages=QUESTION,
        max_tokens=8,
        temperature=0,
        **options,
    )
    text: str = answer.choices[0].message.content
    return text


def test_the_first_key_lies_in_a_private_file_and_in_no_output(service: RunningService) -> None:
    assert stat.S_IMODE((service.data / "admin.key").stat().st_mode) == 0o600
    assert service.admin_key.startswith("sk-tandem-")
    assert service.admin_key not in service.output + service.log


def test_a_job_becomes_an_adapter_that_answers_at_once(service: RunningService) -> None:
    client = service.tenant("whole-flow")

    job = finished(client, start_job(client, suffix="first"))

    assert job.status == "succeeded"
    assert job.fine_tuned_model is not None
    assert job.fine_tuned_model.startswith(f"ft:{BASE_MODEL}:whole-flow:first:")
    assert steps(client, job) == [1, 2, 3, 4]  # 8 examples, 2 epochs, batches of 4
    assert _say(client, job.fine_tuned_model)
    assert job.fine_tuned_model in [model.id for model in client.models.list()]


def test_streamed_chunks_add_up_to_the_whole_answer(service: RunningService) -> None:
    client = service.tenant("streams")
    whole = _say(client, BASE_MODEL)

    with client.chat.completions.create(
        model=BASE_MODEL,
        messages=QUESTION,
        max_tokens=8,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        chunks = list(stream)

    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 8 or chunks[-2].choices[0].finish_reason == "stop"


def test_a_compressed_prompt_begins_its_answer_like_the_whole_one(
    service: RunningService,
) -> None:
    client = service.tenant("compresses")
    asked = {"model": BASE_MODEL, "prompt": "How are you? " * 20, "temperature": 0}
    choice = {"kv_policy": {"type": "ems", "budget": 0.25, "window": 8}}

    whole = client.completions.create(**asked, max_tokens=1)
    short = client.completions.create(**asked, max_tokens=8, extra_body=choice)

    assert short.choices[0].text.startswith(whole.choices[0].text)
    assert short.usage is not None
    kept, prompt = short.usage.model_extra["kv_tokens"]["kept"], short.usage.prompt_tokens
    assert kept == int(prompt * 0.25)
    assert short.usage.model_extra["kv_tokens"]["dropped"] == prompt - kept


def test_what_a_prompt_shares_with_an_earlier_one_of_the_tenant_is_not_computed_again(
    service: RunningService,
) -> None:
    client, stranger = service.tenant("repeats"), service.tenant("repeats-too")
    text = "one two three four five six seven eight nine ten " * 20

    def usage(caller: OpenAI, ending: str) -> tuple[int, int]:
        answer = caller.completions.create(model=BASE_MODEL, prompt=text + ending, max_tokens=4)
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        return answer.usage.prompt_tokens, answer.usage.prompt_tokens_details.cached_tokens or 0

    first, second, foreign = usage(client, "red"), usage(client, "blue"), usage(stranger, "red")
    with client.completions.create(
        model=BASE_MODEL,
        prompt=text + "green",
        max_tokens=4,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        *_, last = stream

    assert first[1] == foreign[1] == 0
    assert second[0] - PAGE_TOKENS - 2 <= second[1] < second[0]
    assert second[1] % PAGE_TOKENS == 0
    assert last.usage is not None
    assert last.usage.prompt_tokens_details is not None
    assert last.usage.prompt_tokens_details.cached_tokens == second[1]
    until(lambda: _counted(service, "hits") >= 2 * second[1])
    assert _counted(service, "queries") >= 4 * first[0] - 8


def _counted(service: RunningService, what: str) -> float:
    """A counter of the prefix cache, as Prometheus sees it."""
    text = httpx.get(f"{service.url}/metrics").text
    found = re.findall(rf"^vllm:prefix_cache_{what}_total{{.*}} (\S+)$", text, re.M)
    return sum(map(float, found))


def test_a_tenant_cannot_see_what_belongs_to_another(service: RunningService) -> None:
    owner, stranger = service.tenant("owner"), service.tenant("stranger")
    job = finished(owner, start_job(owner))
    assert job.fine_tuned_model is not None

    assert list(stranger.fine_tuning.jobs.list()) == []
    assert list(stranger.files.list()) == []
    with pytest.raises(NotFoundError):
        stranger.fine_tuning.jobs.retrieve(job.id)
    with pytest.raises(NotFoundError):
        stranger.files.content(job.training_file)
    with pytest.raises(NotFoundError):
        _say(stranger, job.fine_tuned_model)


def test_a_running_job_can_be_cancelled(service: RunningService) -> None:
    client = service.tenant("cancels")
    job = start_job(client, examples=64, epochs=50, batch=1)
    until(lambda: len(steps(client, job)) > 0)

    client.fine_tuning.jobs.cancel(job.id)

    assert finished(client, job).status == "cancelled"


def test_a_paused_job_goes_on_where_it_was(service: RunningService) -> None:
    client = service.tenant("pauses")
    job = start_job(client, examples=200, epochs=2, batch=1)
    until(lambda: len(steps(client, job)) > 2)

    client.fine_tuning.jobs.pause(job.id)
    until(lambda: client.fine_tuning.jobs.retrieve(job.id).status == "paused")
    paused_at = steps(client, job)[-1]
    client.fine_tuning.jobs.resume(job.id)

    assert finished(client, job).status == "succeeded"
    assert paused_at < 400
    assert steps(client, job)[-1] == 400


def test_bad_data_fails_the_job_with_its_line(service: RunningService) -> None:
    client = service.tenant("bad-data")
    file = client.files.create(file=("train.jsonl", b'{"messages": 1}\n'), purpose="fine-tune")

    job = finished(client, client.fine_tuning.jobs.create(model=BASE_MODEL, training_file=file.id))

    assert job.status == "failed"
    assert job.error is not None
    assert "line 1" in job.error.message


def test_a_rank_over_the_limit_is_refused_before_anything_is_made(
    service: RunningService,
) -> None:
    client = service.tenant("greedy")

    with pytest.raises(BadRequestError, match="rank"):
        start_job(client, rank=100_000)

    assert list(client.fine_tuning.jobs.list()) == []


def test_a_killed_engine_costs_the_job_nothing_but_time(service: RunningService) -> None:
    client = service.tenant("survivor")
    job = start_job(client, examples=40, epochs=2, batch=1, checkpoint_every_steps=5)
    until(lambda: len(list(client.fine_tuning.jobs.checkpoints.list(job.id))) > 0)

    os.kill(_engine_pid(service), signal.SIGKILL)

    assert finished(client, job).status == "succeeded"
    assert _say(client, BASE_MODEL) is not None


def _engine_pid(service: RunningService) -> int:
    children = descendants(service.process.pid)
    return next(pid for pid, command in children if "workers.engine_child" in command)


def test_a_second_start_goes_on_with_what_was_running(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    data = tmp_path_factory.mktemp("twice")
    first = start(data)
    client = first.tenant("patient")
    job = start_job(client, examples=64, epochs=3, batch=1)
    until(lambda: len(steps(client, job)) > 2)
    assert first.stop() == 0

    second = start(data)
    try:
        client = client.with_options(base_url=f"{second.url}/v1")
        until(lambda: steps(client, job)[-1] > 5 or finished(client, job).status == "succeeded")
        messages = [event.message for event in client.fine_tuning.jobs.list_events(job.id)]
    finally:
        second.stop()

    assert any(message.startswith("Training resumes at step") for message in messages)


def test_a_service_stops_cleanly_and_leaves_no_process(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    running = start(tmp_path_factory.mktemp("stops"))
    children = [pid for pid, _ in descendants(running.process.pid)]

    status = running.stop()

    assert status == 0
    assert len(children) >= 4  # scheduler, worker, its engine, gateway
    until(lambda: not [pid for pid in children if os.path.exists(f"/proc/{pid}")])
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{running.url}/healthz")
