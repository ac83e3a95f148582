"""The operator's board: jobs with their leases, adapters, usage and the outbox of all tenants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Row, Select, case, func, select

from scheduler.domain.errors import NotFound
from scheduler.domain.job import JobStatus
from scheduler.store.adapter_record import Adapter, whole_adapters
from scheduler.store.clock import DbNow
from scheduler.store.job_curve import CurvePoint, fetch_curve
from scheduler.store.job_record import Job, job_of
from scheduler.store.tables import adapters, jobs, outbox, tenants

if TYPE_CHECKING:
    from scheduler.store.database import Database

_LEASE_LEFT_S = (jobs.c.lease_until - DbNow()).label("lease_left_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """Who trains a job.

    Attributes:
        owner: the worker.
        epoch: fencing number; every lease of the job has a greater one.
        left_s: until it runs out, by the database's clock; negative: it has.
    """

    owner: str
    epoch: int
    left_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardJob:
    """A job with its tenant's name and its lease; crashes are those that count against it."""

    job: Job
    tenant: str
    lease: Lease | None
    num_crashes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardAdapter:
    """An adapter with its owner."""

    adapter: Adapter
    tenant_id: str
    tenant: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxBacklog:
    """What is still to be sent; the age is that of the oldest row, 0 for none."""

    num_unsent: int
    oldest_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningJob:
    """A job that a worker holds, and its newest step; None before the first."""

    job_id: str
    tenant: str
    lease: Lease
    newest: CurvePoint | None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobTally:
    """How many jobs there are by status, 0 included; how many of them have outlived their lease."""

    by_status: dict[JobStatus, int]
    num_expired: int


class Board:
    """Reads across tenants; for admin routes only."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def jobs(self, limit: int) -> list[BoardJob]:
        """The newest jobs, newest first."""
        query = (
            select(jobs, tenants.c.name.label("tenant_name"), _LEASE_LEFT_S)
            .join(tenants, tenants.c.id == jobs.c.tenant_id)
            .order_by(jobs.c.seq.desc())
            .limit(limit)
        )
        async with self._db.read() as conn:
            return [_job(row) for row in await conn.execute(query)]

    async def running(self) -> list[RunningJob]:
        """The jobs that workers hold, each with its newest step."""
        query: Select[Any] = (
            select(
                *(jobs.c.id, jobs.c.lease_owner, jobs.c.epoch, _LEASE_LEFT_S),
                tenants.c.name.label("tenant_name"),
            )
            .join(tenants, tenants.c.id == jobs.c.tenant_id)
            .where(jobs.c.lease_owner.is_not(None), jobs.c.status == JobStatus.RUNNING)
        )
        async with self._db.read() as conn:
            rows = (await conn.execute(query)).all()
            curves = [await fetch_curve(conn, row.id, max_points=1) for row in rows]
        return [
            RunningJob(
                job_id=row.id,
                tenant=row.tenant_name,
                lease=_lease(row),
                newest=curve[-1] if curve else None,
            )
            for row, curve in zip(rows, curves, strict=True)
        ]

    async def tally(self) -> JobTally:
        """How many jobs there are."""
        is_expired = case((jobs.c.lease_until < DbNow(), 1), else_=0)
        query = select(jobs.c.status, func.count(), func.sum(is_expired)).group_by(jobs.c.status)
        async with self._db.read() as conn:
            counted = (await conn.execute(query)).all()
        found = {JobStatus(status): count for status, count, _ in counted}
        return JobTally(
            by_status={status: found.get(status, 0) for status in JobStatus},
            num_expired=sum(int(num_expired) for _, _, num_expired in counted),
        )

    async def curve(self, job_id: str, *, max_points: int) -> tuple[CurvePoint, ...]:
        """The losses of any tenant's job, oldest first. Raises NotFound: there is no such job."""
        async with self._db.read() as conn:
            if await conn.scalar(select(jobs.c.id).where(jobs.c.id == job_id)) is None:
                raise NotFound(f"No fine-tuning job {job_id!r}; GET /v1/admin/jobs lists them.")
            return await fetch_curve(conn, job_id, max_points=max_points)

    async def adapters(self, limit: int) -> list[BoardAdapter]:
        """The newest adapters, newest first, with all their versions."""
        query = (
            select(adapters, tenants.c.name.label("owner_name"))
            .join(tenants, tenants.c.id == adapters.c.tenant_id)
            .where(adapters.c.deleted_at.is_(None))
            .order_by(adapters.c.seq.desc())
            .limit(limit)
        )
        async with self._db.read() as conn:
            rows = (await conn.execute(query)).all()
            whole = await whole_adapters(conn, rows, reader_id=None)
        return [
            BoardAdapter(adapter=adapter, tenant_id=row.tenant_id, tenant=row.owner_name)
            for row, adapter in zip(rows, whole, strict=True)
        ]

    async def outbox(self) -> OutboxBacklog:
        """How much waits to be sent, and since when."""
        age_s = func.max(DbNow() - outbox.c.created_at)
        query = select(func.count(), func.coalesce(age_s, 0.0)).where(outbox.c.sent_at.is_(None))
        async with self._db.read() as conn:
            num_unsent, oldest_s = (await conn.execute(query)).one()
        return OutboxBacklog(num_unsent=num_unsent, oldest_s=oldest_s)


def _job(row: Row[Any]) -> BoardJob:
    lease = None if row.lease_owner is None else _lease(row)
    return BoardJob(
        job=job_of(row), tenant=row.tenant_name, lease=lease, num_crashes=row.num_crashes
    )


def _lease(row: Row[Any]) -> Lease:
    return Lease(owner=row.lease_owner, epoch=row.epoch, left_s=row.lease_left_s)
