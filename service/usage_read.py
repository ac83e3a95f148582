"""Usage as answers, over days that end today in UTC."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

from fastapi import Query

from service.schemas.account import ModelUsageRead
from service.schemas.base import ListPage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scheduler.store.usage import ModelUsage

DEFAULT_DAYS = 30
Days = Annotated[int, Query(ge=1, le=366, description="How many days, today included.")]


def first_of(days: int) -> date:
    """The first of so many days, of which today is the last."""
    return datetime.now(UTC).date() - timedelta(days=days - 1)


def read_usage(usage: Sequence[ModelUsage]) -> ListPage[ModelUsageRead]:
    """One row by tenant and model."""
    return ListPage(data=[ModelUsageRead(**asdict(row)) for row in usage])
