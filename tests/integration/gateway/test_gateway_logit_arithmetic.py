"""Logit arithmetic over HTTP: which models reach the worker, with which weights, and for whom."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.gateway.caller import HELLO, Caller
from tests.integration.gateway.conftest import ANSWER
from tests.integration.gateway.tiny_folder import BASE

if TYPE_CHECKING:
    from scheduler.domain.request import RequestBody
    from tests.integration.gateway.conftest import Service
    from tests.integration.gateway.fake_worker import FakeWorker


def term(model: str, beta: float = 0.5, **more: Any) -> dict[str, Any]:
    return {"model": model, "beta": beta} | more


def asked(model: str, *terms: dict[str, Any]) -> dict[str, Any]:
    return {"model": model, "messages": HELLO, "logit_arithmetic": [*terms]}


def weights(request: RequestBody) -> dict[str | None, float]:
    """Adapter id (None: the base) -> its weight in the mixture."""
    return {part.adapter and part.adapter.adapter_id: part.weight for part in request.mixture}


def test_an_adapter_is_strengthened_over_the_base(owner: Caller, worker: FakeWorker) -> None:
    adapter = owner.imported()

    answer = owner.ok("POST", "/chat/completions", json=asked(BASE, term(adapter["model"], 1.5)))

    (request,) = worker.requests
    assert weights(request) == {None: -0.5, adapter["id"]: 1.5}
    assert request.adapter is None
    assert answer["choices"][0]["message"]["content"] == ANSWER
    assert answer["model"] == BASE
    assert answer["usage"]["prompt_tokens"] == len(request.prompt_token_ids)  # once, not twice


def test_what_a_donor_learnt_is_added_to_another_adapter(owner: Caller, worker: FakeWorker) -> None:
    over, donor, origin = (owner.imported(shift) for shift in (0.0, 1.0, 2.0))
    terms = [
        term(donor["model"], 2.0, reference=f"{origin['model']}@1"),
        term(over["model"], -1, reference=BASE),
    ]
    body = asked(over["model"], *terms) | {"stream": True}
    body = {"prompt": "Hi"} | {name: body[name] for name in body if name != "messages"}

    response = owner.call("POST", "/completions", json=body)

    assert response.text.endswith("data: [DONE]\n\n")
    (request,) = worker.requests
    assert weights(request) == {donor["id"]: 2.0, origin["id"]: -2.0, None: 1.0}


def test_models_that_cancel_out_are_not_computed(owner: Caller, worker: FakeWorker) -> None:
    adapter = owner.imported()
    name = adapter["model"]
    bodies = [
        asked(BASE, term(name, 0.0)),
        asked(BASE, term(name, 1.0)),
        asked(name, term(BASE, 1.0, reference=name)),
        asked(BASE, term(name, 0.1), term(name, 0.2), term(name, -0.3)),
    ]

    for body in bodies:
        owner.ok("POST", "/chat/completions", json=body)

    assert all(request.mixture == () for request in worker.requests)
    digests = [request.adapter and request.adapter.digest for request in worker.requests]
    assert digests == [None, adapter["versions"][0]["digest"], None, None]


def test_an_adapters_own_url_takes_terms_of_other_models(
    service: Service, owner: Caller, worker: FakeWorker
) -> None:
    over, donor = owner.imported(0.0), owner.imported(1.0)
    headers = {"authorization": f"Bearer {owner.key}"}

    response = service.http.post(
        f"/adapters/{over['id']}/v1/chat/completions",
        json=asked("ignored", term(donor["model"])),
        headers=headers,
    )

    assert response.status_code == 200
    assert weights(worker.requests[0]) == {over["id"]: 1.0, donor["id"]: 0.5, None: -0.5}


def test_a_donor_must_be_the_callers_own_or_shared_with_it(
    owner: Caller, borrower: Caller, worker: FakeWorker
) -> None:
    adapter = owner.imported()
    path, shares = "/chat/completions", f"/adapters/{adapter['id']}/shares"
    bodies = [
        (asked(BASE, term(adapter["model"])), "logit_arithmetic.0.model"),
        (
            asked(BASE, term(BASE), term(BASE, reference=adapter["model"])),
            "logit_arithmetic.1.reference",
        ),
    ]

    for body, param in bodies:
        error = borrower.refused("POST", path, 404, json=body)
        assert (error["code"], error["param"]) == ("model_not_found", param)
    assert worker.requests == []
    owner.ok("POST", shares, json={"tenant_id": borrower.tenant.id})
    for body, _ in bodies:
        borrower.ok("POST", path, json=body)
    assert [request.tenant_id for request in worker.requests] == [borrower.tenant.id] * 2


@pytest.mark.parametrize(
    ("terms", "param", "sentence"),
    [
        ([term("x", 4.5)], "logit_arithmetic.0.beta", "less than or equal to 4"),
        ([term("x", -4.5)], "logit_arithmetic.0.beta", "greater than or equal to -4"),
        ([term("x", True)], "logit_arithmetic.0.beta", "number"),
        ([{"model": "x"}], "logit_arithmetic.0.beta", "missing"),
        ([{"beta": 1.0}], "logit_arithmetic.0.model", "missing"),
        ([term("x", scale=2)], "logit_arithmetic.0.scale", "scale"),
        ([term("x")] * 4, "logit_arithmetic", "at most 3"),
        ([], "logit_arithmetic", "at least 1"),
    ],
)
def test_terms_out_of_bounds_are_refused_in_a_sentence(
    owner: Caller, worker: FakeWorker, terms: Any, param: str, sentence: str
) -> None:
    error = owner.refused("POST", "/chat/completions", 400, json=asked(BASE, *terms))

    assert (error["code"], error["param"]) == ("invalid_value", param)
    assert sentence in error["message"]
    assert worker.requests == []


def test_a_beta_that_is_no_number_is_refused(owner: Caller) -> None:
    body = '{"model": "%s", "prompt": "x", "logit_arithmetic": [{"model": "x", "beta": NaN}]}'

    owner.refused(
        "POST", "/completions", 400,
        content=body % BASE, headers={"content-type": "application/json"},
    )  # fmt: skip


def test_each_model_of_a_mixture_counts_against_the_tenants_limit(
    service: Service, owner: Caller
) -> None:
    adapter = owner.imported()
    limit = service.settings.max_live_per_tenant
    body = asked(BASE, term(adapter["model"]))
    prompts = ["Hi"] * (service.settings.max_prompts)
    many = {name: body[name] for name in ("model", "logit_arithmetic")} | {
        "prompt": prompts,
        "n": limit // len(prompts),
        "max_tokens": 1,
    }

    error = owner.refused("POST", "/completions", 429, json=many)

    assert str(2 * limit) in error["message"]
