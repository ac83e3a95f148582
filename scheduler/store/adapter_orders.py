"""Orders to make something of versions, carried out by tasks that may die and be tried again.

Like the check of a job's files, an order is held under a short lease, with the number of the try
as its fence. What it has made is recorded in the transaction that ends it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Row, func, or_, select, update

from scheduler.domain.adapter_order import OrderKind
from scheduler.domain.errors import NotFound
from scheduler.store import adapter_pointers
from scheduler.store.adapter_imports import (
    StoredVersion,
    check_room,
    insert_adapter,
    insert_version,
    refuse_while_job_runs,
)
from scheduler.store.adapter_order_record import Order, OrderWork
from scheduler.store.clock import DbNow
from scheduler.store.ids import new_id
from scheduler.store.leased_work import WORN_OUT, Claim, LeasedWork
from scheduler.store.tables import adapter_orders, adapters
from scheduler.store.tenant_orders import TenantOrders
from scheduler.store.tenants import lock_tenant

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from scheduler.store.database import Database

__all__ = ["Order", "OrderWork", "Orders", "TenantOrders"]

ORDER_LEASE_S = 60.0
_FOLDERS = {
    OrderKind.EXPORT: "merged-",
    OrderKind.COMPRESS: "compressed-",
    OrderKind.MERGE: "made-",
}
_WORK = LeasedWork(adapter_orders, ORDER_LEASE_S)


class Orders:
    """All orders; routes see only a tenant's view, tasks claim them one by one."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def for_tenant(self, tenant_id: str) -> TenantOrders:
        """The view of one tenant."""
        return TenantOrders(self._db, tenant_id)

    async def hint(self, resend_after_s: float) -> list[str]:
        """Ids of orders that a task should look at now; the next time only after a while."""
        orders = adapter_orders.c
        waiting = _WORK.is_free
        due = or_(orders.hinted_at.is_(None), orders.hinted_at < DbNow() - resend_after_s)
        async with self._db.read() as conn:  # nearly always none: do not take the write lock
            if await conn.scalar(select(func.count()).where(waiting, due)) == 0:
                return []
        statement = update(adapter_orders).where(waiting, due).values(hinted_at=DbNow())
        async with self._db.begin() as conn:
            return list((await conn.scalars(statement.returning(orders.id))).all())

    async def begin(self, order_id: str) -> OrderWork | None:
        """Take an order; None when it is not wanted or somebody is at it."""
        async with self._db.begin() as conn:
            row = await _WORK.take(conn, order_id)
            if row is None:
                return None
            work = _work_of(row)
            if work.claim.is_worn_out:
                await _WORK.end(conn, work.claim, error=WORN_OUT)
                return None
            return work

    async def renew(self, work: OrderWork) -> bool:
        """Extend the lease; False when the order is not wanted any more."""
        async with self._db.begin() as conn:
            return await _WORK.renew(conn, work.claim)

    async def succeed_export(self, work: OrderWork, files: dict[str, int]) -> bool:
        """Record the stored model; False when it is not wanted any more."""
        async with self._db.begin() as conn:
            return await _WORK.end(conn, work.claim, uri=work.target_uri, files=files)

    async def succeed_version(
        self, work: OrderWork, stored: StoredVersion, *, name: str | None, promote: bool
    ) -> bool:
        """Record the stored version; False when it is not wanted any more.

        Args:
            work: the order.
            stored: what was made.
            name: of the adapter to be made with it; None adds to the one that is there.
            promote: make it live, if live is what was when it was ordered, or its source.

        Raises:
            QuotaExceeded: the tenant holds too much.
            NotFound: the adapter that was to get it is gone.
            Conflict: the adapter's job still runs.
        """
        async with self._db.begin() as conn:
            tenant = await lock_tenant(conn, work.tenant_id)
            if not await _WORK.change(conn, work.claim):
                return False
            await check_room(conn, work.tenant_id, stored.num_bytes, work.max_total_bytes)
            if name is not None:
                await insert_adapter(conn, work.adapter_id, tenant, name, work.base_model)
            adapter = await _adapter(conn, work)
            await refuse_while_job_runs(conn, adapter)
            version = await insert_version(conn, adapter, stored)
            promoted = adapter.live_version in (work.live_before, work.version) if promote else None
            if promoted:
                await adapter_pointers.promote(conn, adapter, version)
            return await _WORK.end(conn, work.claim, result_version=version, promoted=promoted)

    async def fail(self, work: OrderWork, error: str) -> bool:
        """Record why nothing will be made; False when it is not wanted any more."""
        async with self._db.begin() as conn:
            return await _WORK.end(conn, work.claim, error=error)

    async def abandon(self, work: OrderWork) -> None:
        """Hand the order back undone, because this process is asked to end."""
        async with self._db.begin() as conn:
            await _WORK.give_back(conn, work.claim, hinted_at=None)


async def _adapter(conn: AsyncConnection, work: OrderWork) -> Row[Any]:
    """The adapter that gets the version, locked."""
    query = select(adapters).where(
        adapters.c.id == work.adapter_id,
        adapters.c.tenant_id == work.tenant_id,
        adapters.c.deleted_at.is_(None),
    )
    row: Row[Any] | None = (await conn.execute(query.with_for_update())).one_or_none()
    if row is None:
        raise NotFound(f"Adapter {work.adapter_id} was deleted meanwhile.")
    return row


def _work_of(row: Row[Any]) -> OrderWork:
    return OrderWork(
        claim=Claim(row.id, row.num_tries),
        tenant_id=row.tenant_id,
        kind=OrderKind(row.kind),
        adapter_id=row.adapter_id,
        version=row.version,
        base_model=row.base_model,
        options=row.options or {},
        max_total_bytes=row.max_total_bytes,
        live_before=row.live_before,
        target_uri=f"adapters/{row.adapter_id}/{new_id(_FOLDERS[OrderKind(row.kind)])}",
    )
