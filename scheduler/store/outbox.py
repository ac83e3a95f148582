"""The outbox: what must be sent because a transaction committed.

Rows are written in the transaction that makes them true and marked after they were sent, so every
hint is sent at least once. Whoever receives one looks at the job in SQL.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from sqlalchemy import delete, insert, or_, select, update

from scheduler.domain.job import JobStatus
from scheduler.store.clock import DbNow
from scheduler.store.tables import jobs, outbox

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from scheduler.store.database import Database

SENT_ROWS_KEPT_S = 3600  # long enough to look at when something went wrong


class OutboxKind(StrEnum):
    """What is to be done about a job."""

    VALIDATE_JOB = "validate_job"  # a task: check and tokenise its files
    CLEAN_JOB = "clean_job"  # a task: remove what only a running job needs
    JOB_HINT = "job_hint"  # to the workers: it is queued, or its wanted state changed


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxRow:
    """One thing to send."""

    seq: int
    kind: OutboxKind
    job_id: str


async def enqueue(conn: AsyncConnection, kind: OutboxKind, job_id: str) -> None:
    """Send `kind` about the job once the caller's transaction has committed."""
    await conn.execute(insert(outbox).values(kind=kind, job_id=job_id, created_at=DbNow()))
    await conn.execute(update(jobs).where(jobs.c.id == job_id).values(hinted_at=DbNow()))


class Outbox:
    """The relay's side."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def unsent(self, limit: int = 100) -> list[OutboxRow]:
        """The oldest rows that were not sent yet."""
        query = select(outbox).where(outbox.c.sent_at.is_(None)).order_by(outbox.c.seq)
        async with self._db.read() as conn:
            rows = await conn.execute(query.limit(limit))
            return [
                OutboxRow(seq=row.seq, kind=OutboxKind(row.kind), job_id=row.job_id) for row in rows
            ]

    async def mark_sent(self, rows: list[OutboxRow]) -> None:
        """Never send these again."""
        async with self._db.begin() as conn:
            await conn.execute(
                update(outbox)
                .where(outbox.c.seq.in_([row.seq for row in rows]))
                .values(sent_at=DbNow())
            )

    async def resend_waiting(self, waiting_s: float) -> list[str]:
        """Send again about jobs that nobody took for `waiting_s`: their hint may be lost."""
        waiting = (
            select(jobs.c.id, jobs.c.status)
            .where(
                jobs.c.status.in_([JobStatus.VALIDATING_FILES, JobStatus.QUEUED]),
                jobs.c.hinted_at < DbNow() - waiting_s,
                or_(jobs.c.lease_until.is_(None), jobs.c.lease_until < DbNow()),
            )
            .with_for_update()
        )
        async with self._db.begin() as conn:
            rows = (await conn.execute(waiting)).all()
            for row in rows:
                queued = row.status == JobStatus.QUEUED
                kind = OutboxKind.JOB_HINT if queued else OutboxKind.VALIDATE_JOB
                await enqueue(conn, kind, row.id)
        return [row.id for row in rows]

    async def purge(self) -> int:
        """Remove rows sent long ago; returns how many."""
        async with self._db.begin() as conn:
            result = await conn.execute(
                delete(outbox).where(outbox.c.sent_at < DbNow() - SENT_ROWS_KEPT_S)
            )
        return result.rowcount
