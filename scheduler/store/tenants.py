"""Tenants: who exists."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, Row, select, update

from scheduler.domain.errors import Conflict, InvalidInput, NotFound
from scheduler.domain.rate_limit import MAX_PER_MINUTE
from scheduler.domain.service_class import DEFAULT
from scheduler.domain.tenant import MAX_WEIGHT, Tenant
from scheduler.store.clock import DbNow
from scheduler.store.ids import new_id
from scheduler.store.tables import tenants
from scheduler.store.upsert import upsert

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from scheduler.store.database import Database

RATES = ("requests_per_minute", "tokens_per_minute")
SLUG = re.compile("[a-z0-9][a-z0-9-]{0,62}")


def tenant_of(row: Row[Any]) -> Tenant:
    """The tenant that a row of `tenants` describes."""
    return Tenant(
        id=row.id,
        name=row.name,
        is_admin=row.is_admin,
        weight=row.weight,
        service_class=row.service_class,
        requests_per_minute=row.requests_per_minute,
        tokens_per_minute=row.tokens_per_minute,
    )


async def lock_tenant(conn: AsyncConnection, tenant_id: str) -> Tenant:
    """The tenant, locked until the transaction ends, so that its quotas cannot be overrun.

    Raises:
        NotFound: no such tenant.
    """
    query = select(tenants).where(tenants.c.id == tenant_id).with_for_update()
    row = (await conn.execute(query)).one_or_none()
    if row is None:
        raise NotFound(f"No tenant {tenant_id!r}.")
    return tenant_of(row)


class Tenants:
    """All tenants; for composition roots, the command line and admin routes."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def create(
        self,
        name: str,
        *,
        is_admin: bool = False,
        weight: float = 1.0,
        service_class: str = DEFAULT,
        requests_per_minute: int = 0,
        tokens_per_minute: int = 0,
    ) -> Tenant:
        """Create a tenant; whether its class exists is the caller's to ask the workers.

        A rate of 0 is no limit.

        Raises:
            InvalidInput: the name is not a slug, or a number is out of range.
            Conflict: the name is taken.
        """
        _check_weight(weight)
        if not SLUG.fullmatch(name):
            raise InvalidInput(
                f"Tenant name {name!r} is not a slug; use up to 63 of a-z, 0-9 and '-'.",
                param="name",
            )
        tenant = Tenant(
            id=new_id("org-"),
            name=name,
            is_admin=is_admin,
            weight=weight,
            service_class=service_class,
            requests_per_minute=_stored_rate("requests_per_minute", requests_per_minute),
            tokens_per_minute=_stored_rate("tokens_per_minute", tokens_per_minute),
        )
        async with self._db.begin() as conn:
            result = await conn.execute(
                upsert(conn, tenants)
                .values(**asdict(tenant), created_at=DbNow())
                .on_conflict_do_nothing(index_elements=["name"])
            )
        if result.rowcount == 0:
            raise Conflict(f"A tenant named {name!r} exists; choose another name.", param="name")
        return tenant

    async def change(
        self,
        tenant_id: str,
        *,
        weight: float | None = None,
        service_class: str | None = None,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
    ) -> Tenant:
        """Change what is given, for requests from now on; jobs see a weight at their next lease.

        A rate of 0 lifts the limit.

        Raises:
            InvalidInput: a number is out of range.
            NotFound: no such tenant.
        """
        given: dict[str, Any] = {
            "weight": weight,
            "service_class": service_class,
            "requests_per_minute": requests_per_minute,
            "tokens_per_minute": tokens_per_minute,
        }
        changes = {name: value for name, value in given.items() if value is not None}
        if weight is not None:
            _check_weight(weight)
        for name in changes.keys() & RATES:
            changes[name] = _stored_rate(name, changes[name])
        if changes:
            async with self._db.begin() as conn:
                await conn.execute(
                    update(tenants).where(tenants.c.id == tenant_id).values(**changes)
                )
        return await self.get(tenant_id)

    async def get(self, tenant_id: str) -> Tenant:
        """Raises NotFound when there is no such tenant."""
        return await self._one(tenants.c.id == tenant_id, tenant_id)

    async def get_by_name(self, name: str) -> Tenant:
        """Raises NotFound when there is no such tenant."""
        return await self._one(tenants.c.name == name, name)

    async def list(self) -> list[Tenant]:
        """All tenants, oldest first."""
        async with self._db.read() as conn:
            rows = await conn.execute(select(tenants).order_by(tenants.c.seq))
            return [tenant_of(row) for row in rows]

    async def _one(self, condition: ColumnElement[bool], asked: str) -> Tenant:
        async with self._db.read() as conn:
            row = (await conn.execute(select(tenants).where(condition))).one_or_none()
        if row is None:
            raise NotFound(f"No tenant {asked!r}.")
        return tenant_of(row)


def _check_weight(weight: float) -> None:
    if not 0 < weight <= MAX_WEIGHT:
        raise InvalidInput(
            f"A weight of {weight:g} is out of range; choose above 0 and at most {MAX_WEIGHT:g}.",
            param="weight",
        )


def _stored_rate(name: str, limit: int) -> int | None:
    """What a row says; without a limit nothing."""
    if not 0 <= limit <= MAX_PER_MINUTE:
        raise InvalidInput(
            f"{limit} a minute is out of range; choose up to {MAX_PER_MINUTE}, or 0 for no limit.",
            param=name,
        )
    return limit or None
