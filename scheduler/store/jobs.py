"""Fine-tuning jobs as their tenant sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Row, select, update

from scheduler.domain.errors import InvalidTransition, NotFound
from scheduler.domain.job import JobStatus, check_transition
from scheduler.store.idempotency import IdempotencyKey, remember
from scheduler.store.ids import new_id
from scheduler.store.job_creation import count_active, create_job
from scheduler.store.job_curve import CurvePoint, fetch_curve
from scheduler.store.job_end import end_job
from scheduler.store.job_events import (
    JobCheckpoint,
    JobEvent,
    append_event,
    fetch_checkpoints,
    fetch_events,
)
from scheduler.store.job_record import Job, JobDraft, JobError, job_of
from scheduler.store.outbox import OutboxKind, enqueue
from scheduler.store.page import Page, fetch_page
from scheduler.store.tables import job_metadata, jobs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy.ext.asyncio import AsyncConnection

    from scheduler.store.database import Database

__all__ = ["Job", "JobCheckpoint", "JobDraft", "JobError", "JobEvent", "Jobs", "TenantJobs"]


class Jobs:
    """The jobs table; routes see only a tenant's view of it."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def for_tenant(self, tenant_id: str) -> TenantJobs:
        """The view of one tenant."""
        return TenantJobs(self._db, tenant_id)


