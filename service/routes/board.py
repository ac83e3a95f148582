"""/v1/admin: jobs, adapters, usage and the outbox of all tenants, for admin keys only."""

from datetime import date
from typing import Annotated

from fastapi import APIRouter, Query
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from scheduler.domain.errors import InvalidInput, NotFound, PermissionDenied
from scheduler.store.board import BoardAdapter, BoardJob
from service.adapter_read import read_adapter
from service.board_metrics import BoardReport
from service.deps import AdminBoard, AdminLimiter, AdminUsage
from service.errors import errors
from service.job_read import read_curve, read_job
from service.schemas.account import ModelUsageRead
from service.schemas.base import ListPage
from service.schemas.board import BoardAdapterRead, BoardJobRead, LeaseRead, OutboxRead
from service.schemas.fine_tuning import DEFAULT_POINTS, CurvePointRead, MaxPoints
from service.usage_read import DEFAULT_DAYS, Days, first_of, read_usage

router = APIRouter(prefix="/v1/admin", tags=["admin"])

Limit = Annotated[int, Query(ge=1, le=100)]


def _read_job(entry: BoardJob) -> BoardJobRead:
    lease = entry.lease
    return BoardJobRead(
        **dict(read_job(entry.job)),
        tenant=entry.tenant,
        lease=lease and LeaseRead(owner=lease.owner, epoch=lease.epoch, left_s=lease.left_s),
        num_crashes=entry.num_crashes,
    )


def _read_adapter(entry: BoardAdapter) -> BoardAdapterRead:
    adapter = read_adapter(entry.adapter)
    return BoardAdapterRead(**dict(adapter), tenant_id=entry.tenant_id, tenant=entry.tenant)


@router.get("/jobs", responses=errors(InvalidInput, PermissionDenied))
async def list_all_jobs(board: AdminBoard, limit: Limit = 20) -> ListPage[BoardJobRead]:
    """List the newest jobs of all tenants, newest first, with their leases."""
    return ListPage(data=[_read_job(entry) for entry in await board.jobs(limit)])


@router.get("/jobs/{job_id}/curve", responses=errors(InvalidInput, NotFound, PermissionDenied))
async def show_curve(
    job_id: str, board: AdminBoard, points: MaxPoints = DEFAULT_POINTS
) -> ListPage[CurvePointRead]:
    """Show how any job's losses went, oldest first, evenly thinned; the newest is always there."""
    return read_curve(await board.curve(job_id, max_points=points))


@router.get("/adapters", responses=errors(InvalidInput, PermissionDenied))
async def list_all_adapters(board: AdminBoard, limit: Limit = 50) -> ListPage[BoardAdapterRead]:
    """List the newest adapters of all tenants, newest first."""
    return ListPage(data=[_read_adapter(entry) for entry in await board.adapters(limit)])


@router.get("/usage", responses=errors(InvalidInput, PermissionDenied))
async def list_all_usage(usage: AdminUsage, days: Days = DEFAULT_DAYS) -> ListPage[ModelUsageRead]:
    """List all tenants' tokens by tenant and model, most first."""
    return read_usage(await usage.since(first_of(days)))


@router.get(
    "/metrics",
    response_class=Response,
    responses=errors(PermissionDenied) | {200: {"content": {"text/plain": {}}}},
)
async def board_metrics(board: AdminBoard, usage: AdminUsage, limiter: AdminLimiter) -> Response:
    """Prometheus series that name tenants and jobs; those without names are at /metrics."""
    report = BoardReport(
        usage=await usage.since(date.min),
        running=await board.running(),
        tally=await board.tally(),
        outbox=await board.outbox(),
        refused=limiter.num_refused,
    )
    return Response(report.render(), media_type=CONTENT_TYPE_LATEST)


@router.get("/outbox", responses=errors(PermissionDenied))
async def show_outbox(board: AdminBoard) -> OutboxRead:
    """Show how much waits to be sent to tasks and workers, and since when."""
    backlog = await board.outbox()
    return OutboxRead(num_unsent=backlog.num_unsent, oldest_s=backlog.oldest_s)
