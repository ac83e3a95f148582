"""Every error a caller can meet has one status, one code and one shape."""

from __future__ import annotations

import json

import pytest

from scheduler.domain.errors import (
    AuthenticationFailed,
    DomainError,
    InvalidTransition,
    Overloaded,
    QuotaExceeded,
)
from service.errors import domain_response, errors, status_of, validation_response


def every_error(kind: type[DomainError] = DomainError) -> list[type[DomainError]]:
    """All subclasses, at any depth."""
    found = []
    for child in kind.__subclasses__():
        found += [child, *every_error(child)]
    return found


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
def test_every_domain_error_has_a_status_and_openais_four_fields(kind: type[DomainError]) -> None:
    response = domain_response(kind("It is wrong; do right.", param="p.0"))

    body = json.loads(response.body)["error"]
    assert 400 <= response.status_code < 600
    assert (response.status_code == 500) == (kind.code == "internal")
    assert body["message"] == "It is wrong; do right."
    assert body["param"] == "p.0"
    assert body["code"] == kind.code
    assert body["type"].endswith("_error")


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
def test_retryable_errors_and_only_they_say_when_to_come_back(kind: type[DomainError]) -> None:
    headers = domain_response(kind("No.")).headers

    assert ("retry-after" in headers) == kind.retryable


def test_a_conflict_is_never_409_which_the_official_client_would_retry() -> None:
    response = domain_response(InvalidTransition("The job is over."))

    assert response.status_code == 400
    assert response.headers["x-should-retry"] == "false"


def test_an_error_may_say_how_long_to_wait() -> None:
    assert domain_response(Overloaded("Full.", retry_after_s=7)).headers["retry-after"] == "7"


def test_an_error_without_a_status_of_its_own_is_a_500() -> None:
    class Strange(DomainError):
        """Not in the table."""

    assert status_of(Strange("?")) == 500


@pytest.mark.parametrize(
    ("error", "message", "param"),
    [
        (
            {"type": "missing", "loc": ("body", "model"), "msg": "Field required"},
            "'model': Required field is missing; set it.",
            "model",
        ),
        (
            {"type": "extra_forbidden", "loc": ("body", "a", 0, "b"), "msg": "Extra"},
            "'a.0.b': Unknown field; remove it.",
            "a.0.b",
        ),
        (
            {"type": "value_error", "loc": ("query", "limit"), "msg": "Value error, too odd"},
            "'limit': too odd.",
            "limit",
        ),
        (
            {"type": "missing", "loc": ("body",), "msg": "Field required"},
            "Request body: Required field is missing; set it.",
            None,
        ),
    ],
)
def test_a_validation_error_names_the_field(
    error: dict[str, object], message: str, param: str | None
) -> None:
    response = validation_response([error])

    body = json.loads(response.body)["error"]
    assert response.status_code == 400
    assert (body["message"], body["param"]) == (message, param)


def test_documented_errors_always_include_the_missing_key() -> None:
    assert set(errors(QuotaExceeded, Overloaded)) == {401, 429, 503}
    assert set(errors()) == {status_of(AuthenticationFailed("?"))}
