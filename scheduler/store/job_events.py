"""What happened to a job, newest first, and the checkpoints it left."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy import Row, insert, select

from scheduler.store.clock import DbNow
from scheduler.store.ids import new_id
from scheduler.store.page import Order, Page, fetch_page
from scheduler.store.tables import checkpoints, job_events

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy.ext.asyncio import AsyncConnection

EventLevel = Literal["info", "warn", "error"]
EventType = Literal["message", "metrics"]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEvent:
    """One entry of a job's log.

    Attributes:
        id: `ft-event-...`.
        created_at: unix seconds.
        data: numbers of a `metrics` event.
    """

    id: str
    job_id: str
    created_at: int
    level: EventLevel
    type: EventType
    message: str
    data: dict[str, object] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobCheckpoint:
    """A committed checkpoint, callable as a model.

    Attributes:
        id: `ftckpt_...`.
        model_name: `ft:...:ckpt-step-N`.
        created_at: unix seconds.
    """

    id: str
    job_id: str
    step: int
    model_name: str
    created_at: int
    metrics: dict[str, float] = field(default_factory=dict)


async def append_event(
    conn: AsyncConnection,
    job_id: str,
    message: str,
    *,
    level: EventLevel = "info",
    metrics: Mapping[str, object] | None = None,
) -> None:
    """Add to a job's log in the caller's transaction; with `metrics` it is a metrics event."""
    await conn.execute(
        insert(job_events).values(
            id=new_id("ft-event-"),
            job_id=job_id,
            created_at=DbNow(),
            level=level,
            type="message" if metrics is None else "metrics",
            message=message,
            data=None if metrics is None else dict(metrics),
        )
    )


async def fetch_events(
    conn: AsyncConnection, job_id: str, *, after: str | None, limit: int, order: Order
) -> Page[JobEvent]:
    """One page of a job's events.

    Raises:
        InvalidInput: `after` is not an event of this job.
    """
    mine = select(job_events).where(job_events.c.job_id == job_id)
    page = await fetch_page(conn, mine, job_events, after=after, limit=limit, order=order)
    return Page(items=tuple(_event_of(row) for row in page.items), has_more=page.has_more)


async def fetch_checkpoints(
    conn: AsyncConnection, job_id: str, *, after: str | None, limit: int
) -> Page[JobCheckpoint]:
    """One page of a job's checkpoints, newest first.

    Raises:
        InvalidInput: `after` is not a checkpoint of this job.
    """
    mine = select(checkpoints).where(checkpoints.c.job_id == job_id)
    page = await fetch_page(conn, mine, checkpoints, after=after, limit=limit)
    return Page(items=tuple(_checkpoint_of(row) for row in page.items), has_more=page.has_more)


def _event_of(row: Row[Any]) -> JobEvent:
    return JobEvent(
        id=row.id,
        job_id=row.job_id,
        created_at=int(row.created_at),
        level=row.level,
        type=row.type,
        message=row.message,
        data=row.data,
    )


def _checkpoint_of(row: Row[Any]) -> JobCheckpoint:
    return JobCheckpoint(
        id=row.id,
        job_id=row.job_id,
        step=row.step,
        model_name=row.model_name,
        created_at=int(row.created_at),
        metrics=row.metrics,
    )
