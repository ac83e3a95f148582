"""/v1/fine_tuning/jobs."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from scheduler.domain.errors import (
    InvalidInput,
    InvalidTransition,
    ModelNotFound,
    NotFound,
    Overloaded,
    QuotaExceeded,
)
from scheduler.domain.job import is_final
from scheduler.store.job_events import JobEvent
from scheduler.store.jobs import TenantJobs
from service.deps import (
    AdaptersDep,
    CatalogueDep,
    FilesDep,
    JobsDep,
    ReplaysDep,
    RosterDep,
    SettingsDep,
)
from service.encoding import to_json
from service.errors import errors
from service.evaluation_request import GATE, check_plan
from service.event_stream import DONE, EventStream, event
from service.job_read import read_curve, read_job
from service.job_request import draft_job
from service.schemas.base import ListPage
from service.schemas.fine_tuning import (
    DEFAULT_POINTS,
    CheckpointRead,
    CurvePointRead,
    EventRead,
    JobCreate,
    JobRead,
    MaxPoints,
)

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning"])

EVENT_POLL_S = 0.5
After = Annotated[str | None, Query(max_length=128, description="Last id of the page before.")]


def _read_event(entry: JobEvent) -> EventRead:
    return EventRead(
        id=entry.id,
        created_at=entry.created_at,
        level=entry.level,
        message=entry.message,
        type=entry.type,
        data=entry.data,
    )


@router.post("", responses=errors(InvalidInput, ModelNotFound, QuotaExceeded, Overloaded))
async def create_job(
    body: JobCreate,
    jobs: JobsDep,
    files: FilesDep,
    adapters: AdaptersDep,
    catalogue: CatalogueDep,
    roster: RosterDep,
    settings: SettingsDep,
    replays: ReplaysDep,
) -> JobRead:
    """Start a fine-tuning job: its files are checked first, then it waits for a worker."""
    key = replays.key_for("jobs", body.model_dump(mode="json"))
    earlier = await replays.earlier(key)
    if earlier is not None:
        return read_job(await jobs.get(earlier))
    draft = draft_job(body, catalogue, roster)
    if draft.spec.promote_if is not None:
        await check_plan(draft.spec.promote_if, body.model, files, catalogue, adapters, GATE)
    return read_job(await jobs.create(draft, max_active=settings.max_active_jobs, idempotency=key))


def _metadata_filter(request: Request) -> dict[str, str] | None:
    """Pairs of `metadata[key]=value` in the query; None when there are none."""
    pairs = {
        name[len("metadata[") : -1]: value
        for name, value in request.query_params.items()
        if name.startswith("metadata[") and name.endswith("]")
    }
    return pairs or None


@router.get("", responses=errors(InvalidInput))
async def list_jobs(
    request: Request,
    jobs: JobsDep,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> ListPage[JobRead]:
    """List jobs, newest first; `metadata[key]=value` keeps those that carry the pair."""
    page = await jobs.list(after=after, limit=limit, metadata=_metadata_filter(request))
    return ListPage.of([read_job(job) for job in page], has_more=page.has_more)


@router.get("/{job_id}", responses=errors(NotFound))
async def retrieve_job(job_id: str, jobs: JobsDep) -> JobRead:
    """Show one job."""
    return read_job(await jobs.get(job_id))


@router.post("/{job_id}/cancel", responses=errors(NotFound, InvalidTransition))
async def cancel_job(job_id: str, jobs: JobsDep) -> JobRead:
    """Cancel a job; a running one stops within seconds."""
    return read_job(await jobs.cancel(job_id))


@router.post("/{job_id}/pause", responses=errors(NotFound, InvalidTransition))
async def pause_job(job_id: str, jobs: JobsDep) -> JobRead:
    """Pause a job; a running one writes a checkpoint first."""
    return read_job(await jobs.pause(job_id))


@router.post("/{job_id}/resume", responses=errors(NotFound, InvalidTransition))
async def resume_job(job_id: str, jobs: JobsDep) -> JobRead:
    """Queue a paused job again; it goes on at its last checkpoint."""
    return read_job(await jobs.resume(job_id))


@router.get(
    "/{job_id}/events",
    response_model=ListPage[EventRead],
    responses=errors(NotFound, InvalidInput) | {200: {"content": {"text/event-stream": {}}}},
)
async def list_events(
    job_id: str,
    jobs: JobsDep,
    settings: SettingsDep,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    stream: Annotated[
        bool, Query(description="Oldest first and live, as server-sent events.")
    ] = False,
) -> Response:
    """List what happened to a job, newest first; or follow it live with `stream=true`."""
    if stream:
        return EventStream(
            _follow(jobs, job_id, after),
            ping_s=settings.ping_s,
            slow_client_s=settings.slow_client_s,
        )
    page = await jobs.events(job_id, after=after, limit=limit)
    listed = ListPage.of([_read_event(entry) for entry in page], has_more=page.has_more)
    return Response(to_json(listed), media_type="application/json")


async def _follow(jobs: TenantJobs, job_id: str, since: str | None) -> AsyncGenerator[bytes, None]:
    """Events after `since`, as they come, until the job is over."""
    while True:
        over = is_final((await jobs.get(job_id)).status)  # asked first: no event can slip between
        while entries := await jobs.events_since(job_id, since=since, limit=100):
            for entry in entries:
                yield event(_read_event(entry))
            since = entries[-1].id
        if over:
            break
        await asyncio.sleep(EVENT_POLL_S)
    yield DONE


@router.get("/{job_id}/curve", responses=errors(NotFound, InvalidInput))
async def retrieve_curve(
    job_id: str, jobs: JobsDep, points: MaxPoints = DEFAULT_POINTS
) -> ListPage[CurvePointRead]:
    """Show how a job's losses went, oldest first, evenly thinned; the newest is always there."""
    return read_curve(await jobs.curve(job_id, max_points=points))


@router.get("/{job_id}/checkpoints", responses=errors(NotFound, InvalidInput))
async def list_checkpoints(
    job_id: str,
    jobs: JobsDep,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 10,
) -> ListPage[CheckpointRead]:
    """List a job's checkpoints, newest first; each is callable as a model."""
    page = await jobs.checkpoints(job_id, after=after, limit=limit)
    read = [
        CheckpointRead(
            id=checkpoint.id,
            created_at=checkpoint.created_at,
            fine_tuned_model_checkpoint=checkpoint.model_name,
            fine_tuning_job_id=checkpoint.job_id,
            step_number=checkpoint.step,
            metrics={"step": checkpoint.step, **checkpoint.metrics},
        )
        for checkpoint in page
    ]
    return ListPage.of(read, has_more=page.has_more)
