"""Jobs as a worker's agent sees them: leased, fenced by an epoch, all tenants.

Every write names the epoch of the lease it was made under and matches only a job that still
runs under it. A worker that lost its lease can therefore change nothing: it gets `LostLease`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, Row, func, select, update

from scheduler.domain.errors import LostLease
from scheduler.domain.job import FinetuneSpec, JobStatus
from scheduler.store.clock import DbNow
from scheduler.store.job_aftermath import order_aftermath
from scheduler.store.job_end import end_job
from scheduler.store.job_events import append_event
from scheduler.store.job_record import JobError
from scheduler.store.lease_record import CheckpointCommit, CheckpointRef, LeasedJob, Wanted
from scheduler.store.outbox import OutboxKind, enqueue
from scheduler.store.progress import record_step
from scheduler.store.tables import checkpoints, jobs, tenants
from scheduler.store.versions import commit_version, committed_version, newest_version, publish

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlalchemy.ext.asyncio import AsyncConnection

    from scheduler.domain.adapter import AdapterRef
    from scheduler.domain.messages import JobProgress
    from scheduler.store.database import Database

__all__ = ["CheckpointCommit", "CheckpointRef", "LeasedJob", "Leases", "Wanted"]

LEASE_S = 30.0
MAX_CRASHES = 3  # without a checkpoint in between; then the job itself is the suspect
REAPED_AT_ONCE = 100


class Leases:
    """Claims and fenced writes for worker agents."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def claimable(self, base_models: Collection[str], limit: int = 16) -> list[str]:
        """Ids of queued jobs on these base models: highest priority first, then oldest."""
        query = (
            select(jobs.c.id)
            .where(
                jobs.c.status == JobStatus.QUEUED,
                jobs.c.base_model.in_(list(base_models)),
            )
            .order_by(jobs.c.priority.desc(), jobs.c.seq)
            .limit(limit)
        )
        async with self._db.read() as conn:
            return list(await conn.scalars(query))

    async def claim(
        self, job_id: str, worker_id: str, lease_s: float = LEASE_S
    ) -> LeasedJob | None:
        """Take a queued job; None when another worker was faster or it is not wanted any more."""
        take = (
            update(jobs)
            .where(jobs.c.id == job_id, jobs.c.status == JobStatus.QUEUED)
            .values(
                status=JobStatus.RUNNING,
                epoch=jobs.c.epoch + 1,
                lease_owner=worker_id,
                lease_until=DbNow() + lease_s,
                cancel_requested=False,
                pause_requested=False,
            )
            .returning(jobs)
        )
        async with self._db.begin() as conn:
            row = (await conn.execute(take)).one_or_none()
            if row is None:
                return None
            job = await _leased_job(conn, row)
            start = "starts" if job.checkpoint is None else f"resumes at step {job.checkpoint.step}"
            await append_event(conn, job_id, f"Training {start}.")
            return job

    async def renew(self, job_id: str, epoch: int, lease_s: float = LEASE_S) -> Wanted:
        """Extend the lease and learn what the tenant wants. Raises LostLease."""
        async with self._db.begin() as conn:
            row = await _fenced_update(conn, job_id, epoch, lease_until=DbNow() + lease_s)
        return Wanted(cancel=row.cancel_requested, pause=row.pause_requested)

    async def record_progress(self, *reports: JobProgress) -> None:
        """Record optimizer steps of one job and lease, in one transaction; each at most once.

        A step that is run again (after a resume) leaves its first event; when its loss differs,
        a warning event tells so.

        Raises:
            LostLease: another worker owns the job now.
        """
        if not reports:
            return
        newest = reports[-1]
        if {(report.job_id, report.epoch) for report in reports} != {(newest.job_id, newest.epoch)}:
            raise ValueError("Reports of one call are of one job and one lease.")
        async with self._db.begin() as conn:
            row = await _fenced_update(
                conn,
                newest.job_id,
                newest.epoch,
                trained_tokens=newest.trained_tokens,
                estimated_finish=DbNow() + newest.eta_seconds,
            )
            exact = FinetuneSpec.model_validate(row.spec).deterministic
            for report in reports:
                await record_step(conn, report, exact=exact)

    async def commit_checkpoint(
        self, job_id: str, epoch: int, commit: CheckpointCommit
    ) -> AdapterRef:
        """Make a checkpoint official: resumable, and callable under its `ckpt-step-N` name.

        Raises:
            LostLease: another worker owns the job now.
        """
        async with self._db.begin() as conn:
            row = await _fenced_update(conn, job_id, epoch, trained_tokens=commit.trained_tokens)
            known = await committed_version(conn, row, commit)
            if known is not None:  # said again, because the answer was lost
                return known
            before = await _newest_step(conn, job_id)
            ref = await commit_version(conn, row, commit)
            if before is None or commit.step > before:  # progress: earlier crashes are forgiven
                await _fenced_update(conn, job_id, epoch, num_crashes=0)
            await append_event(conn, job_id, f"Checkpoint created at step {commit.step}.")
        return ref

    async def prune_checkpoints(self, job_id: str, epoch: int, keep: int = 2) -> list[str]:
        """Forget all but the newest `keep` training states; returns the keys to delete.

        The adapters of the older checkpoints stay callable.

        Raises:
            LostLease: another worker owns the job now.
        """
        stale = (
            select(checkpoints.c.id, checkpoints.c.uri)
            .where(checkpoints.c.job_id == job_id, checkpoints.c.uri.is_not(None))
            .order_by(checkpoints.c.step.desc())
            .offset(keep)
        )
        async with self._db.begin() as conn:
            await _fenced_row(conn, job_id, epoch)
            rows = (await conn.execute(stale)).all()
            await conn.execute(
                update(checkpoints)
                .where(checkpoints.c.id.in_([row.id for row in rows]))
                .values(uri=None, manifest_sha256=None)
            )
        return [row.uri for row in rows]

    async def finish(self, job_id: str, epoch: int, commit: CheckpointCommit) -> AdapterRef:
        """Publish: the adapter answers to its plain name and the job has succeeded, as one.

        Raises:
            LostLease: another worker owns the job now.
        """
        async with self._db.begin() as conn:
            row = await _fenced_update(conn, job_id, epoch, trained_tokens=commit.trained_tokens)
            ref = await commit_version(conn, row, commit)
            await publish(conn, ref)
            await order_aftermath(conn, row, ref)
            message = f"The job has succeeded; its adapter is {row.model_name}."
            await end_job(conn, job_id, JobStatus.SUCCEEDED, message)
        return ref

    async def fail(
        self, job_id: str, epoch: int, code: str, message: str, param: str | None = None
    ) -> None:
        """End the job with an error the tenant can read. Raises LostLease."""
        async with self._db.begin() as conn:
            await _fenced_row(conn, job_id, epoch)
            error = JobError(code=code, message=message, param=param)
            await end_job(conn, job_id, JobStatus.FAILED, message, error=error)

    async def confirm_cancel(self, job_id: str, epoch: int) -> None:
        """The worker has stopped as the tenant wanted: cancelled. Raises LostLease."""
        async with self._db.begin() as conn:
            await _fenced_row(conn, job_id, epoch)
            await end_job(conn, job_id, JobStatus.CANCELLED, "The job was cancelled.")

    async def confirm_pause(self, job_id: str, epoch: int) -> None:
        """The worker has checkpointed and stopped: paused. Raises LostLease."""
        async with self._db.begin() as conn:
            row = await _fenced_row(conn, job_id, epoch)
            await _give_back(conn, row)

    async def release(self, job_id: str, epoch: int, *, crashed: bool = False) -> None:
        """Give the job back to the queue (drain, or with `crashed` after an engine's death).

        A job whose cancellation or pause was wanted gets that instead; one that crashed
        MAX_CRASHES times without a new checkpoint fails.

        Raises:
            LostLease: another worker owns the job now.
        """
        async with self._db.begin() as conn:
            row = await _fenced_row(conn, job_id, epoch)
            await _give_back(conn, row, crashed=crashed)

    async def reap(self) -> list[str]:
        """Treat every expired lease as a crash of its worker; returns the jobs concerned."""
        expired = (
            select(jobs)
            .where(jobs.c.status == JobStatus.RUNNING, jobs.c.lease_until < DbNow())
            .limit(REAPED_AT_ONCE)
            .with_for_update(skip_locked=True)
        )
        async with self._db.begin() as conn:
            rows = (await conn.execute(expired)).all()
            for row in rows:
                await _give_back(conn, row, crashed=True)
        return [row.id for row in rows]


