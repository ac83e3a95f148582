"""Steps of a job, each recorded once however often it is run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from sqlalchemy import Row, insert, select, update

from scheduler.store.job_events import append_event
from scheduler.store.tables import metrics

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from scheduler.domain.messages import JobProgress

# Under mixed load a repeated step may sum in another order and dtype (bf16 keeps 3 digits).
REPEAT_REL_TOL = 0.02
_NOT_SHOWN = {"type", "job_id", "epoch"}


async def record_step(conn: AsyncConnection, report: JobProgress, *, exact: bool) -> None:
    """Record a step with its event, or compare it with what it was the first time.

    Args:
        conn: the caller's transaction, which holds the job's lease.
        report: the step.
        exact: whether a repeated step must give the very same loss.
    """
    same_step = (metrics.c.job_id == report.job_id, metrics.c.step == report.step)
    first = (await conn.execute(select(metrics).where(*same_step))).one_or_none()
    if first is None:
        await conn.execute(
            insert(metrics).values(
                job_id=report.job_id,
                step=report.step,
                epoch=report.epoch,
                train_loss=report.train_loss,
                valid_loss=report.valid_loss,
                num_mismatches=0,
            )
        )
        await _append_metrics(conn, report)
        return
    if first.valid_loss is None and report.valid_loss is not None:
        await conn.execute(update(metrics).where(*same_step).values(valid_loss=report.valid_loss))
        await _append_metrics(conn, report)
    if not _is_same(first, report, exact=exact):
        await conn.execute(
            update(metrics).where(*same_step).values(num_mismatches=first.num_mismatches + 1)
        )
        await append_event(
            conn,
            report.job_id,
            f"Step {report.step} was run again and its loss is {report.train_loss:.6g}, not "
            f"{first.train_loss:.6g} as before.",
            level="warn",
        )


def _is_same(first: Row[Any], report: JobProgress, *, exact: bool) -> bool:
    tolerance = 0.0 if exact else REPEAT_REL_TOL
    return math.isclose(first.train_loss, report.train_loss, rel_tol=tolerance)


async def _append_metrics(conn: AsyncConnection, report: JobProgress) -> None:
    shown = report.model_dump(exclude=_NOT_SHOWN, exclude_none=True)
    message = f"Step {report.step}/{report.total_steps}: training loss={report.train_loss:.4f}"
    await append_event(conn, report.job_id, message, metrics=shown)
