"""Options of a plug-in as callers write them: small enough to be checked at once, and sent on."""

import json
from typing import Annotated, Any, Self

from pydantic import AfterValidator, model_validator
from pydantic_core import PydanticCustomError

from service.schemas.base import OpenBody

MAX_BYTES = 64 * 1024  # as JSON: ranks and alphas of all sites of a large model, by their names
MAX_DEPTH = 16
MAX_INT = 2**31 - 1  # what every process and every file format takes


def check_options(options: dict[str, Any]) -> dict[str, Any]:
    """Refuse options that are large, deep, or hold what no schema is made for.

    Raises:
        PydanticCustomError: one sentence, without the options.
    """
    _check_values(options)
    try:
        num_bytes = len(json.dumps(options, ensure_ascii=False, allow_nan=False).encode())
    except ValueError:
        raise PydanticCustomError(
            "options", "Must hold only finite numbers and text without lone surrogates"
        ) from None
    if num_bytes > MAX_BYTES:
        raise PydanticCustomError(
            "options",
            "Must be at most {max_bytes} bytes of JSON, not {num_bytes}",
            {"num_bytes": num_bytes, "max_bytes": MAX_BYTES},
        )
    return options


def _check_values(options: dict[str, Any]) -> None:
    """Bound depth and integers, level by level, so that no depth is too much for the check."""
    level: list[Any] = [options]
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for value in level:
            if isinstance(value, int) and abs(value) > MAX_INT:
                raise PydanticCustomError("options", f"Must hold no integer beyond {MAX_INT}")
            if isinstance(value, dict | list):
                inner += value.values() if isinstance(value, dict) else value
        level = inner
        if not level:
            return
    raise PydanticCustomError("options", f"Must be nested at most {MAX_DEPTH} deep")


Options = Annotated[dict[str, Any], AfterValidator(check_options)]


class OptionsBody(OpenBody):
    """Fields that are known, and options beside them."""

    @model_validator(mode="after")
    def _has_small_options(self) -> Self:
        check_options(self.model_extra or {})
        return self
