"""Full models made of a base and one version, by a task that may die and be tried again.

A version never changes, so neither does its merge: the two numbers name it. Like the check of a
job's files, a merge holds a short lease, with the number of the try as its fence.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from sqlalchemy import Row, delete, func, insert, or_, select, update

from scheduler.domain.errors import Conflict, NotFound, QuotaExceeded
from scheduler.store.clock import DbNow
from scheduler.store.ids import new_id
from scheduler.store.tables import adapter_merges, adapter_versions, adapters
from scheduler.store.tenants import lock_tenant

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement
    from sqlalchemy.ext.asyncio import AsyncConnection

    from scheduler.store.database import Database

MERGE_LEASE_S = 60.0
MAX_TRIES = 3  # a merge that killed so many processes is given up


class MergeStatus(StrEnum):
    """How far a merge is."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Merge:
    """One merge.

    Attributes:
        uri: key of the model's folder, once it has succeeded.
        files: name -> bytes of the model's files.
    """

    adapter_id: str
    version: int
    status: MergeStatus
    uri: str | None
    files: dict[str, int]
    error_message: str | None
    created_at: int
    finished_at: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeWork:
    """What the task needs; `num_tries` is the fence of all it writes.

    Attributes:
        adapter_uri: key of the version's folder.
        target_uri: where the model's folder goes; no other try writes there.
    """

    adapter_id: str
    version: int
    num_tries: int
    base_model: str
    adapter_uri: str
    target_uri: str


