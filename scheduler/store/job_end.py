"""The last transition of a job, the same whoever makes it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sqlalchemy import update

from scheduler.store.clock import DbNow
from scheduler.store.job_events import EventLevel, append_event
from scheduler.store.outbox import OutboxKind, enqueue
from scheduler.store.tables import jobs
from scheduler.store.usage import add_usage

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from scheduler.domain.job import JobStatus
    from scheduler.store.job_record import JobError


async def end_job(
    conn: AsyncConnection,
    job_id: str,
    status: JobStatus,
    message: str,
    *,
    error: JobError | None = None,
) -> None:
    """Put the job, which the caller holds locked, into a final state; its leftovers are cleaned.

    What it trained is counted here: each job ends once, and a step that was run twice is no usage.
    """
    ended = await conn.execute(
        update(jobs)
        .where(jobs.c.id == job_id)
        .values(
            status=status,
            finished_at=DbNow(),
            estimated_finish=None,
            lease_owner=None,
            lease_until=None,
            error_code=error.code if error else None,
            error_message=error.message if error else None,
            error_param=error.param if error else None,
        )
        .returning(jobs.c.tenant_id, jobs.c.base_model, jobs.c.trained_tokens)
    )
    tenant_id, model, trained_tokens = ended.one()
    if trained_tokens:
        today = datetime.now(UTC).date()
        await add_usage(conn, tenant_id, today, model, trained_tokens=trained_tokens)
    level: EventLevel = "error" if error else "info"
    await append_event(conn, job_id, message, level=level)
    await enqueue(conn, OutboxKind.CLEAN_JOB, job_id)
