"""Errors over HTTP: one table from DomainError to status, one shape (OpenAI's error object)."""

from __future__ import annotations

import http
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from scheduler.domain.errors import (
    AuthenticationFailed,
    Conflict,
    DomainError,
    InvalidInput,
    NotFound,
    Overloaded,
    PayloadTooLarge,
    PermissionDenied,
    QuotaExceeded,
    WorkerLost,
)
from service.encoding import to_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy.exc import SQLAlchemyError

_STATUS: dict[type[DomainError], int] = {
    InvalidInput: 400,
    AuthenticationFailed: 401,
    PermissionDenied: 403,
    NotFound: 404,
    Conflict: 400,  # the official SDK retries 409, and a finished job stays finished
    PayloadTooLarge: 413,
    QuotaExceeded: 429,
    Overloaded: 503,
    WorkerLost: 503,
}
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}
RETRY_AFTER_S = 1  # the SDK ignores values over 120 s; load here changes within a second


class ErrorBody(BaseModel):
    """What went wrong, in OpenAI's four fields."""

    model_config = ConfigDict(frozen=True)

    message: str = Field(description="A sentence saying what is wrong and what would be right.")
    type: str
    param: str | None = Field(description="The field of the request that is to blame.")
    code: str | None


class ErrorObject(BaseModel):
    """Body of every answer that is not a success."""

    model_config = ConfigDict(frozen=True)

    error: ErrorBody


def status_of(error: DomainError) -> int:
    """Status of the nearest mapped ancestor; 500 when there is none."""
    return next((_STATUS[cls] for cls in type(error).__mro__ if cls in _STATUS), 500)


def error_object(
    status: int, message: str, *, code: str | None = None, param: str | None = None
) -> dict[str, dict[str, str | None]]:
    """OpenAI's error object as plain data."""
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def describe(error: DomainError) -> dict[str, dict[str, str | None]]:
    """The error object of a domain error, also used inside a stream that already began."""
    return error_object(status_of(error), error.message, code=error.code, param=error.param)


def told(error: DomainError | SQLAlchemyError) -> DomainError:
    """What a caller is told of an error: a database that is away can be asked again."""
    if isinstance(error, DomainError):
        return error
    return Overloaded("The database does not answer; try again in a few seconds.", retry_after_s=2)


def _headers_of(error: DomainError) -> dict[str, str]:
    headers: dict[str, str] = {}
    if error.retryable and error.details.get("transient", True):
        headers["retry-after"] = str(error.details.get("retry_after_s", RETRY_AFTER_S))
    if isinstance(error, Conflict) or not error.details.get("transient", True):
        headers["x-should-retry"] = "false"
    if isinstance(error, AuthenticationFailed):
        headers["www-authenticate"] = "Bearer"
    return headers


def domain_response(error: DomainError) -> Response:
    """The whole HTTP answer for a domain error."""
    return Response(
        to_json(describe(error)),
        status_of(error),
        headers=_headers_of(error),
        media_type="application/json",
    )


def plain_response(
    status: int, message: str | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """The answer for a status that no domain error stands for (404 route, 405, 500)."""
    phrase = http.HTTPStatus(status).phrase
    code = phrase.lower().replace(" ", "_").replace("-", "_")
    body = error_object(status, message or f"{phrase}.", code=code)
    return Response(
        to_json(body), status, headers=dict(headers or {}), media_type="application/json"
    )


def validation_response(errors: Sequence[Mapping[str, Any]]) -> Response:
    """400 for a body, query or path that does not fit its schema; names the first bad field."""
    first = errors[0]
    if first["type"] == "json_invalid":
        return domain_response(InvalidInput("The body is not valid JSON; send a JSON object."))
    param = _param_of(first["loc"])
    sentence = _sentence_of(first)
    where = f"'{param}': " if param else "Request body: "
    more = f" ({len(errors) - 1} more fields are wrong.)" if len(errors) > 1 else ""
    return domain_response(InvalidInput(f"{where}{sentence}{more}", param=param))


def _param_of(location: Sequence[str | int]) -> str | None:
    """Dotted path of the field, without FastAPI's leading `body`, `query` or `path`."""
    parts = [str(part) for part in location[1:]]
    return ".".join(parts) or None


def _sentence_of(error: Mapping[str, Any]) -> str:
    if error["type"] == "extra_forbidden":
        return "Unknown field; remove it."
    if error["type"] == "missing":
        return "Required field is missing; set it."
    text = str(error["msg"]).removeprefix("Value error, ")
    return text if text.endswith((".", ";")) else f"{text}."


def errors(*kinds: type[DomainError]) -> dict[int | str, dict[str, Any]]:
    """`responses=` of a route: the documented statuses of the errors that it may answer with."""
    documented: dict[int | str, dict[str, Any]] = {}
    all_kinds: tuple[type[DomainError], ...] = (AuthenticationFailed, *kinds)
    for kind in all_kinds:
        status = next(_STATUS[cls] for cls in kind.__mro__ if cls in _STATUS)
        text = (kind.__doc__ or "").strip().splitlines()[0]
        earlier = documented.get(status, {}).get("description")
        documented[status] = {
            "model": ErrorObject,
            "description": f"{earlier} Or: {text}" if earlier else text,
        }
    return documented
