"""Tokens per tenant, day and model."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from scheduler.store.database import Database


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageTotal:
    """Sums over days and models."""

    prompt_tokens: int = 0
    output_tokens: int = 0
    trained_tokens: int = 0


class Usage:
    """Counters that only grow."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def add(
        self,
        tenant_id: str,
        day: date,
        model: str,
        *,
        prompt_tokens: int = 0,
        output_tokens: int = 0,
        trained_tokens: int = 0,
    ) -> None:
        """Add to the counters of one day and model; gateways batch before they call."""
        raise NotImplementedError

    async def total(self, tenant_id: str) -> UsageTotal:
        """All-time sums of a tenant."""
        raise NotImplementedError
