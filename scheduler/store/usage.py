"""Tokens per tenant, day and model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import func, select

from scheduler.store.tables import tenants, usage
from scheduler.store.upsert import upsert

if TYPE_CHECKING:
    from datetime import date

    from sqlalchemy.ext.asyncio import AsyncConnection

    from scheduler.store.database import Database

COUNTERS = ("prompt_tokens", "output_tokens", "trained_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageTotal:
    """Sums over days and models."""

    prompt_tokens: int = 0
    output_tokens: int = 0
    trained_tokens: int = 0

    @property
    def num_tokens(self) -> int:
        """All of them."""
        return self.prompt_tokens + self.output_tokens + self.trained_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelUsage(UsageTotal):
    """Sums over days, of one tenant and model."""

    tenant_id: str
    tenant: str
    model: str


async def add_usage(
    conn: AsyncConnection, tenant_id: str, day: date, model: str, **tokens: int
) -> None:
    """Add `tokens`, by names of COUNTERS, in the caller's transaction."""
    added = dict.fromkeys(COUNTERS, 0) | tokens
    await conn.execute(
        upsert(conn, usage)
        .values(tenant_id=tenant_id, day=day, model=model, **added)
        .on_conflict_do_update(
            index_elements=["tenant_id", "day", "model"],
            set_={name: usage.c[name] + count for name, count in added.items()},
        )
    )


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
        async with self._db.begin() as conn:
            await add_usage(
                conn,
                tenant_id,
                day,
                model,
                prompt_tokens=prompt_tokens,
                output_tokens=output_tokens,
                trained_tokens=trained_tokens,
            )

    async def total(self, tenant_id: str) -> UsageTotal:
        """All-time sums of a tenant."""
        sums = [func.coalesce(func.sum(usage.c[name]), 0) for name in COUNTERS]
        async with self._db.read() as conn:
            row = (await conn.execute(select(*sums).where(usage.c.tenant_id == tenant_id))).one()
        return UsageTotal(**{name: int(count) for name, count in zip(COUNTERS, row, strict=True)})

    async def since(self, day: date, tenant_id: str | None = None) -> list[ModelUsage]:
        """Sums from `day` on by tenant and model, most tokens first; of one tenant, or of all."""
        sums = [func.sum(usage.c[name]).label(name) for name in COUNTERS]
        query = (
            select(usage.c.tenant_id, tenants.c.name.label("tenant"), usage.c.model, *sums)
            .join(tenants, tenants.c.id == usage.c.tenant_id)
            .where(usage.c.day >= day)
            .group_by(usage.c.tenant_id, tenants.c.name, usage.c.model)
        )
        if tenant_id is not None:
            query = query.where(usage.c.tenant_id == tenant_id)
        async with self._db.read() as conn:
            rows = (await conn.execute(query)).mappings().all()
        counted = [
            ModelUsage(**{**row, **{name: int(row[name]) for name in COUNTERS}}) for row in rows
        ]
        return sorted(counted, key=lambda sums: -sums.num_tokens)

    def for_tenant(self, tenant_id: str) -> TenantUsage:
        """The view of one tenant."""
        return TenantUsage(self, tenant_id)


class TenantUsage:
    """What one tenant has used."""

    def __init__(self, usage: Usage, tenant_id: str) -> None:
        self._usage = usage
        self._tenant_id = tenant_id

    async def since(self, day: date) -> list[ModelUsage]:
        """Sums from `day` on by model, most tokens first."""
        return await self._usage.since(day, self._tenant_id)