class TenantJobs:
    """The jobs of one tenant."""

    def __init__(self, db: Database, tenant_id: str) -> None:
        self._db = db
        self._tenant_id = tenant_id

    async def create(
        self,
        draft: JobDraft,
        *,
        max_active: int | None = None,
        idempotency: IdempotencyKey | None = None,
    ) -> Job:
        """Record a job; its data check is dispatched in the same transaction.

        A repeated idempotency key returns the job that the first create made.

        Raises:
            InvalidInput: a file is not the tenant's (`param` names which).
            QuotaExceeded: the tenant already has `max_active` unfinished jobs.
            IdempotencyMismatch: the key came with another body.
        """
        job_id = new_id("ftjob-")
        async with self._db.begin() as conn:
            if idempotency is not None:
                owner = await remember(conn, self._tenant_id, idempotency, job_id)
                if owner != job_id:
                    return job_of(await self._row(conn, owner))
            await create_job(conn, self._tenant_id, job_id, draft, max_active)
            return job_of(await self._row(conn, job_id))

    async def get(self, job_id: str) -> Job:
        """Raises NotFound when the tenant has no such job."""
        async with self._db.read() as conn:
            return job_of(await self._row(conn, job_id))

    async def list(
        self,
        *,
        after: str | None = None,
        limit: int = 20,
        metadata: Mapping[str, str] | None = None,
    ) -> Page[Job]:
        """One page, newest first, of the jobs that carry all pairs of `metadata`.

        Raises:
            InvalidInput: `after` is not a job of this tenant.
        """
        mine = select(jobs).where(jobs.c.tenant_id == self._tenant_id)
        for key, value in (metadata or {}).items():
            mine = mine.where(
                select(job_metadata.c.job_id)
                .where(
                    job_metadata.c.job_id == jobs.c.id,
                    job_metadata.c.key == key,
                    job_metadata.c.value == value,
                )
                .exists()
            )
        async with self._db.read() as conn:
            page = await fetch_page(conn, mine, jobs, after=after, limit=limit)
        return Page(items=tuple(job_of(row) for row in page.items), has_more=page.has_more)

    async def cancel(self, job_id: str) -> Job:
        """Cancel at once, or ask the worker of a running job to stop.

        Raises:
            NotFound: the tenant has no such job.
            InvalidTransition: the job is over.
        """
        async with self._db.begin() as conn:
            row = await self._row(conn, job_id, lock=True)
            check_transition(job_id, JobStatus(row.status), JobStatus.CANCELLED)
            if row.status == JobStatus.RUNNING:
                if not row.cancel_requested:
                    await self._ask_worker(conn, job_id, "Cancellation requested.", cancel=True)
            else:
                await end_job(conn, job_id, JobStatus.CANCELLED, "The job was cancelled.")
            return job_of(await self._row(conn, job_id))

    async def pause(self, job_id: str) -> Job:
        """Pause a queued job at once, or ask the worker of a running one to checkpoint and stop.

        Raises:
            NotFound: the tenant has no such job.
            InvalidTransition: the job is neither queued nor running.
        """
        async with self._db.begin() as conn:
            row = await self._row(conn, job_id, lock=True)
            check_transition(job_id, JobStatus(row.status), JobStatus.PAUSED)
            if row.cancel_requested:
                raise InvalidTransition(f"Job {job_id} is being cancelled; it cannot be paused.")
            if row.status == JobStatus.RUNNING:
                if not row.pause_requested:
                    await self._ask_worker(conn, job_id, "Pause requested.", pause=True)
            else:
                await _set(conn, job_id, status=JobStatus.PAUSED)
                await append_event(conn, job_id, "The job is paused.")
            return job_of(await self._row(conn, job_id))

    async def resume(self, job_id: str) -> Job:
        """Queue a paused job, or take back a pause that the worker has not confirmed yet.

        Raises:
            NotFound: the tenant has no such job.
            InvalidTransition: the job is not paused.
        """
        async with self._db.begin() as conn:
            row = await self._row(conn, job_id, lock=True)
            if row.status == JobStatus.RUNNING and row.pause_requested:
                await self._ask_worker(conn, job_id, "The pause was taken back.", pause=False)
            elif row.status == JobStatus.PAUSED:
                await _set(conn, job_id, status=JobStatus.QUEUED)
                await append_event(conn, job_id, "The job is queued again.")
                await enqueue(conn, OutboxKind.JOB_HINT, job_id)
            else:
                raise InvalidTransition(
                    f"Job {job_id} is {row.status}; only a paused job is resumed."
                )
            return job_of(await self._row(conn, job_id))

    async def events(
        self, job_id: str, *, after: str | None = None, limit: int = 20
    ) -> Page[JobEvent]:
        """One page of the job's events, newest first.

        Raises:
            NotFound: the tenant has no such job.
            InvalidInput: `after` is not an event of this job.
        """
        async with self._db.read() as conn:
            await self._row(conn, job_id)
            return await fetch_events(conn, job_id, after=after, limit=limit, order="desc")

    async def events_since(
        self, job_id: str, *, since: str | None = None, limit: int = 100
    ) -> tuple[JobEvent, ...]:
        """Events newer than event `since` (None: all), oldest first, for a live stream.

        Raises:
            NotFound: the tenant has no such job.
            InvalidInput: `since` is not an event of this job.
        """
        async with self._db.read() as conn:
            await self._row(conn, job_id)
            page = await fetch_events(conn, job_id, after=since, limit=limit, order="asc")
        return page.items

    async def checkpoints(
        self, job_id: str, *, after: str | None = None, limit: int = 10
    ) -> Page[JobCheckpoint]:
        """One page of the job's checkpoints, newest first.

        Raises:
            NotFound: the tenant has no such job.
            InvalidInput: `after` is not a checkpoint of this job.
        """
        async with self._db.read() as conn:
            await self._row(conn, job_id)
            return await fetch_checkpoints(conn, job_id, after=after, limit=limit)

    async def curve(self, job_id: str, *, max_points: int) -> tuple[CurvePoint, ...]:
        """The job's losses, oldest first. Raises NotFound when the tenant has no such job."""
        async with self._db.read() as conn:
            await self._row(conn, job_id)
            return await fetch_curve(conn, job_id, max_points=max_points)

    async def count_active(self) -> int:
        """Jobs of the tenant that are not over (paused ones count)."""
        async with self._db.read() as conn:
            return await count_active(conn, self._tenant_id)

    async def _row(self, conn: AsyncConnection, job_id: str, *, lock: bool = False) -> Row[Any]:
        query = select(jobs).where(jobs.c.id == job_id, jobs.c.tenant_id == self._tenant_id)
        row = (await conn.execute(query.with_for_update() if lock else query)).one_or_none()
        if row is None:
            raise NotFound(
                f"No fine-tuning job {job_id!r}; GET /v1/fine_tuning/jobs lists yours.",
                param="fine_tuning_job_id",
            )
        return row

    async def _ask_worker(
        self,
        conn: AsyncConnection,
        job_id: str,
        message: str,
        *,
        cancel: bool | None = None,
        pause: bool | None = None,
    ) -> None:
        wanted = {"cancel_requested": cancel, "pause_requested": pause}
        await _set(
            conn, job_id, **{name: flag for name, flag in wanted.items() if flag is not None}
        )
        await append_event(conn, job_id, message)
        await enqueue(conn, OutboxKind.JOB_HINT, job_id)


async def _set(conn: AsyncConnection, job_id: str, **values: object) -> None:
    await conn.execute(update(jobs).where(jobs.c.id == job_id).values(values))
