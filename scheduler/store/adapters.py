"""The adapters of a tenant, and those that others share with it: names to immutable versions."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Row, Select, delete, func, or_, select, update

from scheduler.domain.adapter import AdapterRef
from scheduler.domain.errors import AdapterInUse, NotFound, PermissionDenied
from scheduler.store import adapter_pointers, adapter_shares
from scheduler.store.adapter_imports import (
    StoredVersion,
    check_room,
    insert_adapter,
    insert_version,
    refuse_while_job_runs,
)
from scheduler.store.adapter_names import unknown_model, version_query
from scheduler.store.adapter_record import (
    Adapter,
    AdapterVersion,
    adapter_of,
    version_of,
    whole_adapters,
)
from scheduler.store.clock import DbNow
from scheduler.store.idempotency import IdempotencyKey, remember
from scheduler.store.page import Order, Page, fetch_page
from scheduler.store.tables import adapter_orders, adapter_versions, adapters, tenants
from scheduler.store.tenants import lock_tenant

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy.ext.asyncio import AsyncConnection

    from scheduler.store.database import Database

__all__ = ["Adapter", "AdapterVersion", "Adapters", "ResolvedAdapter", "TenantAdapters"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedAdapter:
    """A model name taken apart.

    Attributes:
        name: the name that was asked for.
        base_model: the model under the adapter.
        ref: the version that answers to the name now.
    """

    name: str
    base_model: str
    ref: AdapterRef


class Adapters:
    """The adapters table; routes see only a tenant's view of it."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def for_tenant(self, tenant_id: str) -> TenantAdapters:
        """The view of one tenant."""
        return TenantAdapters(self._db, tenant_id)


