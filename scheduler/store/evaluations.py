"""Evaluations of versions, carried out by gateways that may die and be replaced.

What follows from one, a promotion or a line in its job's events, is written in the transaction
that ends it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Row, Select, exists, func, select, update

from scheduler.domain.work_status import WorkStatus
from scheduler.store import adapter_pointers
from scheduler.store.clock import DbNow
from scheduler.store.evaluation_record import Evaluation, EvaluationWork, work_of
from scheduler.store.job_events import append_event
from scheduler.store.leased_work import WORN_OUT, LeasedWork
from scheduler.store.tables import adapters, evaluations, tenants
from scheduler.store.tenant_evaluations import TenantEvaluations

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from scheduler.domain.evaluation import EvaluationReport
    from scheduler.store.database import Database

__all__ = ["Evaluation", "EvaluationWork", "Evaluations", "TenantEvaluations"]

EVALUATION_LEASE_S = 30.0
_WORK = LeasedWork(evaluations, EVALUATION_LEASE_S)
_GONE = "The adapter is gone, or is not yours."


class Evaluations:
    """All evaluations; routes see only a tenant's view, gateways claim them one by one."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def for_tenant(self, tenant_id: str) -> TenantEvaluations:
        """The view of one tenant."""
        return TenantEvaluations(self._db, tenant_id)

    async def claim(self) -> EvaluationWork | None:
        """Take the oldest one of the tenant that has waited longest for its turn; None without.

        A tenant of whose evaluations one runs takes no turn.
        """
        async with self._db.read() as conn:  # nearly always none: do not take the write lock
            found = (await conn.execute(_whose_turn())).one_or_none()
        if found is None:
            return None
        async with self._db.begin() as conn:
            its_tenant = update(tenants).where(tenants.c.id == found.tenant_id)
            await conn.execute(its_tenant.values(evaluated_at=DbNow()))
            row = await _WORK.take(conn, found.id)
            if row is None:
                return None
            work = work_of(row)
            if work.claim.is_worn_out:
                await _fail(conn, work, WORN_OUT)
                return None
            return work

    async def renew(self, work: EvaluationWork) -> bool:
        """Extend the lease; False when the evaluation is not wanted any more."""
        async with self._db.begin() as conn:
            return await _WORK.renew(conn, work.claim)

    async def succeed(
        self, work: EvaluationWork, report: EvaluationReport, *, live_before: int | None
    ) -> bool:
        """Record what was found, and make the candidate live if it was to be and may be.

        Args:
            work: the evaluation.
            report: what was found; its `promoted` is decided here.
            live_before: the adapter's live version when the evaluation started.

        Returns:
            False when the evaluation is not wanted any more.
        """
        async with self._db.begin() as conn:
            adapter = await _own_adapter(conn, work)
            if not await _WORK.change(conn, work.claim):
                return False
            if work.plan.rules:
                report = _with_verdict(report, adapter, live_before)
            if report.promoted and adapter is not None:
                await adapter_pointers.promote(conn, adapter, work.version)
            await _tell_job(conn, work, _sentence(work, report), warn=report.promoted is False)
            return await _WORK.end(conn, work.claim, report=report.model_dump(mode="json"))

    async def fail(self, work: EvaluationWork, error: str) -> bool:
        """Record why nothing was found; False when the evaluation is not wanted any more."""
        async with self._db.begin() as conn:
            return await _fail(conn, work, error)

    async def abandon(self, work: EvaluationWork) -> None:
        """Hand the evaluation back undone, because this process is asked to end."""
        async with self._db.begin() as conn:
            await _WORK.give_back(conn, work.claim)


def _whose_turn() -> Select[Any]:
    """Id and tenant of the evaluation that comes next."""
    other = evaluations.alias()
    tenant_is_busy = exists().where(
        other.c.tenant_id == evaluations.c.tenant_id,
        other.c.status == WorkStatus.RUNNING,
        other.c.lease_until >= DbNow(),
    )
    last_turn = func.coalesce(tenants.c.evaluated_at, 0.0)
    return (
        select(evaluations.c.id, evaluations.c.tenant_id)
        .join(tenants, tenants.c.id == evaluations.c.tenant_id)
        .where(_WORK.is_free, ~tenant_is_busy)
        .order_by(last_turn, evaluations.c.seq)
        .limit(1)
    )


def _with_verdict(
    report: EvaluationReport, adapter: Row[Any] | None, live_before: int | None
) -> EvaluationReport:
    reasons = report.reasons
    if adapter is None:
        reasons = (*reasons, _GONE)
    elif adapter.live_version != live_before:
        reasons = (*reasons, adapter_pointers.OVERTAKEN)
    return report.model_copy(update={"reasons": reasons, "promoted": not reasons})


async def _own_adapter(conn: AsyncConnection, work: EvaluationWork) -> Row[Any] | None:
    """The candidate's adapter, locked, if the tenant may change it."""
    query = select(adapters).where(
        adapters.c.id == work.adapter_id,
        adapters.c.tenant_id == work.tenant_id,
        adapters.c.deleted_at.is_(None),
    )
    row: Row[Any] | None = (await conn.execute(query.with_for_update())).one_or_none()
    return row


async def _fail(conn: AsyncConnection, work: EvaluationWork, error: str) -> bool:
    if not await _WORK.end(conn, work.claim, error=error):
        return False
    await _tell_job(conn, work, f"Evaluation {work.claim.id} failed: {error}", warn=True)
    return True


async def _tell_job(
    conn: AsyncConnection, work: EvaluationWork, message: str, *, warn: bool
) -> None:
    if work.job_id is not None:
        await append_event(conn, work.job_id, message, level="warn" if warn else "info")


def _sentence(work: EvaluationWork, report: EvaluationReport) -> str:
    start = f"Evaluation {work.claim.id}"
    if report.promoted is None:
        return f"{start} is over."
    if report.promoted:
        return f"{start} kept all rules; version {work.version} is live."
    return f"{start}: version {work.version} does not become live. {' '.join(report.reasons)}"
