"""A look-up knows what it did not find; only its caller knows which field asked for it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scheduler.domain.errors import DomainError


@contextmanager
def blaming(param: str, *kinds: type[DomainError]) -> Iterator[None]:
    """Let refusals of these kinds blame the field `param` of the request."""
    try:
        yield
    except kinds as error:
        error.param = param
        raise
