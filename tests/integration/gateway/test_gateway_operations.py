"""What operators use: tenants and keys, health, metrics, usage."""

from __future__ import annotations

from typing import TYPE_CHECKING

import openai
import pytest

from scheduler.store.usage import Usage
from tests.integration.gateway.conftest import wait_until
from tests.integration.gateway.tiny_folder import BASE

if TYPE_CHECKING:
    from openai import OpenAI

    from tests.integration.gateway.conftest import Service
    from tests.integration.gateway.fake_worker import FakeWorker


def test_an_admin_creates_tenants_and_keys_that_work_until_revoked(service: Service) -> None:
    headers = {"authorization": f"Bearer {service.tenant(is_admin=True)[1]}"}
    url = f"{service.url}/v1/admin"

    tenant = service.http.post(f"{url}/tenants", json={"name": "new-team"}, headers=headers).json()
    keys_url = f"{url}/tenants/{tenant['id']}/keys"
    key = service.http.post(keys_url, json={"name": "ci"}, headers=headers).json()
    client = service.client(key["value"])

    assert [model.id for model in client.models.list()] == [BASE]
    listed = service.http.get(keys_url, headers=headers).json()["data"]
    assert [entry["name"] for entry in listed] == ["ci"]
    assert key["value"] not in str(listed)
    names = [t["name"] for t in service.http.get(f"{url}/tenants", headers=headers).json()["data"]]
    assert "new-team" in names

    revoked = service.http.delete(f"{url}/keys/{key['id']}", headers=headers)
    assert revoked.json() == {"id": key["id"], "object": "api_key", "deleted": True}
    with pytest.raises(openai.AuthenticationError):
        client.models.list()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/tenants"),
        ("GET", "/tenants"),
        ("POST", "/tenants/org-1"),
        ("POST", "/tenants/org-1/keys"),
        ("GET", "/tenants/org-1/keys"),
        ("DELETE", "/keys/key-1"),
        ("GET", "/workers"),
        ("GET", "/workers/w1/steps"),
        ("GET", "/jobs"),
        ("GET", "/jobs/ftjob-1/curve"),
        ("GET", "/adapters"),
        ("GET", "/usage"),
        ("GET", "/outbox"),
        ("GET", "/metrics"),
    ],
)
def test_other_tenants_may_not_administer(service: Service, method: str, path: str) -> None:
    headers = {"authorization": f"Bearer {service.tenant()[1]}"}
    body = {"name": "x"} if method == "POST" else None

    response = service.http.request(method, f"/v1/admin{path}", json=body, headers=headers)

    assert response.status_code == 403
    assert response.json()["error"]["code"] == "permission_denied"


@pytest.mark.usefixtures("worker")
def test_health_and_readiness_answer_without_a_key(service: Service) -> None:
    for path in ("/healthz", "/health", "/readyz"):
        response = service.http.get(path)
        assert response.json() == {"status": "ok"}


