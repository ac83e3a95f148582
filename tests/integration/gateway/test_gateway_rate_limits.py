"""Tenants with rate limits: OpenAI's headers and refusals, and nothing kept reserved too long."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import openai
import pytest

from tests.integration.gateway.caller import HELLO, Caller
from tests.integration.gateway.conftest import ANSWER, wait_until
from tests.integration.gateway.fake_worker import Plan
from tests.integration.gateway.tiny_folder import BASE

if TYPE_CHECKING:
    import httpx

    from tests.integration.gateway.conftest import Service
    from tests.integration.gateway.fake_worker import FakeWorker

LIMITS = {"requests_per_minute": 60, "tokens_per_minute": 1000}
NAMES = {
    f"x-ratelimit-{what}-{kind}"
    for what in ("limit", "remaining", "reset")
    for kind in ("requests", "tokens")
}
DURATION = re.compile(r"\d+m\d+(\.\d+)?s|\d+(\.\d+)?s|\d+ms")


def limit(service: Service, caller: Caller, **rates: int) -> None:
    service.thread.run(service.gateway.tenants.change(caller.tenant.id, **rates))


def complete(caller: Caller, **fields: Any) -> httpx.Response:
    """Three prompt tokens and, unless asked otherwise, 16 of answer."""
    return caller.call("POST", "/completions", json={"model": BASE, "prompt": "abc"} | fields)


def rates_of(response: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in response.headers.items() if "ratelimit" in name}


def tokens_left(response: httpx.Response) -> int:
    return int(response.headers["x-ratelimit-remaining-tokens"])


@pytest.fixture
def limited(service: Service, owner: Caller, worker: FakeWorker) -> Caller:
    """A tenant that may make 60 requests and ask for 1000 tokens a minute."""
    del worker  # it answers
    limit(service, owner, **LIMITS)
    return owner


@pytest.mark.usefixtures("worker")
def test_a_tenant_without_limits_is_told_of_none(owner: Caller) -> None:
    assert rates_of(complete(owner)) == {}


@pytest.mark.usefixtures("worker")
def test_only_the_limit_that_is_set_is_told(service: Service, owner: Caller) -> None:
    limit(service, owner, requests_per_minute=60)

    assert set(rates_of(complete(owner))) == {name for name in NAMES if "requests" in name}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/completions", "/chat/completions"])
def test_an_answer_tells_the_limits_and_what_is_left(
    limited: Caller, path: str, stream: bool
) -> None:
    body = {"model": BASE, "prompt": "abc"} if path == "/completions" else {
        "model": BASE, "messages": HELLO,
    }  # fmt: skip
    body |= {"max_tokens": 20, "stream": stream}

    response = limited.call("POST", path, json=body)

    rates = rates_of(response)
    assert response.status_code == 200
    assert set(rates) == NAMES
    assert rates["x-ratelimit-limit-requests"] == "60"
    assert rates["x-ratelimit-limit-tokens"] == "1000"
    assert rates["x-ratelimit-remaining-requests"] == "59"
    assert 900 < tokens_left(response) <= 1000 - 20
    assert all(DURATION.fullmatch(rates[name]) for name in NAMES if "reset" in name)


def test_an_error_tells_them_too(limited: Caller, worker: FakeWorker) -> None:
    worker.plan = lambda _: Plan([], fail_at=0, fail_code="server_overloaded")

    response = complete(limited)

    assert response.status_code == 503
    assert set(rates_of(response)) == NAMES


def test_requests_beyond_the_limit_are_refused_and_others_are_not(
    service: Service, owner: Caller, borrower: Caller, worker: FakeWorker
) -> None:
    limit(service, owner, requests_per_minute=2)

    statuses = [complete(owner).status_code for _ in range(2)]
    refused = complete(owner)

    assert statuses == [200, 200]
    assert refused.status_code == 429
    error = refused.json()["error"]
    assert (error["code"], error["type"]) == ("rate_limit_exceeded", "rate_limit_error")
    assert "2 requests a minute" in error["message"]
    assert 1 <= int(refused.headers["retry-after"]) <= 30
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert "x-should-retry" not in refused.headers
    assert complete(borrower).status_code == 200
    assert len(worker.requests) == 3


def test_a_stream_beyond_the_limit_is_refused_before_it_begins(
    service: Service, owner: Caller, worker: FakeWorker
) -> None:
    limit(service, owner, tokens_per_minute=30)
    worker.plan = lambda _: Plan([40] * 20)

    first = complete(owner, max_tokens=20, stream=True)
    refused = complete(owner, max_tokens=20, stream=True)

    assert first.text.endswith("data: [DONE]\n\n")
    assert refused.status_code == 429
    assert "30 tokens a minute" in refused.json()["error"]["message"]


def test_a_request_that_no_bucket_could_hold_is_not_told_to_wait(
    service: Service, owner: Caller, worker: FakeWorker
) -> None:
    limit(service, owner, requests_per_minute=60, tokens_per_minute=100)

    refused = complete(owner, max_tokens=98)

    assert refused.status_code == 429
    assert "101 tokens" in refused.json()["error"]["message"]
    assert "limit of 100 tokens a minute" in refused.json()["error"]["message"]
    assert refused.headers["x-should-retry"] == "false"
    assert "retry-after" not in refused.headers
    assert refused.headers["x-ratelimit-remaining-requests"] == "60"
    assert worker.requests == []


def test_prompts_and_answers_are_all_reserved(limited: Caller) -> None:
    response = complete(limited, prompt=["abc", "de"], n=2, max_tokens=50)

    assert tokens_left(response) == 1000 - (3 + 2 * 50) - (2 + 2 * 50)


@pytest.mark.usefixtures("worker")
def test_what_an_answer_did_not_need_is_there_for_the_next(service: Service, owner: Caller) -> None:
    limit(service, owner, tokens_per_minute=100)

    answers = [complete(owner, max_tokens=60) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [200, 200]
    used = answers[0].json()["usage"]["total_tokens"]
    assert tokens_left(answers[1]) >= 100 - used - 63


def test_a_chat_that_names_no_length_may_use_all_that_its_tenant_has(
    service: Service, owner: Caller, worker: FakeWorker
) -> None:
    limit(service, owner, tokens_per_minute=200)

    answers = [owner.chat(BASE) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [200, 429]
    assert answers[0].json()["choices"][0]["message"]["content"] == ANSWER
    (request,) = worker.requests
    assert request.sampling.max_tokens + len(request.prompt_token_ids) == 200


def test_a_request_that_failed_costs_no_more_than_it_came_to(
    limited: Caller, worker: FakeWorker
) -> None:
    worker.plan = lambda _: Plan([40] * 400, fail_at=2)
    assert complete(limited, max_tokens=400).status_code == 500

    assert tokens_left(complete(limited)) >= 1000 - (3 + 2) - (3 + 16)


def test_a_request_that_found_no_worker_costs_no_tokens(service: Service, limited: Caller) -> None:
    limit(service, limited, requests_per_minute=3)
    tenants = service.gateway.tenants
    service.thread.run(tenants.change(limited.tenant.id, service_class="retired"))
    assert complete(limited, max_tokens=400).status_code == 400
    service.thread.run(tenants.change(limited.tenant.id, service_class="default"))

    answer = complete(limited)

    assert tokens_left(answer) >= 1000 - (3 + 16)
    assert answer.headers["x-ratelimit-remaining-requests"] == "1"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("plan", "max_made"),
    [(Plan([], silent=True), 0), (Plan([40] * 400, delay_s=0.02), 40)],
    ids=["before the first token", "amid the answer"],
)
def test_a_caller_who_left_is_charged_for_what_was_made_for_it(
    service: Service, limited: Caller, worker: FakeWorker, stream: bool, plan: Plan, max_made: int
) -> None:
    worker.plan = lambda _: plan
    impatient = service.client(limited.key).with_options(timeout=0.3)

    with suppress(openai.APITimeoutError):
        answer = impatient.completions.create(
            model=BASE, prompt="abc", max_tokens=400, stream=stream
        )
        next(iter(answer))
        answer.close()

    wait_until(lambda: len(worker.aborts) == 1)
    worker.plan = lambda _: Plan([40])
    assert tokens_left(complete(limited)) >= 1000 - (3 + max_made) - (3 + 16)


@pytest.mark.usefixtures("worker")
def test_the_official_client_waits_as_told_and_gets_through(
    service: Service, owner: Caller
) -> None:
    limit(service, owner, tokens_per_minute=6000)
    tenant = service.thread.run(service.gateway.tenants.get(owner.tenant.id))
    spent = service.thread.run(service.gateway.limiter.reserve(tenant, 5990))
    client = service.client(owner.key).with_options(max_retries=2)

    answer = client.completions.with_raw_response.create(model=BASE, prompt="abc", max_tokens=107)

    assert spent.granted
    assert answer.retries_taken == 1
    assert answer.parse().choices[0].text == ANSWER


@pytest.mark.usefixtures("worker")
def test_refusals_are_counted_by_tenant_and_kind(service: Service, owner: Caller) -> None:
    limit(service, owner, tokens_per_minute=10)
    for _ in range(2):
        assert complete(owner).status_code == 429
    admin = {"authorization": f"Bearer {service.tenant(is_admin=True)[1]}"}

    text = service.http.get("/v1/admin/metrics", headers=admin).text

    labels = f'kind="tokens",tenant="{owner.tenant.name}"'
    assert f"\ntandem_rate_limited_requests_total{{{labels}}} 2.0" in text


@pytest.mark.usefixtures("worker")
def test_an_admin_sets_and_lifts_limits_and_a_tenant_sees_its_own(
    service: Service, owner: Caller
) -> None:
    admin = {"authorization": f"Bearer {service.tenant(is_admin=True)[1]}"}
    url = f"/v1/admin/tenants/{owner.tenant.id}"

    service.http.post(url, json=LIMITS, headers=admin).raise_for_status()
    shown = owner.ok("GET", "/tenant")
    lifted = service.http.post(url, json={"tokens_per_minute": 0}, headers=admin).json()

    assert {name: shown[name] for name in LIMITS} == LIMITS
    assert (lifted["requests_per_minute"], lifted["tokens_per_minute"]) == (60, None)
    assert "x-ratelimit-limit-tokens" not in complete(owner).headers


def test_a_tenant_may_be_created_with_limits(service: Service) -> None:
    admin = {"authorization": f"Bearer {service.tenant(is_admin=True)[1]}"}
    name = f"{service.tenant()[0].name}-limited"

    made = service.http.post("/v1/admin/tenants", json={"name": name} | LIMITS, headers=admin)
    wrong = service.http.post(
        "/v1/admin/tenants", json={"name": "x", "requests_per_minute": -1}, headers=admin
    )

    assert {field: made.json()[field] for field in LIMITS} == LIMITS
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "requests_per_minute")