class TenantAdapters:
    """The adapters that one tenant owns or borrows; only an owner changes one."""

    def __init__(self, db: Database, tenant_id: str) -> None:
        self._db = db
        self._tenant_id = tenant_id

    # ---- reading -------------------------------------------------------------------------

    async def list(
        self, *, after: str | None = None, limit: int = 100, order: Order = "asc"
    ) -> Page[Adapter]:
        """One page, oldest first unless `order` is desc, running jobs' too.

        Raises:
            InvalidInput: `after` is not an adapter of this list.
        """
        async with self._db.read() as conn:
            page = await fetch_page(
                conn, self._visible(), adapters, after=after, limit=limit, order=order
            )
            whole = await whole_adapters(conn, page.items, self._tenant_id)
        return Page(items=tuple(whole), has_more=page.has_more)

    async def published(self) -> tuple[Adapter, ...]:
        """All that answer to their plain name, oldest first, without their versions."""
        version = func.coalesce(adapters.c.live_version, adapters.c.final_version)
        query = self._visible().where(version.is_not(None)).order_by(adapters.c.seq)
        async with self._db.read() as conn:
            rows = await conn.execute(query)
            return tuple(adapter_of(row, self._tenant_id) for row in rows)

    async def get(self, adapter_id: str) -> Adapter:
        """Raises NotFound when the tenant has no such adapter."""
        async with self._db.read() as conn:
            return await self._whole(conn, adapter_id)

    async def get_own(self, adapter_id: str) -> Adapter:
        """The adapter, if the tenant may change and export it.

        Raises:
            NotFound: the tenant has no such adapter.
            PermissionDenied: it is borrowed.
        """
        adapter = await self.get(adapter_id)
        if adapter.shared_by is not None:
            raise _borrowed(adapter_id, adapter.shared_by)
        return adapter

    async def may_call(self, adapter_id: str) -> bool:
        """Whether the tenant owns or borrows the adapter now."""
        mine = self._visible().where(adapters.c.id == adapter_id)
        async with self._db.read() as conn:
            return bool(await conn.scalar(select(mine.exists())))

    async def versions(
        self, adapter_id: str, *, after: int | None = None, limit: int = 20
    ) -> Page[AdapterVersion]:
        """One page, newest first; `after` is the last version number of the page before.

        Raises:
            NotFound: the tenant has no such adapter.
        """
        query = select(adapter_versions).where(adapter_versions.c.adapter_id == adapter_id)
        if after is not None:
            query = query.where(adapter_versions.c.version < after)
        async with self._db.read() as conn:
            owner_id = (await self._row(conn, adapter_id)).tenant_id
            newest_first = query.order_by(adapter_versions.c.version.desc()).limit(limit + 1)
            rows = (await conn.execute(newest_first)).all()
        is_owner = owner_id == self._tenant_id
        page = tuple(version_of(row, is_owner=is_owner) for row in rows[:limit])
        return Page(items=page, has_more=len(rows) > limit)

    async def version(self, adapter_id: str, version: int) -> AdapterVersion:
        """Raises NotFound when the tenant has no such adapter, or the adapter no such version."""
        async with self._db.read() as conn:
            adapter = await self._row(conn, adapter_id)
            await adapter_pointers.check_version(conn, adapter, version)
            query = select(adapter_versions).where(
                adapter_versions.c.adapter_id == adapter_id, adapter_versions.c.version == version
            )
            row = (await conn.execute(query)).one()
        return version_of(row, is_owner=adapter.tenant_id == self._tenant_id)

    async def resolve(self, model_name: str) -> ResolvedAdapter:
        """The version behind any form of a name; see adapter_names.py.

        Raises:
            ModelNotFound: unknown, foreign or not published; one text for all.
        """
        async with self._db.read() as conn:
            query = version_query(self._visible(), model_name)
            row = (await conn.execute(query)).first()
        if row is None:
            raise unknown_model(model_name)
        ref = AdapterRef(
            adapter_id=row.id,
            version=row.version,
            digest=row.digest,
            uri=row.uri,
            is_pinned=row.is_pinned,
        )
        return ResolvedAdapter(name=model_name, base_model=row.base_model, ref=ref)

    async def named(self, model_name: str) -> Adapter:
        """The adapter with this plain name, published or not.

        Raises:
            ModelNotFound: the tenant has none.
        """
        async with self._db.read() as conn:
            query = self._visible().where(adapters.c.model_name == model_name)
            row = (await conn.execute(query)).one_or_none()
        if row is None:
            raise unknown_model(model_name)
        return adapter_of(row, self._tenant_id)

    # ---- importing -----------------------------------------------------------------------

    async def create(
        self,
        adapter_id: str,
        name: str,
        base_model: str,
        imported: StoredVersion,
        *,
        max_total_bytes: int | None = None,
        idempotency: IdempotencyKey | None = None,
    ) -> Adapter:
        """Record an adapter whose artefact is stored and checked; it can be called at once.

        With a repeated idempotency key the earlier adapter comes back (its id is not
        `adapter_id`): the caller then deletes the bytes that it has just stored.

        Raises:
            QuotaExceeded: the tenant's imports would pass `max_total_bytes`.
            IdempotencyMismatch: the key came with another body.
        """
        async with self._db.begin() as conn:
            if idempotency is not None:
                owner = await remember(conn, self._tenant_id, idempotency, adapter_id)
                if owner != adapter_id:
                    return await self._whole(conn, owner)
            tenant = await lock_tenant(conn, self._tenant_id)
            await check_room(conn, self._tenant_id, imported.num_bytes, max_total_bytes)
            await insert_adapter(conn, adapter_id, tenant, name, base_model)
            await insert_version(conn, await self._owned(conn, adapter_id), imported)
            return await self._whole(conn, adapter_id)

    async def add_version(
        self, adapter_id: str, imported: StoredVersion, *, max_total_bytes: int | None = None
    ) -> AdapterVersion:
        """Record a further version; the plain name goes on meaning what it meant.

        Raises:
            NotFound: the tenant has no such adapter.
            PermissionDenied: it is borrowed.
            Conflict: its job still runs.
            QuotaExceeded: the tenant's imports would pass `max_total_bytes`.
        """
        async with self._db.begin() as conn:
            await lock_tenant(conn, self._tenant_id)
            adapter = await self._owned(conn, adapter_id)
            await refuse_while_job_runs(conn, adapter)
            await check_room(conn, self._tenant_id, imported.num_bytes, max_total_bytes)
            version = await insert_version(conn, adapter, imported)
        return await self.version(adapter_id, version)

    # ---- changing ------------------------------------------------------------------------

    async def promote(self, adapter_id: str, version: int) -> Adapter:
        """Make a version live: the plain name and `:live` answer with it from now on.

        Raises:
            NotFound: the tenant has no such adapter, or the adapter no such version.
            PermissionDenied: it is borrowed.
        """
        async with self._changing(adapter_id) as (conn, adapter):
            await adapter_pointers.promote(conn, adapter, version)
        return await self.get(adapter_id)

    async def roll_back(self, adapter_id: str) -> Adapter:
        """Undo the last promotion.

        Raises:
            NotFound: the tenant has no such adapter.
            PermissionDenied: it is borrowed.
            Conflict: there is no promotion to undo.
        """
        async with self._changing(adapter_id) as (conn, adapter):
            await adapter_pointers.roll_back(conn, adapter)
        return await self.get(adapter_id)

    async def set_tag(self, adapter_id: str, tag: str, version: int) -> Adapter:
        """Put a tag on a version. Raises NotFound, PermissionDenied, InvalidInput."""
        async with self._changing(adapter_id) as (conn, adapter):
            await adapter_pointers.set_tag(conn, adapter, tag, version)
        return await self.get(adapter_id)

    async def drop_tag(self, adapter_id: str, tag: str) -> None:
        """Forget a tag. Raises NotFound, PermissionDenied."""
        async with self._changing(adapter_id) as (conn, adapter):
            await adapter_pointers.drop_tag(conn, adapter, tag)

    async def set_pinned(self, adapter_id: str, is_pinned: bool) -> Adapter:
        """Protect the adapter from deletion, or no longer. Raises NotFound, PermissionDenied."""
        async with self._changing(adapter_id) as (conn, adapter):
            changed = update(adapters).where(adapters.c.id == adapter.id)
            await conn.execute(changed.values(is_pinned=is_pinned))
        return await self.get(adapter_id)

    async def share(self, adapter_id: str, borrower_id: str) -> Adapter:
        """Let another tenant call the adapter.

        Raises:
            NotFound: the tenant has no such adapter, or there is no such borrower.
            PermissionDenied: it is borrowed itself.
            InvalidInput: the borrower is the owner.
        """
        async with self._changing(adapter_id) as (conn, adapter):
            await adapter_shares.share(conn, adapter, borrower_id)
        return await self.get(adapter_id)

    async def unshare(self, adapter_id: str, borrower_id: str) -> None:
        """Take the right away from the next request on. Raises NotFound, PermissionDenied."""
        async with self._changing(adapter_id) as (conn, adapter):
            await adapter_shares.unshare(conn, adapter, borrower_id)

    async def delete(self, adapter_id: str) -> Adapter:
        """Remove the adapter with all its versions; the caller then removes `adapters/ID`.

        Raises:
            NotFound: the tenant has no such adapter.
            PermissionDenied: it is borrowed.
            Conflict: its job still runs.
            AdapterInUse: it is pinned, or shared.
        """
        async with self._db.begin() as conn:
            await lock_tenant(conn, self._tenant_id)  # before the adapter, as tasks that end do
            row = await self._owned(conn, adapter_id)
            await refuse_while_job_runs(conn, row)
            await _refuse_while_wanted(conn, row)
            adapter = await self._whole(conn, adapter_id)
            for table in (adapter_orders, adapter_versions):
                await conn.execute(delete(table).where(table.c.adapter_id == row.id))
            await conn.execute(
                update(adapters).where(adapters.c.id == row.id).values(deleted_at=DbNow())
            )
        return adapter

    # ---- the one door --------------------------------------------------------------------

    def _visible(self) -> Select[Any]:
        """Adapters that the tenant owns or borrows, with their owner's name."""
        return (
            select(adapters, tenants.c.name.label("owner_name"))
            .join(tenants, tenants.c.id == adapters.c.tenant_id)
            .where(
                or_(
                    adapters.c.tenant_id == self._tenant_id,
                    adapter_shares.is_shared_with(self._tenant_id),
                ),
                adapters.c.deleted_at.is_(None),
            )
        )

    async def _row(self, conn: AsyncConnection, adapter_id: str) -> Row[Any]:
        query = self._visible().where(adapters.c.id == adapter_id)
        row: Row[Any] | None = (await conn.execute(query)).one_or_none()
        if row is None:
            raise NotFound(f"No adapter {adapter_id!r}; GET /v1/adapters lists yours.")
        return row

    async def _whole(self, conn: AsyncConnection, adapter_id: str) -> Adapter:
        row = await self._row(conn, adapter_id)
        return (await whole_adapters(conn, [row], self._tenant_id))[0]

    async def _owned(self, conn: AsyncConnection, adapter_id: str) -> Row[Any]:
        """The row of an adapter that the tenant may change, locked."""
        seen = await self._row(conn, adapter_id)
        if seen.tenant_id != self._tenant_id:
            raise _borrowed(adapter_id, seen.owner_name)
        query = select(adapters).where(adapters.c.id == adapter_id, adapters.c.deleted_at.is_(None))
        row: Row[Any] | None = (await conn.execute(query.with_for_update())).one_or_none()
        if row is None:  # deleted between the two looks
            raise NotFound(f"No adapter {adapter_id!r}; GET /v1/adapters lists yours.")
        return row

    @asynccontextmanager
    async def _changing(self, adapter_id: str) -> AsyncIterator[tuple[AsyncConnection, Row[Any]]]:
        async with self._db.begin() as conn:
            yield conn, await self._owned(conn, adapter_id)


def _borrowed(adapter_id: str, owner_name: str) -> PermissionDenied:
    return PermissionDenied(
        f"Adapter {adapter_id!r} is shared with you by {owner_name!r}: you may call it; only its "
        "owner may change or export it."
    )


async def _refuse_while_wanted(conn: AsyncConnection, adapter: Row[Any]) -> None:
    if adapter.is_pinned:
        raise AdapterInUse(f"Adapter {adapter.id} is pinned; unpin it before deleting it.")
    if num_borrowers := await adapter_shares.count_shares(conn, adapter.id):
        raise AdapterInUse(
            f"Adapter {adapter.id} is shared with {num_borrowers} tenants; end the sharing before "
            "deleting it."
        )
