"""Three tenants over an adapter registry, on every database."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from scheduler.store.adapter_imports import StoredVersion, new_adapter_id
from scheduler.store.adapter_orders import Orders, OrderWork
from scheduler.store.adapters import Adapter, Adapters, TenantAdapters
from scheduler.store.checks import Checks
from scheduler.store.database import Database
from scheduler.store.leases import LeasedJob, Leases
from scheduler.store.tenants import Tenants
from tests.integration.store_kit import create_job

if TYPE_CHECKING:
    from scheduler.domain.tenant import Tenant


@dataclass
class World:
    """An owner, a borrower and a stranger."""

    db: Database
    owner: Tenant
    borrower: Tenant
    stranger: Tenant

    @property
    def mine(self) -> TenantAdapters:
        return Adapters(self.db).for_tenant(self.owner.id)

    @property
    def theirs(self) -> TenantAdapters:
        return Adapters(self.db).for_tenant(self.borrower.id)

    @property
    def strange(self) -> TenantAdapters:
        return Adapters(self.db).for_tenant(self.stranger.id)

    async def imported(self, num_versions: int = 1, **options: Any) -> Adapter:
        adapter_id = new_adapter_id()
        await self.mine.create(adapter_id, "named", "m", version(1), **options)
        for number in range(2, num_versions + 1):
            await self.mine.add_version(adapter_id, version(number))
        return await self.mine.get(adapter_id)

    async def leased(self) -> LeasedJob:
        job = await create_job(self.db, self.owner)
        check = await Checks(self.db).begin(job.id)
        assert check is not None
        await Checks(self.db).succeed(check, train_key="t", valid_key=None, message="ok")
        leased = await Leases(self.db).claim(job.id, "w1")
        assert leased is not None
        return leased

    async def number_of(self, name: str, view: TenantAdapters | None = None) -> int:
        return (await (view or self.mine).resolve(name)).ref.version


def version(number: int, num_bytes: int = 10) -> StoredVersion:
    return StoredVersion(
        uri=f"adapters/x/{number}", digest=f"d{number}", num_bytes=num_bytes,
        base_digest="base", method="lora",
    )  # fmt: skip


@pytest.fixture
async def world(db: Database) -> World:
    tenants = Tenants(db)
    names = ("acme", "buddy", "rival")
    return World(db, *[await tenants.create(name) for name in names])


async def claimed(orders: Orders, order_id: str) -> OrderWork:
    work = await orders.begin(order_id)
    assert work is not None
    return work


async def expire_orders(db: Database) -> None:
    async with db.begin() as conn:
        await conn.execute(text("UPDATE adapter_orders SET lease_until = 1, hinted_at = NULL"))
