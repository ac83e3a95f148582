"""A request carries its tenant's service class; operators set it, callers may only step down."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import openai
import pytest

from tests.integration.gateway.caller import HELLO
from tests.integration.gateway.tiny_folder import BASE

if TYPE_CHECKING:
    from tests.integration.gateway.conftest import Service
    from tests.integration.gateway.fake_worker import FakeWorker


@pytest.fixture
def admin(service: Service) -> dict[str, str]:
    return {"authorization": f"Bearer {service.tenant(is_admin=True)[1]}"}


def change(service: Service, admin: dict[str, str], tenant_id: str, **body: Any) -> Any:
    url = f"{service.url}/v1/admin/tenants/{tenant_id}"
    return service.http.post(url, json=body, headers=admin)


def test_a_request_carries_the_class_and_weight_that_the_operator_gave_its_tenant(
    service: Service, worker: FakeWorker, admin: dict[str, str]
) -> None:
    tenant, key = service.tenant()
    client = service.client(key)

    client.completions.create(model=BASE, prompt="abc", max_tokens=2)
    changed = change(service, admin, tenant.id, service_class="gold", weight=4).json()
    client.completions.create(model=BASE, prompt="abc", max_tokens=2)

    assert (changed["service_class"], changed["weight"]) == ("gold", 4.0)
    assert [request.service_class for request in worker.requests] == ["default", "gold"]
    assert [request.tenant_weight for request in worker.requests] == [1.0, 4.0]


@pytest.mark.usefixtures("worker")
def test_a_tenant_may_be_created_in_a_class(service: Service, admin: dict[str, str]) -> None:
    url = f"{service.url}/v1/admin/tenants"

    made = service.http.post(
        url, json={"name": "golden", "service_class": "gold"}, headers=admin
    ).json()

    assert made["service_class"] == "gold"
    listed = service.http.get(url, headers=admin).json()["data"]
    assert made in listed


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"service_class": "silver"}, "known: best_effort, default, gold"),
        ({"weight": 0}, "weight"),
        ({"name": "other"}, "name"),
    ],
)
def test_a_change_that_makes_no_sense_is_refused(
    service: Service, admin: dict[str, str], body: dict[str, Any], words: str
) -> None:
    tenant, _ = service.tenant()

    response = change(service, admin, tenant.id, **body)

    assert response.status_code == 400
    assert words in response.json()["error"]["message"]


@pytest.mark.usefixtures("worker")
def test_a_class_that_no_worker_declares_any_more_is_refused_and_flex_is_not(
    service: Service,
) -> None:
    tenant, key = service.tenant()
    service.thread.run(service.gateway.tenants.change(tenant.id, service_class="retired"))
    client = service.client(key)

    with pytest.raises(openai.BadRequestError, match="'retired' is not offered") as refused:
        client.chat.completions.create(model=BASE, messages=HELLO)
    flexible = client.chat.completions.create(model=BASE, messages=HELLO, service_tier="flex")

    assert refused.value.param == "service_tier"
    assert flexible.service_tier == "flex"


@pytest.mark.parametrize(
    ("tier", "service_class", "told"),
    [
        (None, "gold", "default"),
        ("auto", "gold", "default"),
        ("default", "gold", "default"),
        ("flex", "best_effort", "flex"),
    ],
)
def test_a_service_tier_is_honoured_and_told(
    service: Service,
    worker: FakeWorker,
    tier: Any,
    service_class: str,
    told: str,
) -> None:
    tenant, key = service.tenant()
    service.thread.run(service.gateway.tenants.change(tenant.id, service_class="gold"))
    client = service.client(key)
    asked: dict[str, Any] = {} if tier is None else {"service_tier": tier}

    whole = client.chat.completions.create(model=BASE, messages=HELLO, **asked)
    chunks = list(client.chat.completions.create(model=BASE, messages=HELLO, stream=True, **asked))
    text = client.completions.create(model=BASE, prompt="abc", max_tokens=2, extra_body=asked)

    assert whole.service_tier == told
    assert {chunk.service_tier for chunk in chunks} == {told}
    assert text.model_extra is not None
    assert text.model_extra["service_tier"] == told
    assert {request.service_class for request in worker.requests} == {service_class}


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("tier", ["priority", "scale", "gold", ""])
def test_a_tier_that_is_not_offered_is_refused(service: Service, tier: str) -> None:
    client = service.client(service.tenant()[1])

    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model=BASE, prompt="abc", extra_body={"service_tier": tier})

    assert refused.value.param == "service_tier"


@pytest.mark.usefixtures("worker")
def test_the_classes_and_their_targets_are_published(service: Service) -> None:
    headers = {"authorization": f"Bearer {service.tenant()[1]}"}

    shown = service.http.get(f"{service.url}/v1/capabilities", headers=headers).json()

    assert shown["service_classes"]["gold"] == {"ttft_ms": 100.0, "tpot_ms": 10.0}
    assert shown["service_classes"]["best_effort"] == {"ttft_ms": None, "tpot_ms": None}