def _fence(job_id: str, epoch: int) -> tuple[ColumnElement[bool], ...]:
    return (
        jobs.c.id == job_id,
        jobs.c.epoch == epoch,
        jobs.c.status == JobStatus.RUNNING,
    )


async def _fenced_update(
    conn: AsyncConnection, job_id: str, epoch: int, **values: object
) -> Row[Any]:
    """Change the job if it still runs under this lease; returns its row."""
    statement = update(jobs).where(*_fence(job_id, epoch)).values(values).returning(jobs)
    row: Row[Any] | None = (await conn.execute(statement)).one_or_none()
    if row is None:
        raise LostLease(f"Job {job_id} does not run under epoch {epoch} any more.")
    return row


async def _fenced_row(conn: AsyncConnection, job_id: str, epoch: int) -> Row[Any]:
    """The job's row, locked, if it still runs under this lease."""
    query = select(jobs).where(*_fence(job_id, epoch)).with_for_update()
    row = (await conn.execute(query)).one_or_none()
    if row is None:
        raise LostLease(f"Job {job_id} does not run under epoch {epoch} any more.")
    return row


async def _give_back(conn: AsyncConnection, row: Row[Any], *, crashed: bool = False) -> None:
    """A running job that nobody runs any more goes where its tenant, or its crashes, want it."""
    num_crashes = row.num_crashes + crashed
    if row.cancel_requested:
        await end_job(conn, row.id, JobStatus.CANCELLED, "The job was cancelled.")
        return
    if num_crashes >= MAX_CRASHES:
        message = f"The worker died {num_crashes} times without getting to a new checkpoint."
        error = JobError(code="worker_crashed", message=message)
        await end_job(conn, row.id, JobStatus.FAILED, message, error=error)
        return
    status = JobStatus.PAUSED if row.pause_requested else JobStatus.QUEUED
    await conn.execute(
        update(jobs)
        .where(jobs.c.id == row.id)
        .values(
            status=status,
            num_crashes=num_crashes,
            pause_requested=False,
            lease_owner=None,
            lease_until=None,
            estimated_finish=None,
        )
    )
    reason = "The worker was lost" if crashed else "The worker stopped"
    await append_event(
        conn, row.id, f"{reason}; the job is {status}.", level="warn" if crashed else "info"
    )
    if status is JobStatus.QUEUED:
        await enqueue(conn, OutboxKind.JOB_HINT, row.id)


