"""Two tenants over a job store, on every database."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import update

from scheduler.domain.job import JobStatus
from scheduler.store.checks import Checks
from scheduler.store.database import Database
from scheduler.store.jobs import Job, Jobs, TenantJobs
from scheduler.store.leases import LeasedJob, Leases
from scheduler.store.outbox import Outbox, OutboxKind
from scheduler.store.tables import jobs as jobs_table
from scheduler.store.tenants import Tenants
from tests.integration.store_kit import create_job

if TYPE_CHECKING:
    from scheduler.domain.tenant import Tenant


@dataclass
class World:
    """Two tenants and everything that acts on their jobs."""

    db: Database
    tenant: Tenant
    rival: Tenant

    @property
    def jobs(self) -> TenantJobs:
        return Jobs(self.db).for_tenant(self.tenant.id)

    @property
    def leases(self) -> Leases:
        return Leases(self.db)

    async def queued(self, **spec: object) -> Job:
        job = await create_job(self.db, self.tenant, **spec)
        check = await Checks(self.db).begin(job.id)
        assert check is not None
        await Checks(self.db).succeed(check, train_key="t", valid_key=None, message="ok")
        return await self.jobs.get(job.id)

    async def running(self, lease_s: float = 30.0, **spec: object) -> LeasedJob:
        job = await self.queued(**spec)
        leased = await self.leases.claim(job.id, "w1", lease_s)
        assert leased is not None
        return leased

    async def status(self, job_id: str) -> JobStatus:
        return (await self.jobs.get(job_id)).status

    async def messages(self, job_id: str) -> list[str]:
        return [event.message for event in await self.jobs.events_since(job_id)]

    async def sent_kinds(self, job_id: str) -> list[OutboxKind]:
        return [row.kind for row in await Outbox(self.db).unsent() if row.job_id == job_id]

    async def expire_lease(self, job_id: str) -> None:
        async with self.db.begin() as conn:
            await conn.execute(
                update(jobs_table).where(jobs_table.c.id == job_id).values(lease_until=1.0)
            )


@pytest.fixture
async def world(db: Database) -> World:
    tenants = Tenants(db)
    return World(db, await tenants.create("acme"), await tenants.create("rival"))
