"""The evaluations of one tenant."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Row, Select, delete, func, insert, select

from scheduler.domain.errors import NotFound, QuotaExceeded
from scheduler.domain.work_status import OPEN, WorkStatus
from scheduler.store.clock import DbNow
from scheduler.store.evaluation_record import Evaluation, evaluation_of
from scheduler.store.idempotency import IdempotencyKey, remember
from scheduler.store.ids import new_id
from scheduler.store.page import Page, fetch_page
from scheduler.store.tables import evaluations
from scheduler.store.tenants import lock_tenant

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from scheduler.domain.evaluation import EvaluationPlan
    from scheduler.store.database import Database


class TenantEvaluations:
    """The evaluations of one tenant; the caller has seen that it may call the version."""

    def __init__(self, db: Database, tenant_id: str) -> None:
        self._db = db
        self._tenant_id = tenant_id

    async def create(
        self,
        adapter_id: str,
        version: int,
        plan: EvaluationPlan,
        *,
        max_open: int | None = None,
        idempotency: IdempotencyKey | None = None,
    ) -> Evaluation:
        """Have a version evaluated.

        Raises:
            QuotaExceeded: `max_open` evaluations of the tenant are not over.
            IdempotencyMismatch: the key came with another body.
        """
        evaluation_id = _fresh_id()
        async with self._db.begin() as conn:
            await lock_tenant(conn, self._tenant_id)
            if idempotency is not None:
                owner = await remember(conn, self._tenant_id, idempotency, evaluation_id)
                if owner != evaluation_id:
                    return evaluation_of(await self._row(conn, owner))
            await self._check_quota(conn, max_open)
            await insert_evaluation(
                conn,
                plan,
                id=evaluation_id,
                tenant_id=self._tenant_id,
                adapter_id=adapter_id,
                version=version,
            )
            return evaluation_of(await self._row(conn, evaluation_id))

    async def get(self, evaluation_id: str) -> Evaluation:
        """Raises NotFound when the tenant has no such evaluation."""
        async with self._db.read() as conn:
            return evaluation_of(await self._row(conn, evaluation_id))

    async def list(self, *, after: str | None = None, limit: int = 20) -> Page[Evaluation]:
        """One page, newest first.

        Raises:
            InvalidInput: `after` is not an evaluation of this tenant.
        """
        async with self._db.read() as conn:
            page = await fetch_page(conn, self._mine(), evaluations, after=after, limit=limit)
        return Page(items=tuple(evaluation_of(row) for row in page), has_more=page.has_more)

    async def delete(self, evaluation_id: str) -> None:
        """Forget an evaluation; one that runs stops within seconds.

        Raises:
            NotFound: the tenant has no such evaluation.
        """
        columns = evaluations.c
        mine = (columns.id == evaluation_id) & (columns.tenant_id == self._tenant_id)
        async with self._db.begin() as conn:
            await self._row(conn, evaluation_id)
            await conn.execute(delete(evaluations).where(mine))

    def _mine(self) -> Select[Any]:
        return select(evaluations).where(evaluations.c.tenant_id == self._tenant_id)

    async def _row(self, conn: AsyncConnection, evaluation_id: str) -> Row[Any]:
        query = self._mine().where(evaluations.c.id == evaluation_id)
        row: Row[Any] | None = (await conn.execute(query)).one_or_none()
        if row is None:
            raise NotFound(
                f"No evaluation {evaluation_id!r}; GET /v1/evaluations lists yours.",
                param="evaluation_id",
            )
        return row

    async def _check_quota(self, conn: AsyncConnection, max_open: int | None) -> None:
        is_open = evaluations.c.status.in_(OPEN)
        mine = (evaluations.c.tenant_id == self._tenant_id) & is_open
        num_open = int(await conn.scalar(select(func.count()).where(mine)) or 0)
        if max_open is not None and num_open >= max_open:
            raise QuotaExceeded(
                f"{num_open} of your evaluations are not over, which is the limit; wait for one, "
                "or delete it."
            )


async def insert_evaluation(conn: AsyncConnection, plan: EvaluationPlan, **values: object) -> str:
    """Write an evaluation, which a gateway finds there; returns its id.

    Args:
        conn: the caller's transaction.
        plan: how to evaluate.
        values: further columns of the table; without `id` it gets a fresh one.
    """
    fresh = {"id": _fresh_id(), "status": WorkStatus.QUEUED, "num_tries": 0}
    row = fresh | {"plan": plan.model_dump(mode="json")} | values
    await conn.execute(insert(evaluations).values(created_at=DbNow(), **row))
    return str(row["id"])


def _fresh_id() -> str:
    return new_id("eval-")
