"""The orders of one tenant: full models, compressions, merges."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Row, delete, func, insert, select

from scheduler.domain.adapter_order import OrderKind
from scheduler.domain.errors import Conflict, NotFound, QuotaExceeded
from scheduler.domain.work_status import OPEN, WorkStatus
from scheduler.store.adapter_imports import refuse_while_job_runs
from scheduler.store.adapter_order_record import Order, order_of
from scheduler.store.clock import DbNow
from scheduler.store.idempotency import IdempotencyKey, remember
from scheduler.store.ids import new_id
from scheduler.store.page import Page, fetch_page
from scheduler.store.tables import adapter_orders, adapter_versions, adapters
from scheduler.store.tenants import lock_tenant

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement
    from sqlalchemy.ext.asyncio import AsyncConnection

    from scheduler.domain.adapter_order import Compression, Merging
    from scheduler.store.database import Database


class TenantOrders:
    """The orders of one tenant; the caller has seen that the adapters are its own."""

    def __init__(self, db: Database, tenant_id: str) -> None:
        self._db = db
        self._tenant_id = tenant_id

    # ---- full models: one of a version, whoever asks how often ---------------------------

    async def export(self, adapter_id: str, version: int, *, max_kept: int | None = None) -> Order:
        """Have a full model made; one that is ordered or made already is returned as it is.

        Raises:
            NotFound: the tenant owns no such version.
            QuotaExceeded: it keeps `max_kept` others.
        """
        async with self._db.begin() as conn:
            await lock_tenant(conn, self._tenant_id)
            row = await self._find(conn, export_id(adapter_id, version))
            if row is not None and row.status != WorkStatus.FAILED:
                return order_of(row)
            base_model = await self._base_of(conn, adapter_id, version)
            if row is not None:
                await conn.execute(delete(adapter_orders).where(adapter_orders.c.id == row.id))
            is_kept = adapter_orders.c.status != WorkStatus.FAILED
            num_kept = await self._count(conn, OrderKind.EXPORT, where=is_kept)
            if max_kept is not None and num_kept >= max_kept:
                raise QuotaExceeded(
                    f"You keep {max_kept} merged models, which is the limit; delete one first."
                )
            return await self._insert(
                conn,
                id=export_id(adapter_id, version),
                kind=OrderKind.EXPORT,
                adapter_id=adapter_id,
                version=version,
                base_model=base_model,
            )

    async def exported(self, adapter_id: str, version: int) -> Order:
        """The order of a full model. Raises NotFound when the tenant has not ordered it."""
        async with self._db.read() as conn:
            row = await self._find(conn, export_id(adapter_id, version))
        if row is None:
            raise NotFound(
                f"Version {version} of adapter {adapter_id!r} is not merged; "
                f"POST /v1/adapters/{adapter_id}/versions/{version}/merge orders it."
            )
        return order_of(row)

    async def finished_export(self, adapter_id: str, version: int) -> Order:
        """The full model, made.

        Raises:
            NotFound: the tenant has not ordered it.
            Conflict: it is not made, or cannot be.
        """
        order = await self.exported(adapter_id, version)
        if order.status is not WorkStatus.SUCCEEDED:
            reason = f": {order.error_message}" if order.error_message else "; ask again later."
            raise Conflict(f"The merge of version {version} is {order.status}{reason}")
        return order

    # ---- new versions --------------------------------------------------------------------

    async def compress(
        self,
        adapter_id: str,
        version: int,
        compression: Compression,
        *,
        max_open: int | None = None,
        max_total_bytes: int | None = None,
        idempotency: IdempotencyKey | None = None,
    ) -> Order:
        """Have a version made small, as a further version of its adapter.

        Raises:
            NotFound: the tenant owns no such version.
            Conflict: the adapter's job still runs.
            QuotaExceeded: `max_open` orders of it are not over.
            IdempotencyMismatch: the key came with another body.
        """
        async with self._db.begin() as conn:
            order_id, earlier = await self._open(conn, max_open, idempotency)
            if earlier is not None:
                return earlier
            await self._check_idle(conn, adapter_id)
            return await self._insert(
                conn,
                id=order_id,
                kind=OrderKind.COMPRESS,
                adapter_id=adapter_id,
                version=version,
                base_model=await self._base_of(conn, adapter_id, version),
                options=compression.model_dump(mode="json"),
                max_total_bytes=max_total_bytes,
            )

    async def merge(
        self,
        adapter_id: str,
        base_model: str,
        merging: Merging,
        *,
        max_open: int | None = None,
        max_total_bytes: int | None = None,
        idempotency: IdempotencyKey | None = None,
    ) -> Order:
        """Have versions merged, as the next version of an adapter or the first of a new one.

        Raises:
            Conflict: the job of the adapter that gets the version still runs.
            QuotaExceeded: `max_open` orders of the tenant are not over.
            IdempotencyMismatch: the key came with another body.
        """
        async with self._db.begin() as conn:
            order_id, earlier = await self._open(conn, max_open, idempotency)
            if earlier is not None:
                return earlier
            await self._check_idle(conn, adapter_id)
            return await self._insert(
                conn,
                id=order_id,
                kind=OrderKind.MERGE,
                adapter_id=adapter_id,
                base_model=base_model,
                options=merging.model_dump(mode="json"),
                max_total_bytes=max_total_bytes,
            )

    async def get(self, order_id: str) -> Order:
        """A compression or a merge. Raises NotFound when the tenant has no such order."""
        async with self._db.read() as conn:
            row = await self._find(conn, order_id)
        if row is None or row.kind == OrderKind.EXPORT:
            raise NotFound(f"No order {order_id!r}.", param="order_id")
        return order_of(row)

    async def list(self, *, after: str | None = None, limit: int = 20) -> Page[Order]:
        """One page of the compressions and merges, newest first.

        Raises:
            InvalidInput: `after` is not among them.
        """
        orders = adapter_orders.c
        query = select(adapter_orders).where(
            orders.tenant_id == self._tenant_id, orders.kind != OrderKind.EXPORT
        )
        newest = ("created_at", "id")  # an order has no number, and two may be of one instant
        async with self._db.read() as conn:
            page = await fetch_page(
                conn, query, adapter_orders, after=after, limit=limit, by=newest
            )
        return Page(items=tuple(order_of(row) for row in page), has_more=page.has_more)

    async def delete(self, order: Order) -> str | None:
        """Forget an order; returns key of the full model that the caller then removes.

        An order that still runs fails its fence, and its task removes what it has made.
        """
        forget = delete(adapter_orders).where(self._is_mine(order.id))
        async with self._db.begin() as conn:
            uri: str | None = await conn.scalar(forget.returning(adapter_orders.c.uri))
        return uri

    # ---- inside --------------------------------------------------------------------------

    async def _open(
        self, conn: AsyncConnection, max_open: int | None, idempotency: IdempotencyKey | None
    ) -> tuple[str, Order | None]:
        """A fresh id, and the order that an earlier request with this key made."""
        order_id = new_id("order-")
        await lock_tenant(conn, self._tenant_id)
        if idempotency is not None:
            owner = await remember(conn, self._tenant_id, idempotency, order_id)
            row = await self._find(conn, owner)
            if row is not None:
                return owner, order_of(row)
            order_id = owner
        is_open = adapter_orders.c.status.in_(OPEN)
        num_open = await self._count(conn, OrderKind.COMPRESS, OrderKind.MERGE, where=is_open)
        if max_open is not None and num_open >= max_open:
            raise QuotaExceeded(
                f"{num_open} of your compressions and merges are not over, which is the limit; "
                "wait for one, or delete it."
            )
        return order_id, None

    async def _insert(self, conn: AsyncConnection, **values: object) -> Order:
        order_id = await insert_order(conn, tenant_id=self._tenant_id, **values)
        row = await self._find(conn, order_id)
        assert row is not None
        return order_of(row)

    def _is_mine(self, order_id: str) -> ColumnElement[bool]:
        orders = adapter_orders.c
        return (orders.id == order_id) & (orders.tenant_id == self._tenant_id)

    async def _find(self, conn: AsyncConnection, order_id: str) -> Row[Any] | None:
        query = select(adapter_orders).where(self._is_mine(order_id))
        row: Row[Any] | None = (await conn.execute(query)).one_or_none()
        return row

    async def _count(
        self, conn: AsyncConnection, *kinds: OrderKind, where: ColumnElement[bool]
    ) -> int:
        orders = adapter_orders.c
        query = select(func.count()).where(
            orders.tenant_id == self._tenant_id, orders.kind.in_(kinds), where
        )
        return int(await conn.scalar(query) or 0)

    async def _check_idle(self, conn: AsyncConnection, adapter_id: str) -> None:
        """The adapter, if there is one yet, gets no versions from a job.

        Raises:
            Conflict: it does.
        """
        query = select(adapters).where(adapters.c.id == adapter_id)
        adapter = (await conn.execute(query)).one_or_none()
        if adapter is not None:
            await refuse_while_job_runs(conn, adapter)

    async def _base_of(self, conn: AsyncConnection, adapter_id: str, version: int) -> str:
        """Base model of a version that the tenant owns."""
        query = (
            select(adapters.c.base_model)
            .join(adapters, adapters.c.id == adapter_versions.c.adapter_id)
            .where(
                adapters.c.id == adapter_id,
                adapters.c.tenant_id == self._tenant_id,
                adapter_versions.c.version == version,
            )
        )
        base_model: str | None = await conn.scalar(query)
        if base_model is None:
            raise NotFound(
                f"Adapter {adapter_id} has no version {version}; "
                f"GET /v1/adapters/{adapter_id}/versions lists them.",
                param="version",
            )
        return base_model


def export_id(adapter_id: str, version: int) -> str:
    """A version never changes, so neither does its full model: the two numbers name it."""
    return f"{adapter_id}@{version}"


async def insert_order(conn: AsyncConnection, **values: object) -> str:
    """Write an order, which the relay finds there; returns its id.

    Args:
        conn: the caller's transaction.
        values: columns of the table; without `id` it gets a fresh one.
    """
    fresh = {"id": new_id("order-"), "status": WorkStatus.QUEUED, "num_tries": 0}
    row = fresh | values
    live = select(adapters.c.live_version).where(adapters.c.id == row["adapter_id"])
    made = {"created_at": DbNow(), "live_before": live.scalar_subquery()}
    await conn.execute(insert(adapter_orders).values(**made, **row))
    return str(row["id"])
