"""A fine-tuning job's first rows: its own, its metadata, its first event, the order to check it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import func, insert, select

from scheduler.domain.errors import InvalidInput, QuotaExceeded
from scheduler.domain.job import JobStatus
from scheduler.store.clock import DbNow
from scheduler.store.ids import new_id
from scheduler.store.job_events import append_event
from scheduler.store.outbox import OutboxKind, enqueue
from scheduler.store.tables import files, job_metadata, jobs
from scheduler.store.tenants import lock_tenant

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from scheduler.domain.tenant import Tenant
    from scheduler.store.job_record import JobDraft

ADAPTER_ID_CHARS = 8
ACTIVE = (JobStatus.VALIDATING_FILES, JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.PAUSED)


async def create_job(
    conn: AsyncConnection, tenant_id: str, job_id: str, draft: JobDraft, max_active: int | None
) -> None:
    """Write all of a new job's rows.

    Raises:
        InvalidInput: a file is not the tenant's (`param` names which).
        QuotaExceeded: the tenant already has `max_active` unfinished jobs.
    """
    tenant = await lock_tenant(conn, tenant_id)
    await _check_quota(conn, tenant_id, max_active)
    digests = await _check_files(conn, tenant_id, draft)
    row = _new_row(job_id, tenant, draft)
    await conn.execute(insert(jobs).values(row | {"data_digests": digests}))
    for key, value in draft.metadata.items():
        await conn.execute(insert(job_metadata).values(job_id=job_id, key=key, value=value))
    await append_event(conn, job_id, f"Created fine-tuning job {job_id}; checking its files.")
    await enqueue(conn, OutboxKind.VALIDATE_JOB, job_id)


async def count_active(conn: AsyncConnection, tenant_id: str) -> int:
    """The tenant's jobs that are not over (paused ones count)."""
    query = select(func.count()).where(jobs.c.tenant_id == tenant_id, jobs.c.status.in_(ACTIVE))
    return int(await conn.scalar(query) or 0)


async def _check_quota(conn: AsyncConnection, tenant_id: str, max_active: int | None) -> None:
    if max_active is not None and await count_active(conn, tenant_id) >= max_active:
        raise QuotaExceeded(
            f"You have {max_active} unfinished fine-tuning jobs, which is the limit; wait for "
            "one to end or cancel one."
        )


async def _check_files(conn: AsyncConnection, tenant_id: str, draft: JobDraft) -> dict[str, str]:
    """Refuse files that are not the tenant's; the digests of the others by role."""
    roles = {"training_file": draft.training_file, "validation_file": draft.validation_file}
    digests: dict[str, str] = {}
    for role, file_id in roles.items():
        if file_id is not None:
            sha256 = await _check_file(conn, tenant_id, file_id, role)
            digests |= {role: sha256} if sha256 else {}
    return digests


async def _check_file(
    conn: AsyncConnection, tenant_id: str, file_id: str, param: str
) -> str | None:
    query = select(files.c.purpose, files.c.sha256).where(
        files.c.id == file_id, files.c.tenant_id == tenant_id
    )
    row = (await conn.execute(query)).one_or_none()
    if row is None:
        raise InvalidInput(
            f"No file {file_id!r}; upload it first with purpose 'fine-tune'.", param=param
        )
    if row.purpose != "fine-tune":
        raise InvalidInput(
            f"File {file_id!r} has purpose {row.purpose!r}; upload it with purpose 'fine-tune'.",
            param=param,
        )
    sha256: str | None = row.sha256
    return sha256


def _new_row(job_id: str, tenant: Tenant, draft: JobDraft) -> dict[str, object]:
    spec = draft.spec
    adapter_id = new_id("", ADAPTER_ID_CHARS)
    return {
        "id": job_id,
        "tenant_id": tenant.id,
        "status": JobStatus.VALIDATING_FILES,
        "base_model": spec.base_model,
        "priority": spec.priority,
        "spec": spec.model_dump(mode="json"),
        "training_file": draft.training_file,
        "validation_file": draft.validation_file,
        "suffix": draft.suffix,
        "adapter_id": adapter_id,
        "model_name": f"ft:{spec.base_model}:{tenant.name}:{draft.suffix}:{adapter_id}",
        "hyperparameters": draft.hyperparameters,
        "method": draft.method,
        "metadata": draft.metadata,
        "created_at": DbNow(),
        "trained_tokens": 0,
        "result_files": [],
        "epoch": 0,
        "cancel_requested": False,
        "pause_requested": False,
        "num_crashes": 0,
        "num_checks": 0,
        "hinted_at": DbNow(),
    }
