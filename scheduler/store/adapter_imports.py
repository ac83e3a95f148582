"""Versions that were not trained here: rows for artefacts whose bytes are stored already."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import Row, func, insert, select

from scheduler.domain.errors import Conflict, QuotaExceeded
from scheduler.domain.job import JobStatus, is_final
from scheduler.store.clock import DbNow
from scheduler.store.ids import new_id
from scheduler.store.tables import adapter_versions, adapters, jobs
from scheduler.store.versions import TRAINED, newest_version

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from scheduler.domain.tenant import Tenant

ADAPTER_ID_CHARS = 8
IMPORTED = "import"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredVersion:
    """A checked artefact in the object store.

    Attributes:
        uri: key of its folder.
        digest: content digest, as in its manifest.
        base_digest: digest of the base weights that it was checked against.
        origin: `import`, or the kind of the order that made it.
        parent_version: the version of the same adapter that it was made of.
        recipe: how it was made, for whoever looks at it.
    """

    uri: str
    digest: str
    num_bytes: int
    base_digest: str
    method: str
    metrics: dict[str, float] = field(default_factory=dict)
    origin: str = IMPORTED
    parent_version: int | None = None
    recipe: dict[str, Any] | None = None


def new_adapter_id() -> str:
    """A fresh id; the bytes are stored under it before the row is made."""
    return new_id("", ADAPTER_ID_CHARS)


def import_key(adapter_id: str) -> str:
    """Object-store key of a new imported version's folder."""
    return f"adapters/{adapter_id}/{new_id('import-')}"


async def insert_adapter(
    conn: AsyncConnection, adapter_id: str, tenant: Tenant, name: str, base_model: str
) -> None:
    """Write the row of an adapter without a job; its first version is published at once."""
    await conn.execute(
        insert(adapters).values(
            id=adapter_id,
            tenant_id=tenant.id,
            job_id=None,
            base_model=base_model,
            model_name=f"ft:{base_model}:{tenant.name}:{name}:{adapter_id}",
            final_version=1,
            created_at=DbNow(),
        )
    )


async def insert_version(conn: AsyncConnection, adapter: Row[Any], stored: StoredVersion) -> int:
    """Write the next version of an adapter whose row the caller holds; returns its number."""
    version = await newest_version(conn, adapter.id) + 1
    await conn.execute(
        insert(adapter_versions).values(
            adapter_id=adapter.id,
            version=version,
            name=f"{adapter.model_name}@{version}",
            step=0,
            digest=stored.digest,
            uri=stored.uri,
            num_bytes=stored.num_bytes,
            created_at=DbNow(),
            origin=stored.origin,
            base_digest=stored.base_digest,
            method=stored.method,
            metrics=stored.metrics,
            parent_version=stored.parent_version,
            recipe=stored.recipe,
        )
    )
    return version


async def refuse_while_job_runs(conn: AsyncConnection, adapter: Row[Any]) -> None:
    """A running job numbers its adapter's versions itself.

    Raises:
        Conflict: it runs.
    """
    status = await conn.scalar(select(jobs.c.status).where(jobs.c.id == adapter.job_id))
    if status is not None and not is_final(JobStatus(status)):
        raise Conflict(
            f"Job {adapter.job_id} still makes versions of {adapter.model_name!r}; cancel it "
            "first.",
            param="model",
        )


async def check_room(
    conn: AsyncConnection, tenant_id: str, num_bytes: int, limit_bytes: int | None
) -> None:
    """Refuse what would bring the tenant's versions that no job made over their limit.

    Raises:
        QuotaExceeded: it would.
    """
    if limit_bytes is None:
        return
    total = func.coalesce(func.sum(adapter_versions.c.num_bytes), 0)
    query = (
        select(total)
        .join(adapters, adapters.c.id == adapter_versions.c.adapter_id)
        .where(adapters.c.tenant_id == tenant_id, adapter_versions.c.origin != TRAINED)
    )
    held_bytes = int(await conn.scalar(query) or 0)
    if held_bytes + num_bytes > limit_bytes:
        raise QuotaExceeded(
            f"This would bring your adapters that no job has trained to "
            f"{held_bytes + num_bytes} bytes; the limit is {limit_bytes}. Delete adapters you no "
            "longer need.",
            param="file",
        )