@pytest.mark.usefixtures("worker")
def test_metrics_use_vllms_names(service: Service, client: OpenAI) -> None:
    client.completions.create(model=BASE, prompt="abc", max_tokens=4)

    text = service.http.get("/metrics").text

    for line in (
        f'vllm:num_requests_running{{engine="w1",model_name="{BASE}"}}',
        f'vllm:num_requests_waiting{{engine="w1",model_name="{BASE}"}} 0.0',
        f'vllm:kv_cache_usage_perc{{engine="w1",model_name="{BASE}"}} 0.25',
        f'vllm:generation_tokens_total{{engine="w1",model_name="{BASE}"}} 7.0',
        f'vllm:prompt_tokens_total{{engine="w1",model_name="{BASE}"}} 0.0',
        f'vllm:prefix_cache_queries_total{{engine="w1",model_name="{BASE}"}} 40.0',
        f'vllm:prefix_cache_hits_total{{engine="w1",model_name="{BASE}"}} 30.0',
        f'tandem_kv_kept_tokens_total{{engine="w1",model_name="{BASE}"}} 12.0',
        f'tandem_kv_dropped_tokens_total{{engine="w1",model_name="{BASE}"}} 20.0',
        f'vllm:num_preemptions_total{{engine="w1",model_name="{BASE}"}} 0.0',
        f'tandem_trained_tokens_total{{engine="w1",model_name="{BASE}"}} 11.0',
        'tandem_active_jobs{engine="w1"} 0.0',
        f'tandem_step_seconds_bucket{{engine="w1",le="0.02",model_name="{BASE}"}} 3.0',
        f'tandem_step_seconds_bucket{{engine="w1",le="+Inf",model_name="{BASE}"}} 6.0',
        f'tandem_step_seconds_sum{{engine="w1",model_name="{BASE}"}} 0.15',
        f'tandem_step_tokens_total{{engine="w1",kind="decode",model_name="{BASE}"}} 60.0',
        f'tandem_slo_requests_total{{engine="w1",model_name="{BASE}",outcome="within",'
        'service_class="gold",target="tpot",training="true"} 99.0',
        'tandem_slo_target_seconds{service_class="gold",target="tpot"} 0.01',
        f'vllm:time_to_first_token_seconds_count{{model_name="{BASE}"}}',
        f'vllm:inter_token_latency_seconds_count{{model_name="{BASE}"}}',
        f'vllm:request_time_per_output_token_seconds_count{{model_name="{BASE}"}}',
        f'vllm:e2e_request_latency_seconds_count{{model_name="{BASE}"}}',
        f'vllm:request_success_total{{finished_reason="length",model_name="{BASE}"}}',
    ):
        assert f"\n{line}" in text


@pytest.mark.usefixtures("worker")
def test_an_admin_sees_the_workers_and_their_newest_steps(service: Service) -> None:
    headers = {"authorization": f"Bearer {service.tenant(is_admin=True)[1]}"}
    url = f"{service.url}/v1/admin/workers"

    (shown,) = service.http.get(url, headers=headers).json()["data"]
    page = service.http.get(f"{url}/w1/steps?limit=2", headers=headers).json()
    unknown = service.http.get(f"{url}/w9/steps", headers=headers)
    greedy = service.http.get(f"{url}/w1/steps?limit=100000", headers=headers)

    assert (shown["id"], shown["base_models"]) == ("w1", [BASE])
    assert shown["load"]["kv_usage"] == 0.25
    assert (shown["load"]["prefix_hits"], shown["load"]["prefix_queries"]) == (30, 40)
    assert (shown["load"]["kv_kept_tokens"], shown["load"]["kv_dropped_tokens"]) == (12, 20)
    assert shown["slo"][0]["num_over"] == 1
    assert [step["index"] for step in page["data"]] == [59, 58]
    assert page["has_more"]
    newest = page["data"][0]
    assert (newest["step_ms"], newest["predicted_ms"], newest["slack_ms"]) == (12.5, 12.0, None)
    assert newest["jobs"] == [{"job_id": "ftjob-1", "window_tokens": 0, "num_units": 2}]
    assert (unknown.status_code, greedy.status_code) == (404, 400)


def test_tokens_are_counted_for_the_tenant(service: Service, worker: FakeWorker) -> None:
    tenant, key = service.tenant(weight=3.0)
    client = service.client(key)

    client.completions.create(model=BASE, prompt="abc", max_tokens=4, n=2)
    service.thread.run(service.gateway.engines.meter.flush())

    total = service.thread.run(Usage(service.gateway.db).total(tenant.id))
    assert (total.prompt_tokens, total.output_tokens) == (3, 8)
    assert worker.requests[0].tenant_weight == 3.0
    assert worker.requests[0].tenant_id == tenant.id


@pytest.mark.usefixtures("worker")
def test_nothing_of_a_finished_request_stays_in_the_pool(service: Service, client: OpenAI) -> None:
    client.completions.create(model=BASE, prompt="abc", n=3, stop="l")

    pool = service.gateway.engines.pool
    wait_until(lambda: not pool.live.pairs())
