"""Adapters as their tenant calls them: names to immutable versions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Row, Select, delete, select, update

from scheduler.domain.adapter import AdapterRef
from scheduler.domain.errors import Conflict, ModelNotFound, NotFound
from scheduler.domain.job import JobStatus, is_final
from scheduler.store.clock import DbNow
from scheduler.store.tables import adapter_versions, adapters, jobs

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from scheduler.store.database import Database

LIVE_SUFFIX = ":live"


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """An adapter with at least one version.

    Attributes:
        model_name: the plain name, callable once `final_version` is set.
        versions: newest last; `version.name` is its `ckpt-step-N` name.
        created_at: unix seconds.
    """

    id: str
    job_id: str
    base_model: str
    model_name: str
    created_at: int
    final_version: int | None
    versions: tuple[AdapterVersion, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterVersion:
    """One immutable version."""

    version: int
    name: str
    step: int
    digest: str
    uri: str
    num_bytes: int
    created_at: int


class Adapters:
    """The adapters table; routes see only a tenant's view of it."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def for_tenant(self, tenant_id: str) -> TenantAdapters:
        """The view of one tenant."""
        return TenantAdapters(self._db, tenant_id)


class TenantAdapters:
    """The adapters of one tenant."""

    def __init__(self, db: Database, tenant_id: str) -> None:
        self._db = db
        self._tenant_id = tenant_id

    async def list(self) -> list[Adapter]:
        """All adapters with at least one version, oldest first, running jobs' too."""
        async with self._db.read() as conn:
            rows = (await conn.execute(self._mine().order_by(adapters.c.seq))).all()
            return [await _adapter_of(conn, row) for row in rows]

    async def get(self, adapter_id: str) -> Adapter:
        """Raises NotFound when the tenant has no such adapter."""
        async with self._db.read() as conn:
            query = self._mine().where(adapters.c.id == adapter_id)
            row = (await conn.execute(query)).one_or_none()
            if row is None:
                raise NotFound(f"No adapter {adapter_id!r}; GET /v1/models lists yours.")
            return await _adapter_of(conn, row)

    async def resolve(self, model_name: str) -> ResolvedAdapter:
        """The version behind a plain name, a `:ckpt-step-N` name or a `:live` name.

        Raises:
            ModelNotFound: unknown, foreign or not published; one text for all.
        """
        async with self._db.read() as conn:
            row = (await conn.execute(self._version_query(model_name))).first()
        if row is None:
            raise _unknown(model_name)
        ref = AdapterRef(adapter_id=row.id, version=row.version, digest=row.digest, uri=row.uri)
        return ResolvedAdapter(name=model_name, base_model=row.base_model, ref=ref)

    async def delete(self, model_name: str) -> Adapter:
        """Remove the adapter with all its versions; the caller then removes `adapters/ID`.

        Raises:
            ModelNotFound: the tenant has no such published adapter.
            Conflict: its job still runs.
        """
        async with self._db.begin() as conn:
            query = self._mine().where(adapters.c.model_name == model_name).with_for_update()
            row = (await conn.execute(query)).one_or_none()
            if row is None:
                raise _unknown(model_name)
            status = await conn.scalar(select(jobs.c.status).where(jobs.c.id == row.job_id))
            if status is not None and not is_final(JobStatus(status)):
                raise Conflict(
                    f"Job {row.job_id} still makes versions of {model_name!r}; cancel it first.",
                    param="model",
                )
            adapter = await _adapter_of(conn, row)
            await conn.execute(
                delete(adapter_versions).where(adapter_versions.c.adapter_id == row.id)
            )
            await conn.execute(
                update(adapters).where(adapters.c.id == row.id).values(deleted_at=DbNow())
            )
        return adapter

    def _mine(self) -> Select[Any]:
        return select(adapters).where(
            adapters.c.tenant_id == self._tenant_id, adapters.c.deleted_at.is_(None)
        )

    def _version_query(self, model_name: str) -> Select[Any]:
        """The tenant's versions that answer to the name, the newest first."""
        live_name = model_name.removesuffix(LIVE_SUFFIX)
        if live_name != model_name:
            named = adapters.c.model_name == live_name
        else:
            published = adapters.c.final_version == adapter_versions.c.version
            named = (adapter_versions.c.name == model_name) | (
                (adapters.c.model_name == model_name) & published
            )
        return (
            self._mine()
            .add_columns(
                adapter_versions.c.version, adapter_versions.c.digest, adapter_versions.c.uri
            )
            .join(adapter_versions, adapter_versions.c.adapter_id == adapters.c.id)
            .where(named)
            .order_by(adapter_versions.c.version.desc())
            .limit(1)
        )


def _unknown(model_name: str) -> ModelNotFound:
    return ModelNotFound(
        f"The model {model_name!r} does not exist or you do not have access to it; "
        "GET /v1/models lists yours.",
        param="model",
    )


async def _adapter_of(conn: AsyncConnection, row: Row[Any]) -> Adapter:
    query = (
        select(adapter_versions)
        .where(adapter_versions.c.adapter_id == row.id)
        .order_by(adapter_versions.c.version)
    )
    return Adapter(
        id=row.id,
        job_id=row.job_id,
        base_model=row.base_model,
        model_name=row.model_name,
        created_at=int(row.created_at),
        final_version=row.final_version,
        versions=tuple(_version_of(version) for version in await conn.execute(query)),
    )


def _version_of(row: Row[Any]) -> AdapterVersion:
    return AdapterVersion(
        version=row.version,
        name=row.name,
        step=row.step,
        digest=row.digest,
        uri=row.uri,
        num_bytes=row.num_bytes,
        created_at=int(row.created_at),
    )