async def _leased_job(conn: AsyncConnection, row: Row[Any]) -> LeasedJob:
    weight = await conn.scalar(select(tenants.c.weight).where(tenants.c.id == row.tenant_id))
    assert weight is not None, "jobs.tenant_id is a foreign key"
    return LeasedJob(
        job_id=row.id,
        tenant_id=row.tenant_id,
        tenant_weight=weight,
        epoch=row.epoch,
        spec=FinetuneSpec.model_validate(row.spec),
        adapter_id=row.adapter_id,
        model_name=row.model_name,
        train_key=row.train_key,
        valid_key=row.valid_key,
        checkpoint=await _newest_checkpoint(conn, row.id),
        next_version=await newest_version(conn, row.adapter_id) + 1,
    )


async def _newest_checkpoint(conn: AsyncConnection, job_id: str) -> CheckpointRef | None:
    query = (
        select(checkpoints)
        .where(checkpoints.c.job_id == job_id, checkpoints.c.uri.is_not(None))
        .order_by(checkpoints.c.step.desc())
        .limit(1)
    )
    row = (await conn.execute(query)).one_or_none()
    if row is None:
        return None
    return CheckpointRef(step=row.step, uri=row.uri, manifest_sha256=row.manifest_sha256)


async def _newest_step(conn: AsyncConnection, job_id: str) -> int | None:
    step: int | None = await conn.scalar(
        select(func.max(checkpoints.c.step)).where(checkpoints.c.job_id == job_id)
    )
    return step
