"""How a job's losses went: its metrics events, thinned to what a chart can show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select

from scheduler.store.tables import job_events

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy.ext.asyncio import AsyncConnection


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """One optimizer step of a job, as its worker reported it."""

    step: int
    total_steps: int
    train_loss: float
    valid_loss: float | None
    learning_rate: float
    trained_tokens: int
    tokens_per_second: float
    eta_seconds: float


async def fetch_curve(
    conn: AsyncConnection, job_id: str, *, max_points: int
) -> tuple[CurvePoint, ...]:
    """At most `max_points` evenly spaced points, oldest first; the newest is always among them."""
    newest_first = func.row_number().over(order_by=job_events.c.seq.desc())
    points = (
        select(
            job_events.c.data,
            newest_first.label("place"),
            func.count().over().label("num_points"),
        )
        .where(job_events.c.job_id == job_id, job_events.c.type == "metrics")
        .subquery()
    )
    stride = (points.c.num_points + max_points - 1) // max_points
    kept = (points.c.place - 1) % stride == 0
    rows = await conn.execute(select(points.c.data).where(kept).order_by(points.c.place.desc()))
    return tuple(_point_of(row.data) for row in rows)


def _point_of(data: Mapping[str, Any]) -> CurvePoint:
    return CurvePoint(
        step=data["step"],
        total_steps=data["total_steps"],
        train_loss=data["train_loss"],
        valid_loss=data.get("valid_loss"),
        learning_rate=data["learning_rate"],
        trained_tokens=data["trained_tokens"],
        tokens_per_second=data["tokens_per_second"],
        eta_seconds=data["eta_seconds"],
    )
