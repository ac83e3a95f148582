"""/v1/admin/workers: what the workers do, step by step, for admin keys only."""

from typing import Annotated

from fastapi import APIRouter, Query

from scheduler.domain.engine_stats import StepSample
from scheduler.domain.errors import InvalidInput, NotFound, PermissionDenied
from scheduler.domain.messages import WorkerInfo
from service.deps import AdminRoster
from service.errors import errors
from service.schemas.base import ListPage
from service.schemas.worker import WorkerLoad, WorkerRead

router = APIRouter(prefix="/v1/admin/workers", tags=["admin"])

DEFAULT_STEPS = 50
MAX_STEPS = 256  # a worker announces no more


def _read(worker: WorkerInfo) -> WorkerRead:
    stats = worker.stats
    return WorkerRead(
        id=worker.worker_id,
        boot_id=worker.boot_id,
        base_models=[base.id for base in worker.capabilities.base_models],
        service_classes=worker.capabilities.service_classes,
        load=None if stats is None else WorkerLoad.model_validate(stats, from_attributes=True),
        adapter_tiers=worker.adapter_tiers,
        slo=() if stats is None else stats.slo,
    )


@router.get("", responses=errors(PermissionDenied))
async def list_workers(roster: AdminRoster) -> ListPage[WorkerRead]:
    """List the live workers, and how often each kept its targets."""
    return ListPage(data=[_read(worker) for worker in roster.workers])


@router.get("/{worker_id}/steps", responses=errors(InvalidInput, NotFound, PermissionDenied))
async def list_steps(
    worker_id: str,
    roster: AdminRoster,
    limit: Annotated[int, Query(ge=1, le=MAX_STEPS)] = DEFAULT_STEPS,
) -> ListPage[StepSample]:
    """List a worker's newest engine steps, newest first; they are a few seconds old."""
    stats = roster.worker(worker_id).stats
    steps = () if stats is None else stats.steps
    return ListPage(data=list(reversed(steps[-limit:])), has_more=len(steps) > limit)
