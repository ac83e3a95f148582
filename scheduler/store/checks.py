"""The check of a new job's files, as the task that does it sees the job.

A check holds a short lease with the job's epoch as its fence, like a worker does later.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import or_, select, update

from scheduler.domain.job import JobStatus
from scheduler.store.clock import DbNow
from scheduler.store.job_end import end_job
from scheduler.store.job_events import append_event
from scheduler.store.job_record import JobError
from scheduler.store.outbox import OutboxKind, enqueue
from scheduler.store.tables import files, jobs

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from scheduler.store.database import Database

CHECK_LEASE_S = 30.0
MAX_CHECKS = 3  # a data set that killed so many checkers is refused


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What the task needs to check a job's files.

    Attributes:
        epoch: fencing number; goes into every later write.
        training_key: object-store key of the training file's bytes.
    """

    job_id: str
    epoch: int
    base_model: str
    training_key: str
    validation_key: str | None


class Checks:
    """Begins and ends checks."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def begin(self, job_id: str, lease_s: float = CHECK_LEASE_S) -> Check | None:
        """Take the check of a job; None when it is not wanted or somebody is at it."""
        take = (
            update(jobs)
            .where(
                jobs.c.id == job_id,
                jobs.c.status == JobStatus.VALIDATING_FILES,
                or_(jobs.c.lease_until.is_(None), jobs.c.lease_until < DbNow()),
            )
            .values(
                epoch=jobs.c.epoch + 1,
                num_checks=jobs.c.num_checks + 1,
                lease_until=DbNow() + lease_s,
            )
            .returning(jobs)
        )
        async with self._db.begin() as conn:
            row = (await conn.execute(take)).one_or_none()
            if row is None:
                return None
            if row.num_checks > MAX_CHECKS:
                message = f"Checking the files failed {MAX_CHECKS} times; are they very large?"
                error = JobError(code="check_crashed", message=message, param="training_file")
                await end_job(conn, job_id, JobStatus.FAILED, message, error=error)
                return None
            validation_key = None
            if row.validation_file is not None:
                validation_key = await _object_key(conn, row.validation_file)
            return Check(
                job_id=job_id,
                epoch=row.epoch,
                base_model=row.base_model,
                training_key=await _object_key(conn, row.training_file),
                validation_key=validation_key,
            )

    async def renew(self, check: Check, lease_s: float = CHECK_LEASE_S) -> bool:
        """Extend the lease; False when the check is not wanted any more."""
        async with self._db.begin() as conn:
            return await _fenced_update(conn, check, lease_until=DbNow() + lease_s)

    async def succeed(
        self, check: Check, *, train_key: str, valid_key: str | None, message: str
    ) -> bool:
        """Queue the job with its encoded data sets; False when that is not wanted any more."""
        async with self._db.begin() as conn:
            if not await _fenced_update(
                conn,
                check,
                status=JobStatus.QUEUED,
                train_key=train_key,
                valid_key=valid_key,
                lease_until=None,
            ):
                return False
            await append_event(conn, check.job_id, message)
            await enqueue(conn, OutboxKind.JOB_HINT, check.job_id)
        return True

    async def fail(self, check: Check, error: JobError) -> bool:
        """End the job with what is wrong with its files; False when not wanted any more."""
        async with self._db.begin() as conn:
            if not await _fenced_update(conn, check, lease_until=None):
                return False
            await end_job(conn, check.job_id, JobStatus.FAILED, error.message, error=error)
        return True

    async def abandon(self, check: Check) -> None:
        """Hand the check back undone, because this process is asked to end."""
        async with self._db.begin() as conn:
            if await _fenced_update(
                conn, check, lease_until=None, num_checks=jobs.c.num_checks - 1
            ):
                await enqueue(conn, OutboxKind.VALIDATE_JOB, check.job_id)


async def _fenced_update(conn: AsyncConnection, check: Check, **values: object) -> bool:
    result = await conn.execute(
        update(jobs)
        .where(
            jobs.c.id == check.job_id,
            jobs.c.epoch == check.epoch,
            jobs.c.status == JobStatus.VALIDATING_FILES,
        )
        .values(values)
    )
    return result.rowcount == 1


async def _object_key(conn: AsyncConnection, file_id: str) -> str:
    key = await conn.scalar(select(files.c.object_key).where(files.c.id == file_id))
    assert key is not None, "a file cannot be deleted while a job is checking it"
    return str(key)