class Merges:
    """All merges; routes see only a tenant's view, tasks claim them one by one."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def for_tenant(self, tenant_id: str) -> TenantMerges:
        """The view of one tenant."""
        return TenantMerges(self._db, tenant_id)

    async def hint(self, resend_after_s: float) -> list[str]:
        """Names of merges that a task should look at now; the next time only after a while."""
        waiting = or_(
            adapter_merges.c.status == MergeStatus.QUEUED,
            (adapter_merges.c.status == MergeStatus.RUNNING)
            & (adapter_merges.c.lease_until < DbNow()),
        )
        due = or_(
            adapter_merges.c.hinted_at.is_(None),
            adapter_merges.c.hinted_at < DbNow() - resend_after_s,
        )
        async with self._db.read() as conn:  # nearly always none: do not take the write lock
            if await conn.scalar(select(func.count()).where(waiting, due)) == 0:
                return []
        statement = update(adapter_merges).where(waiting, due).values(hinted_at=DbNow())
        names = adapter_merges.c.adapter_id, adapter_merges.c.version
        async with self._db.begin() as conn:
            rows = (await conn.execute(statement.returning(*names))).all()
        return [f"{row.adapter_id}@{row.version}" for row in rows]

    async def begin(self, name: str) -> MergeWork | None:
        """Take a merge; None when it is not wanted or somebody is at it."""
        adapter_id, _, version = name.rpartition("@")
        free = or_(adapter_merges.c.lease_until.is_(None), adapter_merges.c.lease_until < DbNow())
        open_ = adapter_merges.c.status.in_([MergeStatus.QUEUED, MergeStatus.RUNNING])
        take = (
            update(adapter_merges)
            .where(_is(adapter_id, int(version)), open_, free)
            .values(
                status=MergeStatus.RUNNING,
                num_tries=adapter_merges.c.num_tries + 1,
                lease_until=DbNow() + MERGE_LEASE_S,
            )
            .returning(adapter_merges)
        )
        async with self._db.begin() as conn:
            row = (await conn.execute(take)).one_or_none()
            if row is None:
                return None
            work = await _work_of(conn, row)
            if row.num_tries > MAX_TRIES:
                await _end(conn, work, error=f"Merging failed {MAX_TRIES} times without a reason.")
                return None
            return work

    async def renew(self, work: MergeWork) -> bool:
        """Extend the lease; False when the merge is not wanted any more."""
        async with self._db.begin() as conn:
            return await _fenced(conn, work, lease_until=DbNow() + MERGE_LEASE_S)

    async def succeed(self, work: MergeWork, files: dict[str, int]) -> bool:
        """Record the stored model; False when it is not wanted any more."""
        async with self._db.begin() as conn:
            return await _end(conn, work, files=files)

    async def fail(self, work: MergeWork, error: str) -> bool:
        """Record why there will be no model; False when it is not wanted any more."""
        async with self._db.begin() as conn:
            return await _end(conn, work, error=error)

    async def abandon(self, work: MergeWork) -> None:
        """Hand the merge back undone, because this process is asked to end."""
        async with self._db.begin() as conn:
            await _fenced(
                conn,
                work,
                status=MergeStatus.QUEUED,
                lease_until=None,
                hinted_at=None,
                num_tries=adapter_merges.c.num_tries - 1,
            )


class TenantMerges:
    """The merges that one tenant ordered; the caller has seen that the adapter is its own."""

    def __init__(self, db: Database, tenant_id: str) -> None:
        self._db = db
        self._tenant_id = tenant_id

    async def order(self, adapter_id: str, version: int, *, max_merges: int | None = None) -> Merge:
        """Have a version merged; one that is ordered or made already is returned as it is.

        Raises:
            NotFound: the tenant owns no such version.
            QuotaExceeded: it has `max_merges` others.
        """
        async with self._db.begin() as conn:
            await lock_tenant(conn, self._tenant_id)
            row = await self._find(conn, adapter_id, version)
            if row is not None and row.status != MergeStatus.FAILED:
                return _merge_of(row)
            await self._check_version(conn, adapter_id, version)
            if row is not None:
                await conn.execute(delete(adapter_merges).where(_is(adapter_id, version)))
            await self._check_quota(conn, max_merges)
            await conn.execute(
                insert(adapter_merges).values(
                    adapter_id=adapter_id,
                    version=version,
                    tenant_id=self._tenant_id,
                    status=MergeStatus.QUEUED,
                    created_at=DbNow(),
                    num_tries=0,
                )
            )
            row = await self._find(conn, adapter_id, version)
            assert row is not None
            return _merge_of(row)

    async def get(self, adapter_id: str, version: int) -> Merge:
        """Raises NotFound when the tenant has not ordered it."""
        async with self._db.read() as conn:
            row = await self._find(conn, adapter_id, version)
        if row is None:
            raise _unknown(adapter_id, version)
        return _merge_of(row)

    async def finished(self, adapter_id: str, version: int) -> Merge:
        """The merge, made.

        Raises:
            NotFound: the tenant has not ordered it.
            Conflict: it is not made, or cannot be.
        """
        merge = await self.get(adapter_id, version)
        if merge.status is not MergeStatus.SUCCEEDED:
            reason = f": {merge.error_message}" if merge.error_message else "; ask again later."
            raise Conflict(f"The merge of version {version} is {merge.status}{reason}")
        return merge

    async def delete(self, adapter_id: str, version: int) -> Merge:
        """Forget a merge; the caller then removes its bytes. Raises NotFound."""
        merge = await self.get(adapter_id, version)
        async with self._db.begin() as conn:
            mine = adapter_merges.c.tenant_id == self._tenant_id
            await conn.execute(delete(adapter_merges).where(_is(adapter_id, version), mine))
        return merge

    async def _find(self, conn: AsyncConnection, adapter_id: str, version: int) -> Row[Any] | None:
        mine = adapter_merges.c.tenant_id == self._tenant_id
        query = select(adapter_merges).where(_is(adapter_id, version), mine)
        row: Row[Any] | None = (await conn.execute(query)).one_or_none()
        return row

    async def _check_version(self, conn: AsyncConnection, adapter_id: str, version: int) -> None:
        query = (
            select(adapter_versions.c.version)
            .join(adapters, adapters.c.id == adapter_versions.c.adapter_id)
            .where(
                adapters.c.id == adapter_id,
                adapters.c.tenant_id == self._tenant_id,
                adapter_versions.c.version == version,
            )
        )
        if await conn.scalar(query) is None:
            raise NotFound(
                f"Adapter {adapter_id} has no version {version}; "
                f"GET /v1/adapters/{adapter_id}/versions lists them.",
                param="version",
            )

    async def _check_quota(self, conn: AsyncConnection, max_merges: int | None) -> None:
        query = select(func.count()).where(adapter_merges.c.tenant_id == self._tenant_id)
        if max_merges is not None and int(await conn.scalar(query) or 0) >= max_merges:
            raise QuotaExceeded(
                f"You keep {max_merges} merged models, which is the limit; delete one first."
            )


def _is(adapter_id: str, version: int) -> ColumnElement[bool]:
    return (adapter_merges.c.adapter_id == adapter_id) & (adapter_merges.c.version == version)


async def _fenced(conn: AsyncConnection, work: MergeWork, **values: object) -> bool:
    result = await conn.execute(
        update(adapter_merges)
        .where(
            _is(work.adapter_id, work.version),
            adapter_merges.c.num_tries == work.num_tries,
            adapter_merges.c.status == MergeStatus.RUNNING,
        )
        .values(values)
    )
    return result.rowcount == 1


async def _end(
    conn: AsyncConnection,
    work: MergeWork,
    *,
    files: dict[str, int] | None = None,
    error: str | None = None,
) -> bool:
    return await _fenced(
        conn,
        work,
        status=MergeStatus.FAILED if error else MergeStatus.SUCCEEDED,
        uri=None if error else work.target_uri,
        files=files,
        error_message=error,
        finished_at=DbNow(),
        lease_until=None,
    )


async def _work_of(conn: AsyncConnection, row: Row[Any]) -> MergeWork:
    query = (
        select(adapter_versions.c.uri, adapters.c.base_model)
        .join(adapters, adapters.c.id == adapter_versions.c.adapter_id)
        .where(adapters.c.id == row.adapter_id, adapter_versions.c.version == row.version)
    )
    source = (await conn.execute(query)).one()
    return MergeWork(
        adapter_id=row.adapter_id,
        version=row.version,
        num_tries=row.num_tries,
        base_model=source.base_model,
        adapter_uri=source.uri,
        target_uri=f"adapters/{row.adapter_id}/{new_id('merged-')}",
    )


def _merge_of(row: Row[Any]) -> Merge:
    return Merge(
        adapter_id=row.adapter_id,
        version=row.version,
        status=MergeStatus(row.status),
        uri=row.uri,
        files=row.files or {},
        error_message=row.error_message,
        created_at=int(row.created_at),
        finished_at=None if row.finished_at is None else int(row.finished_at),
    )


def _unknown(adapter_id: str, version: int) -> NotFound:
    return NotFound(
        f"Version {version} of adapter {adapter_id!r} is not merged; "
        f"POST /v1/adapters/{adapter_id}/versions/{version}/merge orders it."
    )
