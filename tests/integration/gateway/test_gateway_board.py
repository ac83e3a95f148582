"""What the dashboard reads: the caller itself, its usage and curves, and the operator's board."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.gateway import training
from tests.integration.gateway.tiny_folder import BASE

if TYPE_CHECKING:
    from tests.integration.gateway.conftest import Service

pytestmark = pytest.mark.usefixtures("worker")


def _get(service: Service, key: str, path: str) -> Any:
    headers = {"authorization": f"Bearer {key}"}
    return service.http.get(f"/v1{path}", headers=headers).raise_for_status().json()


def _job(service: Service, key: str) -> str:
    client = service.client(key)
    file = client.files.create(file=("t.jsonl", b"{}"), purpose="fine-tune")
    return client.fine_tuning.jobs.create(model=BASE, training_file=file.id).id


def test_a_key_tells_whose_it_is(service: Service) -> None:
    tenant, key = service.tenant(weight=2.0)

    shown = _get(service, key, "/tenant")

    assert (shown["id"], shown["name"], shown["is_admin"]) == (tenant.id, tenant.name, False)


def test_a_tenant_reads_its_own_usage_and_an_admin_everybodys(service: Service) -> None:
    (tenant, key), (_, stranger) = service.tenant(), service.tenant()
    service.client(key).completions.create(model=BASE, prompt="abc", max_tokens=4)
    service.thread.run(service.gateway.engines.meter.flush())

    (mine,) = _get(service, key, "/usage")["data"]
    everybody = _get(service, service.tenant(is_admin=True)[1], "/admin/usage?days=1")["data"]

    assert (mine["model"], mine["prompt_tokens"], mine["output_tokens"]) == (BASE, 3, 4)
    assert mine in everybody
    assert mine["tenant"] == tenant.name
    assert _get(service, stranger, "/usage")["data"] == []


def test_a_jobs_curve_is_its_tenants_and_the_operators(service: Service) -> None:
    (_, key), (_, stranger) = service.tenant(), service.tenant()
    job_id = _job(service, key)
    epoch = training.start(service, job_id)
    for step in (1, 2, 4):
        training.report(service, job_id, epoch, step)

    curve = _get(service, key, f"/fine_tuning/jobs/{job_id}/curve")["data"]
    thinned = _get(service, key, f"/fine_tuning/jobs/{job_id}/curve?points=2")["data"]
    foreign = service.http.get(
        f"/v1/fine_tuning/jobs/{job_id}/curve", headers={"authorization": f"Bearer {stranger}"}
    )

    assert [(point["step"], point["train_loss"]) for point in curve] == [
        (1, 1),
        (2, 0.5),
        (4, 0.25),
    ]
    assert [point["step"] for point in thinned] == [1, 4]
    assert foreign.status_code == 404
    admin = service.tenant(is_admin=True)[1]
    assert _get(service, admin, f"/admin/jobs/{job_id}/curve")["data"] == curve


def test_an_admin_sees_all_jobs_with_leases_adapters_and_the_outbox(service: Service) -> None:
    tenant, key = service.tenant()
    job_id = _job(service, key)
    epoch = training.start(service, job_id)
    training.checkpoint(service, job_id, epoch, 1, final=False)
    admin = service.tenant(is_admin=True)[1]

    job = next(j for j in _get(service, admin, "/admin/jobs")["data"] if j["id"] == job_id)
    adapters = _get(service, admin, "/admin/adapters")["data"]
    outbox = _get(service, admin, "/admin/outbox")

    assert (job["tenant"], job["status"], job["num_crashes"]) == (tenant.name, "running", 0)
    assert (job["lease"]["owner"], job["lease"]["epoch"]) == ("w1", epoch)
    adapter = next(a for a in adapters if a["job_id"] == job_id)
    assert (adapter["tenant"], adapter["versions"][0]["digest"]) == (tenant.name, f"{1:064x}")
    assert outbox["num_unsent"] > 0
    assert outbox["oldest_s"] >= 0


def test_the_boards_series_name_tenants_and_ask_for_an_admins_key(service: Service) -> None:
    tenant, key = service.tenant()
    job_id = _job(service, key)
    epoch = training.start(service, job_id)
    training.report(service, job_id, epoch, 4)
    service.client(key).completions.create(model=BASE, prompt="abc", max_tokens=4)
    service.thread.run(service.gateway.engines.meter.flush())
    admin = service.tenant(is_admin=True)[1]

    text = service.http.get("/v1/admin/metrics", headers={"authorization": f"Bearer {admin}"}).text

    job = f'job="{job_id}",tenant="{tenant.name}"'
    for line in (
        f'tandem_tenant_tokens_total{{kind="output",tenant="{tenant.name}"}} 4.0',
        f"tandem_job_loss{{{job}}} 0.25",
        f"tandem_job_tokens_per_second{{{job}}} 50.0",
        f"tandem_job_progress_ratio{{{job}}} 0.4",
        f'tandem_lease_left_seconds{{engine="w1",{job}}} ',
        'tandem_jobs{status="failed"} ',
        "tandem_leases_expired 0.0",
        "tandem_outbox_unsent ",
        "tandem_outbox_oldest_seconds ",
    ):
        assert f"\n{line}" in text
    assert tenant.name not in service.http.get("/metrics").text
