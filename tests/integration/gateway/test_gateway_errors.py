"""Refusals: always OpenAI's error object, the right status, and a param that helps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest

from tests.integration.gateway.caller import HELLO
from tests.integration.gateway.conftest import run_service, wait_until
from tests.integration.gateway.fake_worker import Plan
from tests.integration.gateway.tiny_folder import BASE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from openai import OpenAI

    from tests.integration.gateway.conftest import Service
    from tests.integration.gateway.fake_worker import FakeWorker


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A gateway with tight limits and a worker."""
    limits = {
        "max_body_bytes": 2000,
        "max_live_per_tenant": 2,
        "max_waiting_per_worker": 3,
        "slow_client_s": 0.5,
    }
    services = run_service(tmp_path_factory.mktemp("small"), **limits)
    service = next(services)
    worker = service.start_worker()
    worker.plan = lambda _: Plan([], silent=True)
    yield service
    service.kill_worker(worker)
    next(services, None)


def assert_error(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The body is an error object with all four fields, and nothing else."""
    body = response.json()
    assert response.status_code == status
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["code"] == code
    assert body["error"]["message"].endswith((".", ";"))
    assert response.headers["x-request-id"]
    assert response.headers["openai-processing-ms"].isdecimal()
    return dict(body["error"])


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("temperature", 2.5, "temperature"),
        ("temperature", "0.5", "temperature"),
        ("top_p", -0.1, "top_p"),
        ("n", 0, "n"),
        ("n", 9, "n"),
        ("n", True, "n"),
        ("stop", ["a", "b", "c", "d", "e"], "stop"),
        ("stop", [""], "stop"),
        ("stop", 5, "stop"),
        ("max_tokens", -1, "max_tokens"),
        ("max_completion_tokens", 0, "max_completion_tokens"),
        ("top_logprobs", 3, "top_logprobs"),
        ("logprobs", 3, "logprobs"),
        ("messages", [], "messages"),
        ("messages", [{"role": "robot", "content": "x"}], "messages.0.role"),
        ("messages", [{"role": "user", "content": 5}], "messages.0.content"),
        (
            "messages",
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
            "messages.0.content",
        ),
        ("logit_bias", {"a": 1}, "logit_bias"),
        ("logit_bias", {"9" * 5000: 1}, "logit_bias"),
        ("top_k", 2**64, "top_k"),
        ("response_format", {"type": "json_object"}, "response_format"),
        ("tool_choice", "required", "tool_choice"),
        ("functions", [{"name": "f"}], "functions"),
        ("audio", {"voice": "x"}, "audio"),
        ("min_tokens", 4, "min_tokens"),
        ("seed", 2**70, "seed"),
        ("stream_options", {"include_usage": "yes"}, "stream_options.include_usage"),
    ],
)
def test_a_wrong_field_is_refused_by_name(
    service: Service, worker: FakeWorker, field: str, value: object, param: str
) -> None:
    headers = {"authorization": f"Bearer {service.tenant()[1]}"}
    body = {"model": BASE, "messages": HELLO, field: value}

    response = service.http.post("/v1/chat/completions", json=body, headers=headers)

    error = assert_error(response, 400, "invalid_value")
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert worker.requests == []


@pytest.mark.usefixtures("worker")
def test_a_prompt_over_the_context_is_refused(client: OpenAI) -> None:
    long: list[Any] = [{"role": "user", "content": "x" * 600}]

    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=BASE, messages=long)

    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "messages"


@pytest.mark.usefixtures("worker")
def test_asking_for_more_tokens_than_fit_is_refused(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=BASE, prompt="abc", max_tokens=510)

    assert caught.value.code == "context_length_exceeded"
    assert "at most 509" in str(caught.value)


@pytest.mark.usefixtures("worker")
def test_an_unknown_model_is_not_found(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-unknown", messages=HELLO)

    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"


def test_a_missing_model_is_named(service: Service) -> None:
    headers = {"authorization": f"Bearer {service.tenant()[1]}"}

    response = service.http.post("/v1/chat/completions", json={"messages": HELLO}, headers=headers)

    assert assert_error(response, 400, "invalid_value")["param"] == "model"


def test_a_body_that_is_not_json_is_refused(service: Service) -> None:
    headers = {"authorization": f"Bearer {service.tenant()[1]}", "content-type": "application/json"}

    response = service.http.post("/v1/completions", content=b"{nope", headers=headers)

    assert_error(response, 400, "invalid_value")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer nope"},
        {"authorization": "Basic abc"},
        {"authorization": "Bearer sk-tandem-aaaaaaaa_" + "a" * 43 + "_000000"},
    ],
)
def test_without_a_good_key_nothing_is_told(service: Service, headers: dict[str, str]) -> None:
    response = service.http.get("/v1/models", headers=headers)

    assert_error(response, 401, "invalid_api_key")
    assert response.headers["www-authenticate"] == "Bearer"


def test_every_route_but_health_needs_a_key(service: Service) -> None:
    open_paths = {"/healthz", "/readyz", "/metrics"}
    paths = service.app.openapi()["paths"]
    bodies = {
        "/chat/completions": {"messages": HELLO, "model": BASE},
        "/completions": {"prompt": "a", "model": BASE},
        "/fine_tuning/jobs": {"model": BASE, "training_file": "f"},
        "/admin/tenants": {"name": "x"},
        "/keys": {},
    }

    answered = {}
    for path, operations in paths.items():
        for method in operations:
            body = next((b for end, b in bodies.items() if path.endswith(end)), None)
            body = body if method == "post" else None
            url = service.url + path.replace("{", "").replace("}", "")
            answered[method, path] = service.http.request(method, url, json=body).status_code

    refused = {path for (_, path), status in answered.items() if status == 401}
    assert refused == set(paths) - open_paths


def test_unknown_routes_and_methods_answer_with_the_error_object(service: Service) -> None:
    assert_error(service.http.get("/v1/nothing"), 404, "not_found")
    assert_error(service.http.delete("/v1/chat/completions"), 405, "method_not_allowed")


def test_the_clients_request_id_comes_back_unless_it_is_odd(service: Service) -> None:
    mine = service.http.get("/healthz", headers={"x-request-id": "bench-17"})
    odd = service.http.get("/healthz", headers={"x-request-id": "a b" * 100})

    assert mine.headers["x-request-id"] == "bench-17"
    assert odd.headers["x-request-id"].startswith("req_")


def test_a_body_over_the_limit_is_refused_before_it_is_read(small: Service) -> None:
    headers = {"authorization": f"Bearer {small.tenant()[1]}"}
    body = {"model": BASE, "prompt": "x" * 3000}

    response = small.http.post("/v1/completions", json=body, headers=headers)

    assert_error(response, 413, "request_entity_too_large")


def test_a_body_without_a_length_is_cut_while_it_streams_in(small: Service) -> None:
    sent = []

    def endless() -> Iterator[bytes]:
        for _ in range(10_000):
            sent.append(1)
            yield b"x" * 1000

    headers = {"authorization": f"Bearer {small.tenant()[1]}", "content-type": "application/json"}
    try:
        response = small.http.post("/v1/completions", content=endless(), headers=headers)
        assert_error(response, 413, "request_entity_too_large")
    except httpx.WriteError:
        pass  # the server had answered and closed before the client looked
    assert len(sent) < 9_000


def test_a_tenants_own_limit_answers_429_at_once(small: Service) -> None:
    headers = {"authorization": f"Bearer {small.tenant()[1]}"}
    body = {"model": BASE, "prompt": "a", "n": 3}

    response = small.http.post("/v1/completions", json=body, headers=headers)

    assert_error(response, 429, "rate_limit_exceeded")
    assert response.headers["retry-after"] == "1"
    assert response.elapsed.total_seconds() < 1


def test_a_full_queue_answers_503_at_once(small: Service) -> None:
    pool = small.gateway.engines.pool
    wait_until(lambda: pool.live.num_waiting() == 0)
    keys = [small.tenant()[1] for _ in range(4)]
    waiting = [small.client(key).with_options(timeout=2) for key in keys[:3]]
    streams = [_start_stream(small, client, keys[i]) for i, client in enumerate(waiting)]
    wait_until(lambda: pool.live.num_waiting() == 3)

    response = small.http.post(
        "/v1/completions",
        json={"model": BASE, "prompt": "a"},
        headers={"authorization": f"Bearer {keys[3]}"},
    )

    assert_error(response, 503, "server_overloaded")
    assert response.headers["retry-after"] == "2"
    for stream in streams:
        stream.close()
    wait_until(lambda: pool.live.num_waiting() == 0)


def _start_stream(service: Service, client: OpenAI, key: str) -> httpx.Client:
    """A raw connection that has asked and is waiting."""
    del client
    raw = httpx.Client(base_url=service.url, timeout=5)
    request = raw.build_request(
        "POST",
        "/v1/completions",
        json={"model": BASE, "prompt": "a", "stream": True},
        headers={"authorization": f"Bearer {key}"},
    )
    raw.send(request, stream=True)
    return raw


def test_without_a_worker_the_service_says_so(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    services = run_service(tmp_path_factory.mktemp("idle"))
    idle = next(services)
    headers = {"authorization": f"Bearer {idle.tenant()[1]}"}

    ready = idle.http.get("/readyz")
    answer = idle.http.post("/v1/completions", json={"model": BASE, "prompt": "a"}, headers=headers)
    job = idle.http.post(
        "/v1/fine_tuning/jobs",
        json={"model": BASE, "training_file": "f"},
        headers=headers,
    )

    assert_error(ready, 503, "server_overloaded")
    assert_error(answer, 503, "server_overloaded")
    assert_error(job, 503, "server_overloaded")
    assert idle.http.get("/healthz").json() == {"status": "ok"}
    next(services, None)
