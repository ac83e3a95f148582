"""Immutable versions of an adapter, written while its job runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Row, func, insert, select, update

from scheduler.domain.adapter import AdapterRef
from scheduler.store.clock import DbNow
from scheduler.store.ids import new_id
from scheduler.store.tables import adapter_versions, adapters, checkpoints
from scheduler.store.upsert import upsert

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from scheduler.store.lease_record import CheckpointCommit

TRAINED = "job"


async def newest_version(conn: AsyncConnection, adapter_id: str) -> int:
    """The highest version number so far, 0 for none."""
    versions = adapter_versions.c
    query = select(func.max(versions.version)).where(versions.adapter_id == adapter_id)
    return int(await conn.scalar(query) or 0)


async def commit_version(
    conn: AsyncConnection, job: Row[Any], commit: CheckpointCommit
) -> AdapterRef:
    """Write the checkpoint's row and the adapter's next version; the caller holds the job."""
    name = f"{job.model_name}:ckpt-step-{commit.step}"
    await _ensure_adapter(conn, job)
    await _write_checkpoint(conn, job, commit, name)
    newest = await newest_version(conn, job.adapter_id)
    version = newest + 1
    await conn.execute(
        insert(adapter_versions).values(
            adapter_id=job.adapter_id,
            version=version,
            name=name,
            step=commit.step,
            digest=commit.adapter_digest,
            uri=commit.adapter_uri,
            num_bytes=commit.num_bytes,
            created_at=DbNow(),
            origin=TRAINED,
            base_digest=commit.base_digest,
            method=job.spec["method"],
            job_id=job.id,
            data_digests=job.data_digests,
            metrics=commit.metrics,
            parent_version=newest or None,
        )
    )
    return _ref(job, version, commit)


async def committed_version(
    conn: AsyncConnection, job: Row[Any], commit: CheckpointCommit
) -> AdapterRef | None:
    """The version that this very commit has made before; its files lie where no other's do."""
    versions = adapter_versions.c
    query = select(versions.version).where(
        versions.adapter_id == job.adapter_id, versions.uri == commit.adapter_uri
    )
    version = await conn.scalar(query)
    return None if version is None else _ref(job, version, commit)


async def publish(conn: AsyncConnection, ref: AdapterRef) -> None:
    """Let this version answer to the adapter's plain name, unless that is to be earned."""
    is_open = (adapters.c.id == ref.adapter_id) & ~adapters.c.is_gated
    await conn.execute(update(adapters).where(is_open).values(final_version=ref.version))


def _ref(job: Row[Any], version: int, commit: CheckpointCommit) -> AdapterRef:
    return AdapterRef(
        adapter_id=job.adapter_id,
        version=version,
        digest=commit.adapter_digest,
        uri=commit.adapter_uri,
    )


async def _ensure_adapter(conn: AsyncConnection, job: Row[Any]) -> None:
    await conn.execute(
        upsert(conn, adapters)
        .values(
            id=job.adapter_id,
            tenant_id=job.tenant_id,
            job_id=job.id,
            base_model=job.base_model,
            model_name=job.model_name,
            is_gated=job.spec.get("promote_if") is not None,
            created_at=DbNow(),
        )
        .on_conflict_do_nothing(index_elements=["id"])
    )


async def _write_checkpoint(
    conn: AsyncConnection, job: Row[Any], commit: CheckpointCommit, name: str
) -> None:
    """A step that was reached again, after an older checkpoint had to serve, replaces its row."""
    state = {
        "epoch": job.epoch,
        "uri": commit.uri,
        "manifest_sha256": commit.manifest_sha256,
        "metrics": commit.metrics,
        "created_at": DbNow(),
    }
    await conn.execute(
        upsert(conn, checkpoints)
        .values(id=new_id("ftckpt_"), job_id=job.id, step=commit.step, model_name=name, **state)
        .on_conflict_do_update(index_elements=["job_id", "step"], set_=state)
    )
