"""Tokens per tenant, day and model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import func, select

from scheduler.store.tables import usage
from scheduler.store.upsert import upsert

if TYPE_CHECKING:
    from datetime import date

    from scheduler.store.database import Database

COUNTERS = ("prompt_tokens", "output_tokens", "trained_tokens")


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
        added = {
            "prompt_tokens": prompt_tokens,
            "output_tokens": output_tokens,
            "trained_tokens": trained_tokens,
        }
        async with self._db.begin() as conn:
            await conn.execute(
                upsert(conn, usage)
                .values(tenant_id=tenant_id, day=day, model=model, **added)
                .on_conflict_do_update(
                    index_elements=["tenant_id", "day", "model"],
                    set_={name: usage.c[name] + count for name, count in added.items()},
                )
            )

    async def total(self, tenant_id: str) -> UsageTotal:
        """All-time sums of a tenant."""
        sums = [func.coalesce(func.sum(usage.c[name]), 0) for name in COUNTERS]
        async with self._db.read() as conn:
            row = (await conn.execute(select(*sums).where(usage.c.tenant_id == tenant_id))).one()
        return UsageTotal(**{name: int(count) for name, count in zip(COUNTERS, row, strict=True)})
