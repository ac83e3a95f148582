"""Uploaded and generated files: the rows; their bytes lie in the object store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Row, delete, func, insert, select

from scheduler.domain.errors import Conflict, NotFound, QuotaExceeded
from scheduler.domain.job import JobStatus
from scheduler.store.clock import DbNow
from scheduler.store.idempotency import IdempotencyKey, remember
from scheduler.store.ids import new_id
from scheduler.store.page import Order, Page, fetch_page
from scheduler.store.tables import files, jobs
from scheduler.store.tenants import lock_tenant

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from scheduler.store.database import Database


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """One file of a tenant.

    Attributes:
        id: `file-...`.
        num_bytes: size of its content.
        object_key: where the bytes lie in the object store.
        status: OpenAI's `uploaded`, `processed` or `error`.
        created_at: unix seconds.
    """

    id: str
    tenant_id: str
    filename: str
    purpose: str
    num_bytes: int
    object_key: str
    status: str
    created_at: int
    expires_at: int | None = None


def new_file_id() -> str:
    """A fresh `file-...` id; the bytes are stored under it before the row is made."""
    return new_id("file-")


def file_object_key(tenant_id: str, file_id: str) -> str:
    """Object-store key of a file's bytes."""
    return f"files/{tenant_id}/{file_id}"


class Files:
    """The files table; routes see only a tenant's view of it."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def for_tenant(self, tenant_id: str) -> TenantFiles:
        """The view of one tenant."""
        return TenantFiles(self._db, tenant_id)


class TenantFiles:
    """The files of one tenant."""

    def __init__(self, db: Database, tenant_id: str) -> None:
        self._db = db
        self._tenant_id = tenant_id

    async def create(
        self,
        *,
        file_id: str,
        filename: str,
        purpose: str,
        num_bytes: int,
        object_key: str,
        sha256: str | None = None,
        max_total_bytes: int | None = None,
        idempotency: IdempotencyKey | None = None,
    ) -> File:
        """Record a file whose bytes are already stored.

        With a repeated idempotency key the earlier file comes back (its id is not `file_id`):
        the caller then deletes the bytes that it has just stored.

        Raises:
            QuotaExceeded: the tenant would hold more than `max_total_bytes`.
            IdempotencyMismatch: the key came with another body.
        """
        async with self._db.begin() as conn:
            if idempotency is not None:
                owner = await remember(conn, self._tenant_id, idempotency, file_id)
                if owner != file_id:
                    return await self._one(conn, owner)
            await lock_tenant(conn, self._tenant_id)
            if max_total_bytes is not None:
                await self._check_room(conn, num_bytes, max_total_bytes)
            await conn.execute(
                insert(files).values(
                    id=file_id,
                    tenant_id=self._tenant_id,
                    filename=filename,
                    purpose=purpose,
                    num_bytes=num_bytes,
                    object_key=object_key,
                    status="processed",
                    sha256=sha256,
                    created_at=DbNow(),
                )
            )
            return await self._one(conn, file_id)

    async def get(self, file_id: str) -> File:
        """Raises NotFound when the tenant has no such file."""
        async with self._db.read() as conn:
            return await self._one(conn, file_id)

    async def list(
        self,
        *,
        after: str | None = None,
        limit: int = 20,
        order: Order = "desc",
        purpose: str | None = None,
    ) -> Page[File]:
        """One page, newest first unless `order` is asc.

        Raises:
            InvalidInput: `after` is not a file of this tenant.
        """
        mine = select(files).where(files.c.tenant_id == self._tenant_id)
        if purpose is not None:
            mine = mine.where(files.c.purpose == purpose)
        async with self._db.read() as conn:
            page = await fetch_page(conn, mine, files, after=after, limit=limit, order=order)
        return Page(items=tuple(_file_of(row) for row in page.items), has_more=page.has_more)

    async def delete(self, file_id: str) -> File:
        """Remove the row and return it, so that the caller removes the bytes.

        Raises:
            NotFound: the tenant has no such file.
            Conflict: a job that has not read it yet still needs it.
        """
        async with self._db.begin() as conn:
            file = await self._one(conn, file_id)
            reader = await conn.scalar(
                select(jobs.c.id).where(
                    jobs.c.status == JobStatus.VALIDATING_FILES,
                    (jobs.c.training_file == file_id) | (jobs.c.validation_file == file_id),
                )
            )
            if reader is not None:
                raise Conflict(f"Job {reader} is reading file {file_id}; delete it in a moment.")
            await conn.execute(delete(files).where(files.c.id == file_id))
        return file

    async def total_bytes(self) -> int:
        """Bytes of all files of the tenant."""
        async with self._db.read() as conn:
            return await self._total_bytes(conn)

    async def _one(self, conn: AsyncConnection, file_id: str) -> File:
        query = select(files).where(files.c.id == file_id, files.c.tenant_id == self._tenant_id)
        row = (await conn.execute(query)).one_or_none()
        if row is None:
            raise NotFound(f"No file {file_id!r}; GET /v1/files lists yours.", param="file_id")
        return _file_of(row)

    async def _total_bytes(self, conn: AsyncConnection) -> int:
        total = func.coalesce(func.sum(files.c.num_bytes), 0)
        query = select(total).where(files.c.tenant_id == self._tenant_id)
        return int(await conn.scalar(query) or 0)

    async def _check_room(self, conn: AsyncConnection, num_bytes: int, limit_bytes: int) -> None:
        held_bytes = await self._total_bytes(conn)
        if held_bytes + num_bytes > limit_bytes:
            raise QuotaExceeded(
                f"This file would bring your stored files to {held_bytes + num_bytes} bytes; the "
                f"limit is {limit_bytes}. Delete files you no longer need.",
                param="file",
            )


def _file_of(row: Row[Any]) -> File:
    return File(
        id=row.id,
        tenant_id=row.tenant_id,
        filename=row.filename,
        purpose=row.purpose,
        num_bytes=row.num_bytes,
        object_key=row.object_key,
        status=row.status,
        created_at=int(row.created_at),
        expires_at=None if row.expires_at is None else int(row.expires_at),
    )
